"""Our checkpoint directory: one Orbax checkpoint per network, and a manifest that says what they are.

    DIR/manifest.json      format version; per component its configuration, origin and checksum
    DIR/checksums.json     size and CRC-32 of every other file
    DIR/<component>/       Orbax PyTree checkpoint of the Flax variables {"params": ..., ...}
    DIR/tokenizer/         the tokenizer's files, if any

A directory is written under a temporary name and renamed when complete, so that one that exists is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from ultrapixel_jax.checkpoints.arrays import (
    Shardings,
    Variables,
    check_like,
    flatten,
    placed,
    restore_arrays,
    stored_shapes,
    unflatten,
)
from ultrapixel_jax.checkpoints.faults import reading
from ultrapixel_jax.checkpoints.manifest import (
    CHECKSUMS,
    FORMAT_VERSION,
    MANIFEST,
    ComponentInfo,
    crc32,
    identity,
    info_to_json,
    read_manifest,
    verify_files,
)
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import bucket_errors, is_full, is_remote, place

__all__ = ["CheckpointWriter", "ComponentInfo", "identity", "read_manifest", "restore"]


class CheckpointWriter:
    """Writes a checkpoint directory, all of it or nothing.

        with CheckpointWriter(directory) as writer:
            writer.add("stage_c", variables, ComponentInfo(config=to_dict(config)))
            writer.add_file(tokenizer / "vocab.json", "tokenizer/vocab.json")

    `UserError` if `directory` exists and is not empty (before anything is written), if it cannot be
    written, or if the disk is full. Whatever ends the block early, nothing is left behind.
    """

    def __init__(self, directory: str | Path, *, compressed: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self.compressed = compressed
        """bfloat16 weights take a quarter less."""
        self.sampling: dict[str, Any] = {}
        """What the manifest says under that name."""
        self._components: dict[str, ComponentInfo] = {}
        self._files: dict[str, dict[str, int]] = {}

    def __enter__(self) -> CheckpointWriter:
        target = self.directory
        if target.is_dir():
            with _user_errors(target):
                if any(target.iterdir()):
                    raise UserError(f"{target} exists and is not empty; remove it or choose another")
        elif target.exists() or target.is_symlink():
            raise UserError(f"{target} exists and is no directory; choose another name")
        self._parents = [p for p in target.parents if not p.exists()]
        self._partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        try:
            with _user_errors(target):
                self._partial.mkdir(parents=True)
        except BaseException:
            self._discard()
            raise
        return self

    def add(self, name: str, variables: Variables, info: ComponentInfo) -> None:
        """Save one network at once; the caller may free `variables` afterwards.

        `variables` are nested dicts of numpy arrays (bfloat16 through ml_dtypes), none of them empty.
        An array that is not C-contiguous is replaced in its dictionary by a contiguous copy, since Orbax
        would make the copies of all of them at once.
        """
        if name in self._components or not name.isidentifier():
            raise ValueError(f"component {name!r} is no identifier or was added before")
        leaves = dict(_leaves(variables))
        digest, size = hashlib.sha256(), 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, part in zip(leaves, pool.map(lambda leaf: _settle(*leaf), leaves.values())):
                digest.update(f"{path} {part}\n".encode())
        arrays = {path: holder[key] for path, (holder, key) in leaves.items()}
        size = sum(array.nbytes for array in arrays.values())
        with _user_errors(self.directory):
            free = shutil.disk_usage(self._partial).free
            if size > free:
                raise OSError(errno.ENOSPC, f"{name} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            with ocp.Checkpointer(_save_handler(self.compressed)) as checkpointer:
                checkpointer.save(self._partial / name, args=ocp.args.PyTreeSave(variables))
            self._record(name)
        self._components[name] = dataclasses.replace(
            info,
            tensors=len(arrays),
            parameters=sum(a.size for path, a in arrays.items() if path.startswith("params/")),
            dtype=",".join(sorted({a.dtype.name for a in arrays.values()})),
            sha256=digest.hexdigest(),
        )

    def add_file(self, source: str | Path, name: str) -> None:
        """Copy the file `source` to `name`, a relative path such as `tokenizer/vocab.json`."""
        with self._file(name) as path:
            shutil.copyfile(source, path)

    def add_text(self, text: str, name: str) -> None:
        """Write `text` to `name`, as of `add_file`."""
        with self._file(name) as path:
            path.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """Where the file `name` is to be written; it is noted afterwards."""
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} leads out of the checkpoint directory")
        with _user_errors(self.directory):
            (self._partial / name).parent.mkdir(parents=True, exist_ok=True)
            yield self._partial / name
            self._record(name)

    def _record(self, name: str) -> None:
        """Note size and checksum of the file `name`, or of all files in that directory."""
        top = self._partial / name
        files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, crc in zip(files, pool.map(crc32, files)):
                entry = {"bytes": path.stat().st_size, "crc32": crc}
                self._files[path.relative_to(self._partial).as_posix()] = entry

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with _user_errors(self.directory):
                    self._finish()
                return
        except BaseException:
            self._discard()
            raise
        self._discard()

    def _finish(self) -> None:
        components = {name: info_to_json(info) for name, info in self._components.items()}
        sampling = {"sampling": self.sampling} if self.sampling else {}
        manifest = {"version": FORMAT_VERSION, "components": components, **sampling}
        (self._partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        (self._partial / CHECKSUMS).write_text(json.dumps(self._files, indent=2) + "\n")
        self._partial.rename(self.directory)  # fails if something came to be there meanwhile

    def _discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        for parent in self._parents:
            with contextlib.suppress(OSError):
                parent.rmdir()


def restore(
    directory: str | os.PathLike[str],
    name: str,
    *,
    like: Mapping[str, Any] | None = None,
    dtype: Any = None,
    shardings: Shardings = None,
    verify: bool = True,
) -> Variables:
    """Restore the variables of component `name` straight onto devices.

    - `like`: tree of arrays or `ShapeDtypeStruct`s that must have the same paths and shapes.
    - `dtype`: floating arrays are converted to it, each on its way; None keeps them as stored.
    - `shardings`: one for all, a tree of them, or a function of the path ("params/a/kernel") and the
      `ShapeDtypeStruct`; None places everything on the first device.
    - `verify`: compare the files' CRC-32 first (about 2 GB/s and core), as Orbax returns damaged values
      without a word; sizes are always compared.

    `UserError` if there is no such component, on a mismatch with `like`, if files are damaged or cannot be
    reached, or if memory does not do.
    """
    directory = place(directory)
    if not is_remote(directory):  # of which etils makes no absolute ones
        directory = directory.absolute()
    known = read_manifest(directory).components
    if name not in known:
        raise UserError(f"{directory} has no component {name!r}, only {', '.join(known)}; convert it")
    with bucket_errors(directory):
        verify_files(directory, name, verify)
    what, remedy = f"component {name} in {directory}", "convert it again"
    with reading(what, remedy):
        stored = stored_shapes(directory / name)
    if like is not None:
        check_like(what, stored, flatten(like))
    wanted = {path: placed(path, struct, dtype, shardings) for path, struct in stored.items()}
    with reading(what, remedy):
        return unflatten(restore_arrays(directory / name, wanted))


def _save_handler(compressed: bool) -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler without its copy of the whole tree in memory.

    The copy guards against changes during an asynchronous save, and this one is not.
    """
    takes = inspect.signature(type_handlers.NumpyHandler).parameters  # not in Orbax 0.12.4
    options: dict[str, Any] = {"deepcopy_host_arrays": False} if "deepcopy_host_arrays" in takes else {}
    registry = type_handlers.create_type_handler_registry(
        (np.ndarray, type_handlers.NumpyHandler(**options)),
        (jax.Array, type_handlers.ArrayHandler()),  # unused; Orbax warns without it
    )
    return ocp.PyTreeCheckpointHandler(use_compression=compressed, type_handler_registry=registry)


def _settle(holder: dict[str, Any], key: str) -> str:
    """Make `holder[key]` a contiguous numpy array; dtype, shape and checksum as text."""
    array = holder[key]
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{key} is {type(array).__name__}, not a numpy array")
    if not array.flags.c_contiguous:
        array = holder[key] = np.ascontiguousarray(array)
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return f"{array.dtype.name} {array.shape} {digest}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
    """Path of every leaf, in sorted order, with the dictionary and the key that hold it."""
    for key in sorted(tree):
        if isinstance(tree[key], Mapping):
            yield from _leaves(tree[key], f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", (tree, key)


@contextlib.contextmanager
def _user_errors(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses into a `UserError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Orbax passes a full disk on as the ValueError of its storage library.
        text = " ".join(str(error).split())
        if is_full(error):
            raise UserError(f"no space left to write {directory} ({text[:200]}); free some") from error
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written ({text[:200]})") from error
        raise
