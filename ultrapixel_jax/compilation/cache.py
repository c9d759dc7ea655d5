"""jax's cache of compiled programs on disk, so that the second start compiles nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ultrapixel_jax.errors import UserError


def use(directory: Path | None = None) -> Path | None:
    """Turn it on, in `directory` or the user's cache directory.

    Returns where it is; None where the user's cache directory cannot be written, which is no mistake.

    Raises:
        UserError: `directory` was given and cannot be written.
    """
    import jax
    import platformdirs

    try:
        path = directory or platformdirs.user_cache_path("ultrapixel_jax") / "compilation"
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: without a home
        if directory is None:
            return None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {directory}: {reason}; choose another --cache-dir") from error
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default jax leaves small and quick programs out, and those add up over the stages.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def executables(cache: Path | None) -> Path | None:
    """Where sampling programs lie, in the directory that `use` returned, if any (`executables.py`)."""
    return None if cache is None else cache / "executables"
