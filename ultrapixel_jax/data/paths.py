"""Local and remote (``gs://…``) paths, with errors that a person can act on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from etils import epath

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_full


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` lies in a bucket."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def user_errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn what the file system or the bucket refuses into a `UserError`: "{what} {path}: …"."""
    try:
        yield
    except ImportError as error:  # etils names the package that a bucket needs
        raise UserError(f"{what} {path}: {error}") from error
    except OSError as error:
        if is_full(error):
            raise UserError(f"{what} {path}: no space left; free some and run the same again") from error
        raise UserError(f"{what} {path}: {error.strerror or error}") from error


def write_whole(path: epath.Path, data: bytes) -> None:
    """Write a file that is there in full or not at all; objects of a bucket always are."""
    if is_remote(path):
        path.write_bytes(data)
        return
    local = Path(path)
    partial = local.with_name(f".{local.name}.partial-{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(local)


def move_in(local: Path, target: epath.Path) -> None:
    """Put a finished local file in its place, at once; it must lie on the target's file system, if local."""
    if is_remote(target):
        epath.Path(local).copy(target, overwrite=True)
        local.unlink()
    else:
        local.replace(target)


def local_copy(directory: epath.Path, cache_dir: str, names: list[str]) -> epath.Path:
    """A local directory with the files `names` of `directory`, which may be remote.

    Records are read at random, which a bucket does not offer to their reader: they are copied once. Files
    that are there with the right size are kept, and several processes may do this at the same time. For
    data larger than the disk, mount the bucket (gcsfuse) and give the local path.
    """
    if not is_remote(directory):
        return directory
    base = Path(cache_dir) if cache_dir else Path(platformdirs.user_cache_dir("ultrapixel_jax")) / "data"
    key = hashlib.sha256(os.fspath(directory).encode()).hexdigest()[:16]
    target = base / key
    with user_errors(directory, "data"):
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, copy = directory / name, target / name
            if copy.is_file() and copy.stat().st_size == source.stat().length:
                continue
            partial = target / f".{name}.partial-{os.getpid()}"
            with source.open("rb") as remote, partial.open("wb") as file:
                shutil.copyfileobj(remote, file, 1 << 22)
            partial.replace(copy)
    return epath.Path(target)
