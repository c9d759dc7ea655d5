"""What steers a picture, as people write it: options of ``sample.py`` and keys of prompt files.

Values are read in two steps. `read` makes plain values of texts, without opening a file, so that paths can be
taken relative to the file they stand in (`under`); `conditions_of` opens the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from ultrapixel_jax.commands import number
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_remote, place
from ultrapixel_jax.sampling import given
from ultrapixel_jax.sampling.conditions import Conditions, Lora, Token


@dataclasses.dataclass(frozen=True)
class Key:
    """One thing that can be said of a picture."""

    read: Callable[[str], Any]
    """From one text to a plain value, with a `Path` for each file; raises `ValueError` with what is wrong."""
    metavar: str
    help: str
    shown: str = ""
    """What is so without it."""
    several: bool = False
    """Whether it may be said more than once; its value is a tuple then."""


def _path(text: str) -> Any:
    if not text.strip():
        raise ValueError("names no file")
    return place(text)


def _weighted(text: str) -> tuple[Any, float]:
    """``FILE[:WEIGHT]``; a colon that no number follows belongs to the name."""
    head, colon, tail = text.rpartition(":")
    try:
        weight = number().read(tail) if colon else 1.0
    except ValueError:
        head, colon, weight = "", "", 1.0
    return _path(head if colon else text), weight


def _token(text: str) -> tuple[str, str]:
    """``NAME[=PATTERN]``."""
    name, _, pattern = text.partition("=")
    if not name.strip():
        raise ValueError(f"{text!r:.80} is not NAME=PATTERN")
    return name.strip(), pattern.strip()


KEYS: Mapping[str, Key] = {
    "lora": Key(_weighted, "FILE[:SCALE]", "a LoRA; several add up", several=True),
    "token": Key(
        _token, "NAME=PATTERN", "a new word that a LoRA brings, such as '[cat]=^cat</w>'", several=True
    ),
}
"""By name with underscores."""
APART: tuple[frozenset[str], ...] = ()
"""Keys of which a picture that says one drops all that the command line says."""


def read(name: str, value: Any) -> Any:
    """The plain value of key `name` that is written as `value`: a text, a number, or a list of them.

    Raises:
        UserError: of another kind or out of range.
    """
    key = KEYS[name]
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    if not texts or (len(texts) > 1 and not key.several):
        raise UserError(
            f"{name} takes {'one value or more' if key.several else 'one value'}, not {value!r:.80}"
        )
    out = []
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise UserError(f"{name} must be {key.metavar}, not {text!r:.80}")
        try:
            out.append(key.read(str(text)))
        except ValueError as error:
            raise UserError(f"{name} {error}") from error
    return tuple(out) if key.several else out[0]


def under(value: Any, folder: Path) -> Any:
    """`value` of `read` with its relative paths taken from `folder`."""
    if isinstance(value, tuple):
        return tuple(under(one, folder) for one in value)
    if isinstance(value, PurePath) and not is_remote(value):
        return folder / value
    return value


def merged(of_all: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture says itself, and what all of them say where it says nothing."""
    dropped = {name for group in APART if group & own.keys() for name in group}
    return {**{name: value for name, value in of_all.items() if name not in dropped}, **own}


def conditions_of(values: Mapping[str, Any]) -> Conditions:
    """The conditions that plain `values` mean, by the names in `KEYS`.

    Raises:
        UserError: a file that cannot be used, a value out of range, or values that do not go together.
    """
    return Conditions(
        loras=tuple(Lora(given.file(path), scale) for path, scale in values.get("lora", ())),
        tokens=tuple(Token(*token) for token in values.get("token", ())),
    )
