"""The one exception that a person at the command line is meant to read, and what its messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message is one line that says what was wrong, with the value, and what to do.

    Scripts print it after ``error:`` and exit with code 2; nothing else is caught.
    """


def one_line(message: object) -> str:
    """`message` without line breaks, whatever a file or a prompt brought into it."""
    return " ".join(str(message).split())


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What `name` is a slip for among the `known`, if any is near.

    Of names like ``optimizer.betas`` the last part may be given alone, and parts are compared one by one.
    """
    above, _, last = _plain(name).rpartition(".")
    plain: dict[str, str] = {}
    for one in known:
        room, _, part = _plain(one).rpartition(".")
        if not above or difflib.get_close_matches(above, [room], cutoff=0.7):
            plain.setdefault(part, one)
            if not room:
                plain[part] = one
    if near := difflib.get_close_matches(last, plain, n=1, cutoff=0.7):
        return plain[near[0]]
    longer = [one for part, one in plain.items() if f"-{last}-" in f"-{part}-"]
    return longer[0] if len(longer) == 1 else None


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


def unknown_key(name: str, known: Iterable[str], what: str) -> str:
    """Message for a misspelt `name`, with the nearest of `known`, or all of them where none is near."""
    known = list(known)
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown {what}: {name!r:.80}; {hint}"
