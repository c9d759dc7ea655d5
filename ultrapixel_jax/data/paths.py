"""Local and remote (``gs://…``) paths, with errors that a person can act on."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from etils import epath

from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_full, is_remote, refusal, size_of

log = logging.getLogger(__name__)


@contextlib.contextmanager
def user_errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn what the file system or the bucket refuses into a `UserError`: "{what} {path}: …"."""
    name = f"{what} {printable(path)}"
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if is_full(error):
            raise UserError(f"{name}: no space left; free some and run the same again") from error
        raise UserError(f"{name}: {error.strerror or refusal(error) or error}") from error
    except ValueError as error:
        if isinstance(error, UnicodeError) or "null byte" in str(error) or "null character" in str(error):
            raise UserError(f"{name} is no name that a file can have") from error
        raise
    except Exception as error:
        if is_remote(path) and (said := refusal(error)):
            raise UserError(f"{name}: {said}") from error
        raise


def check_name(path: str | os.PathLike[str], what: str) -> None:
    """`UserError` if `path` is no UTF-8: the writer and the reader of records take no other names."""
    name = os.fspath(path)
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise UserError(f"{what} {printable(name)}: its name is no UTF-8; rename it, or choose another")


def move_in(local: Path, target: epath.Path) -> None:
    """Put a finished local file in its place, at once; it must lie on the target's file system, if local."""
    if is_remote(target):
        epath.Path(local).copy(target, overwrite=True)
        local.unlink()
    else:
        local.replace(target)


def local_copy(directory: epath.Path, cache_dir: str, names: list[str], content: bytes) -> epath.Path:
    """A local directory with the files `names` of `directory`, which may be remote.

    Records are read at random, which a bucket does not offer to their reader: they are copied once. Files
    that are there with the right size are kept, and several processes may do this at the same time. For
    data larger than the disk, mount the bucket (gcsfuse) and give the local path.

    `content` tells two datasets at one path apart: each has its own copy.
    """
    if not is_remote(directory):
        return directory
    key = hashlib.sha256(os.fspath(directory).encode()).hexdigest()[:16]
    base = Path(cache_dir) if cache_dir else _user_cache() / "data"
    target = base / f"{key}-{hashlib.sha256(content).hexdigest()[:16]}"
    with user_errors(directory, "data"):
        target.mkdir(parents=True, exist_ok=True)
        if others := [p for p in base.glob(f"{key}*") if p != target]:
            log.warning("%s was built anew; its older copy in %s may be removed", directory, others[0])
        for name in names:
            source, copy = directory / name, target / name
            if copy.is_file() and copy.stat().st_size == size_of(source):
                continue
            partial = target / f".{name}.partial-{os.getpid()}"
            with source.open("rb") as remote, partial.open("wb") as file:
                shutil.copyfileobj(remote, file, 1 << 22)
            partial.replace(copy)
    return epath.Path(target)


def _user_cache() -> Path:
    """The user's cache directory; one in the temporary directory where there is none, with a warning."""
    try:
        path = Path(platformdirs.user_cache_dir("ultrapixel_jax"))
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
        reason = f"{path} cannot be written"
    except (OSError, RuntimeError) as error:  # a user without a home, or one that is no one's to write
        reason = " ".join(str(error).split())
    path = Path(tempfile.gettempdir()) / f"ultrapixel_jax-{os.getuid()}"
    log.warning("no cache directory (%s): copies go to %s; set data.cache_dir to keep them", reason, path)
    return path
