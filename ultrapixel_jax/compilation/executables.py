"""Compiled programs on disk, found by what they are made from, so that a later start traces nothing.

jax's own cache finds a program by its text, so that it has to be traced and lowered first, which takes longer
than reading it. Here it is found by the function's name, the shapes of its arguments, and hashes of all that
the function depends on: this package's source, the versions of the libraries, the device, and jax's settings.
A directory of programs is trusted like one of Python's byte code: reading a program runs it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize

PACKAGE = Path(__file__).parent.parent
UNTRACED = ("data", "demo", "layouts", "training")
"""Rooms of this package whose source no kept program is traced from; all other rooms count."""
LIBRARIES = ("jax", "jaxlib", "flax", "einops", "numpy")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "ULTRAPIXEL_JAX_MLP")
OF_THE_CACHE = ("compilation_cache", "persistent_cache")
"""In the names of jax's settings that change no program."""


class Executables:
    """Programs in `directory` of functions that depend on `identity` besides their arguments."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity

    def get(
        self, name: str, arguments: tuple[Any, ...], static: Any, make: Callable[[], jax.stages.Compiled]
    ) -> jax.stages.Compiled:
        """The program `name` for `arguments`: from the directory, else made and put there.

        Args:
            name: tells functions of the same identity apart.
            arguments: its arrays, as the program is called with them; on one device.
            static: all else that it is compiled with; its `repr` says what it is.
            make: compiles it.
        """
        leaves, structure = jax.tree.flatten((arguments, {}))
        parts = [_surroundings(), _settings(), self._identity, name, repr(static), str(structure)]
        key = _hash([*parts, *(f"{jax.typeof(x)!r} {getattr(x, 'sharding', None)!r}" for x in leaves)])
        path = self._directory / f"{name}-{key[:32]}"
        found = _read(path, structure, _device(leaves))
        if found is None:
            found = _compiled_afresh(make)
            _write(path, found)
        return found


@functools.cache
def _surroundings() -> str:
    """Hash of what every program of this process depends on: source, libraries and device."""
    device = jax.local_devices()[0]
    parts = [source_hash(PACKAGE), *map(importlib.metadata.version, LIBRARIES)]
    parts += [device.platform, device.device_kind, device.client.platform_version, str(jax.device_count())]
    parts += [os.environ.get(flag, "") for flag in FLAGS]
    if device.platform == "cpu":
        parts += [platform.machine(), _instructions(), str(_cores())]
    return _hash(parts)


def _settings() -> str:
    """jax's settings, which may change at any time."""
    values = jax.config.values.items()
    return repr(sorted((k, v) for k, v in values if not any(part in k for part in OF_THE_CACHE)))


def source_hash(package: Path) -> str:
    """Hash of the source that programs are traced from."""
    files = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    counted = (path for path in files if path.parts[0] not in UNTRACED)
    return _hash(part for path in counted for part in (str(path), (package / path).read_bytes()))


def _cores() -> int | None:
    """Cores that this process may use: programs for CPUs are divided among them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _instructions() -> str:
    """The instructions that this processor knows, in words; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _hash(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _device(arrays: list[Any]) -> Any:
    """Where they are."""
    of_first = next((x.sharding.device_set for x in arrays if isinstance(x, jax.Array)), jax.local_devices())
    return next(iter(of_first))


def _read(path: Path, structure: Any, device: Any) -> jax.stages.Compiled | None:
    """The program at `path`; None if there is none that can be used."""
    try:
        payload, out = pickle.loads(zlib.decompress(path.read_bytes()))  # a checksum is part of zlib's format
        return deserialize_and_load(
            payload, structure, jax.tree.structure(out), device.client, execution_devices=[device]
        )
    except Exception:  # none there, damaged, or of another compiler after all: it is made and written again
        return None


def _write(path: Path, program: jax.stages.Compiled) -> None:
    """Keep `program` at `path`, in one piece; a directory that cannot be written is no mistake."""
    try:
        payload, _, out = serialize(program)
        data = zlib.compress(pickle.dumps((payload, jax.tree.unflatten(out, range(out.num_leaves)))), 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            new = Path(file.name)
            try:
                file.write(data)
                file.close()
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
    except (OSError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        return  # all but the first: a program or a backend for which jax cannot do it


def _compiled_afresh(make: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
    """What `make` compiles, not from jax's cache: on CPUs, what comes from there cannot be kept."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # it remembers whether it was on
    try:
        return make()
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()
