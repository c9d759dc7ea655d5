"""What files need everywhere: local paths and buckets, what a bucket or a full disk says, fingerprints."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ultrapixel_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path
else:
    AnyPath = PurePath
"""A local path, or one in a bucket, which has the same methods: what `place` makes."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = ("no space left", "quota", "file too large", "resource_exhausted", "enospc")
"""What libraries say of a full disk where the operating system's number is lost."""
CLIENTS = ("gcsfs", "aiohttp", "google", "requests", "fsspec", "urllib3", "etils")
"""Packages that speak to buckets; their exceptions have no base in common."""
REFUSED = (
    "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION",
    "HTTP response code: 4", "HTTP response code: 5", "CURL error", "Forbidden: ",
)  # fmt: skip
"""What TensorStore says of a bucket, in ValueErrors, and gcsfs in an OSError without a number."""
CHAIN = 30
"""Most causes of an error that are looked at."""

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises what it logs, with a traceback


def is_full(error: BaseException) -> bool:
    """Whether `error` says that there is no space left to write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error).lower() for words in WORDS)


def fingerprint(value: object) -> str:
    """Sixteen hex digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` lies in a bucket."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike[str]) -> AnyPath:
    """`path` as pathlib has it, or in a bucket (``gs://…``) as etils does: etils asks local files for their
    owner's name, and pathlib takes one of two slashes.
    """
    if not is_remote(path):
        return Path(path)
    from etils import epath

    return epath.Path(path)  # pyright: ignore[reportReturnType]


def write_whole(path: AnyPath | epath.Path, data: bytes | str) -> None:
    """Write a file, text as UTF-8, that is there in full or not at all; objects of a bucket always are.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    if is_remote(path):
        path.write_bytes(data)
        return
    local = Path(path)
    partial = local.with_name(f".{local.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(local)
    finally:
        partial.unlink(missing_ok=True)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file."""
    if is_remote(path):
        return int(file_system(path).info(os.fspath(path))["size"])
    return Path(path).stat().st_size


def file_system(path: str | os.PathLike[str]) -> Any:
    """fsspec's file system of a bucket, the one that etils takes."""
    import fsspec

    protocol = os.fspath(path).partition("://")[0]
    return fsspec.filesystem({"gs": "gcs"}.get(protocol, protocol))


def refusal(error: BaseException) -> str | None:
    """What a bucket that cannot be used says, in a line: a package that it needs, access, the network."""
    chain: list[BaseException | None] = [error]
    for one in chain:
        if one is not None and len(chain) < CHAIN:
            chain += [one.__cause__, one.__context__]
    for one in filter(None, chain):
        text = " ".join(str(one).split()) or type(one).__name__
        if isinstance(one, ImportError) and any(name in text for name in CLIENTS):
            return f"{text:.200}; pip install 'ultrapixel_jax[gcs]'"
        if type(one).__module__.partition(".")[0] in CLIENTS or any(words in text for words in REFUSED):
            return f"{text:.300}; check its name, your credentials and the network"
    return None


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what keeps the bucket of `path` from being used into a `UserError` of one line.

    What is raised of local paths, and what is not the bucket's fault, is raised as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = refusal(error) or (str(error) if isinstance(error, OSError) else None)
        if said is None or not is_remote(path):
            raise
        raise UserError(f"{os.fspath(path)} cannot be reached: {said}") from error
