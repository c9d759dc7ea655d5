"""Why something cannot be read: too little memory, no access, or damage; each has a remedy of its own."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Literal

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import refusal

Cause = Literal["memory", "access", "damage"]

MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "cannot allocate memory", "bad_alloc")
"""What says, in lower or upper case, that memory did not do."""
ACCESS = (
    "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "permission denied",
    "operation not permitted", "input/output error", "stale file handle", "too many open files",
    "transport endpoint", "connection re", "timed out", "network is",
)  # fmt: skip
"""What Orbax's storage library says, in ValueErrors, of a file system or a network."""
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Errors of a file system that answers: a file is not there, or is something else."""
DAMAGED = (ValueError, OSError, LookupError, TypeError, AttributeError, EOFError)
"""What Orbax reports damage as."""


def cause_of(error: BaseException) -> Cause | None:
    """Why reading failed, or None where it is none of the three."""
    chain: list[BaseException] = []
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and one not in chain:
            chain.append(one)
            rest += [one.__cause__, one.__context__, *(getattr(one, "exceptions", ()))]
    texts = [str(one).lower() for one in chain]
    if any(isinstance(one, MemoryError) for one in chain) or _say(texts, MEMORY):
        return "memory"
    if any(isinstance(one, OSError) and one.errno not in (None, *ABSENT) for one in chain):
        return "access"
    if any(isinstance(one, (ConnectionError, TimeoutError)) for one in chain) or _say(texts, ACCESS):
        return "access"
    if refusal(error):
        return "access"
    return "damage" if isinstance(error, DAMAGED) else None


def _say(texts: list[str], words: tuple[str, ...]) -> bool:
    return any(word.lower() in text for text in texts for word in words)


@contextlib.contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn what keeps `what` from being read into a `UserError` whose remedy belongs to the cause.

    Args:
        what: the start of the message.
        remedy: against damage, and against nothing else.

    Raises:
        UserError: memory, access or damage. What is none of these is raised as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = cause_of(error)
        text = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        if cause == "memory":
            raise UserError(
                f"{what} does not fit into memory ({text}); nothing is wrong with it: divide it over more "
                "devices (mesh.fsdp), or use such with more memory"
            ) from error
        if cause == "access":
            raise UserError(
                f"{what} cannot be reached ({text}); it need not be damaged: check its permissions, the disk "
                "and the network, then run the same command again"
            ) from error
        if cause == "damage":
            raise UserError(f"{what} cannot be read ({text}); {remedy}") from error
        raise
