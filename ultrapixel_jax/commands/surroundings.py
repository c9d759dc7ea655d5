"""jax's settings and platforms from the environment, where they cannot work: one line with the remedy.

Imports no jax: what jax raises is known by where it comes from.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator

from ultrapixel_jax.errors import UserError, one_line

SETTINGS = "jax/_src/config.py"
"""The file of jax's that reads the environment."""
PLATFORMS = "jax/_src/xla_bridge.py"
"""The file of jax's that starts a platform's devices."""
INSTALLED = {"cuda": "jax[cuda13]", "gpu": "jax[cuda13]", "rocm": "jax-rocm7-plugin", "tpu": "jax[tpu]"}
"""What a platform needs."""

KNOWN = {
    "Disable jit is not supported": "JAX_DISABLE_JIT is set, and programs are compiled ahead; unset it",
    "Disallowed host-to-device transfer": "JAX_TRANSFER_GUARD forbids to hand a device its inputs; unset it",
}
"""What jax says, wherever it does, with the remedy."""


def check() -> None:
    """Refuse XLA_FLAGS that XLA would abort at.

    Raises:
        UserError: a flag is unknown, or its value is none.
    """
    if not os.environ.get("XLA_FLAGS") or "jaxlib" in sys.modules or not sys.executable:
        return
    # XLA reads them when it is first used, and ends the process in C++: so another one is first.
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if tried.returncode and "XLA_FLAGS" in tried.stderr:
        said = re.sub(r"^.*?\] ", "", next(x for x in tried.stderr.splitlines() if "XLA_FLAGS" in x))
        raise UserError(f"{one_line(said)[:300]}; correct or unset XLA_FLAGS")


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Have what `explained` knows be a `UserError`."""
    try:
        yield
    except Exception as error:
        if (known := explained(error)) is None:
            raise
        raise known from error


def explained(error: BaseException) -> UserError | None:
    """What to do where jax refused its settings or has no such devices; None for any other error."""
    said = re.sub(r" \((set|you may need) .*\)$", "", one_line(error))[:300]
    for words, remedy in KNOWN.items():
        if words in said:
            return UserError(remedy)
    places = [frame.filename.replace(os.sep, "/") for frame in traceback.extract_tb(error.__traceback__)]
    jaxs = [place for place in places if "/jax/_src/" in place]
    if not jaxs or not places[-1].endswith((SETTINGS, PLATFORMS)):
        return None
    if places[-1].endswith(SETTINGS):
        named = [name for name in _given() if name.lower() in said.lower()]
        return UserError(f"jax refuses a setting: {said}; correct or unset {_list(named or _given())}")
    platform = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""
    needs = [INSTALLED[name] for name in platform.lower().split(",") if name in INSTALLED]
    install = f", or install {needs[0]} on a machine that has such a device" if needs else ""
    return UserError(
        f"jax finds no device to compute on ({said or 'none of the platforms asked for is here'}); "
        f"correct or unset {_list(_given())}{install}"
    )


def _given() -> list[str]:
    """Settings of jax's in the environment."""
    return sorted(name for name in os.environ if name.startswith("JAX_") and os.environ[name])


def _list(names: list[str]) -> str:
    return " and ".join(f"{name}={os.environ[name]!r:.60}" for name in names) or "jax's settings"
