"""What writing files needs everywhere: whether a disk is full, and short fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = ("no space left", "quota", "file too large", "resource_exhausted", "enospc")
"""What libraries say of a full disk where the operating system's number is lost."""


def is_full(error: BaseException) -> bool:
    """Whether `error` says that there is no space left to write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error).lower() for words in WORDS)


def fingerprint(value: object) -> str:
    """Sixteen hex digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
