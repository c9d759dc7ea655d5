"""Options that are read and refused in one way."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from ultrapixel_jax.config import DTYPES, MESH_AXES, check_dtype, parse_mesh
from ultrapixel_jax.errors import UserError, nearest

Real = float | int
OTHERS = {
    "batch": ("batch-size",),
    "cfg-scale": ("cfg",),
    "ckpt": ("checkpoint", "sources"),
    "dataset": ("data.path",),
    "devices": ("mesh", "mesh.data"),
    "epochs": ("steps",),
    "gradient-accumulation-steps": ("optimizer.accumulate",),
    "guidance": ("cfg",),
    "guidance-scale": ("cfg",),
    "h": ("height",),
    "image-size": ("size",),
    "iterations": ("steps",),
    "lr": ("optimizer.learning-rate",),
    "max-train-steps": ("steps",),
    "mixed-precision": ("dtype",),
    "model": ("checkpoint", "sources"),
    "n-samples": ("num-images",),
    "num-images-per-prompt": ("num-images",),
    "num-inference-steps": ("steps",),
    "out": ("output",),
    "outdir": ("output",),
    "output-dir": ("output",),
    "precision": ("dtype",),
    "resolution": ("size",),
    "scale": ("cfg",),
    "scheduler": ("sampler",),
    "train-batch-size": ("data.batch-size",),
    "train-data-dir": ("data.path",),
    "w": ("width",),
}
"""What other programs call an option, and its names here: the first that the command has is meant."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the value of an option; raises `UserError`, or `ValueError` with what is wrong with it."""

    read: Callable[[str], Any]
    metavar: str

    def __call__(self, text: str) -> Any:
        """The value of `text`."""
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error


def whole(low: int, high: int) -> Reader:
    """Of a whole number between `low` and `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
            raise ValueError(f"{text!r:.80} is not a whole number; use {low} to {high}")
        if not low <= int(text) <= high:
            raise ValueError(f"{int(text)} is outside {low} to {high}")
        return int(text)

    return Reader(read, "N")


def number(above: Real | None = None, low: Real | None = None, high: Real | None = None) -> Reader:
    """Of a finite number `above` one, or from `low`, and up to `high`."""
    parts = [(above, "above"), (low, "at least"), (high, "at most")]
    allowed = " and ".join(f"{word} {bound:g}" for bound, word in parts if bound is not None)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r:.80} is not a number") from None
        if not math.isfinite(value):
            raise ValueError(f"{text!r:.80} is not a finite number")
        below = (above is not None and value <= above) or (low is not None and value < low)
        if below or (high is not None and value > high):
            raise ValueError(f"{text!r:.80} must be {allowed}")
        return value

    return Reader(read, "X")


def one_of(known: Iterable[str]) -> Reader:
    """Of one of some words."""
    words = list(known)

    def read(text: str) -> str:
        if text not in words:
            near = nearest(text, words)
            hint = f"did you mean {near!r}?" if near else f"use {', '.join(words)}"
            raise ValueError(f"{text!r:.80} is not known; {hint}")
        return text

    return Reader(read, "|".join(words))


DTYPE = Reader(check_dtype, "|".join(DTYPES))
MESH = Reader(parse_mesh, ",".join(f"{axis}=N" for axis in MESH_AXES))


class Parser(argparse.ArgumentParser):
    """The options of one command; whatever is wrong with them is a `UserError`."""

    def __init__(
        self, prog: str, description: str | None, *, epilog: str | None = None, stray: str = ""
    ) -> None:
        """A command without options so far; `stray` says what to do with an argument too many."""
        super().__init__(
            prog=prog, description=description, epilog=epilog, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self._stray = stray or f"see {prog} --help"
        self._section: argparse._ActionsContainer = self

    def section(self, title: str) -> None:
        """Put the options that follow under a title."""
        self._section = self.add_argument_group(title)

    def argument(self, name: str, kind: Callable[[str], Any], help: str, **more: Any) -> None:
        """A positional argument."""
        self.add_argument(name, type=kind, help=help, **{"metavar": name.upper(), **more})

    def option(
        self,
        name: str,
        kind: Callable[[str], Any],
        help: str,
        default: Any = None,
        *,
        shown: str = "",
        **more: Any,
    ) -> None:
        """An option with a value; its help ends with the default, or with what is `shown` as such."""
        if shown or default is not None:
            text = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
            help += f" (default: {shown or text})"
        more.setdefault("metavar", kind.metavar if isinstance(kind, Reader) else "NAME")
        self._section.add_argument(name, type=kind, default=default, help=help.replace("%", "%%"), **more)

    def flag(self, name: str, help: str, **more: Any) -> None:
        """An option that is given or not."""
        self._section.add_argument(name, action="store_true", help=help, **more)

    def error(self, message: str) -> NoReturn:
        """Raise `message`."""
        message = re.sub(r"^argument (\S+): ", r"\1 ", message)
        if "expected one argument" in message:
            message += "; a value that starts with - is written --option=value"
        raise UserError(f"{message} (see {self.prog} --help)" if "required" in message else message)

    def changed(self, values: argparse.Namespace) -> set[str]:
        """Names of the `values` of `read` that are not the defaults, with underscores."""
        return {name for name, value in vars(values).items() if value != self.get_default(name)}

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The values of `argv`; of the process's own arguments for None.

        Raises:
            UserError: an option that is unknown, with the one that was meant, or a value that is not right.
        """
        values, extra = self.parse_known_args(argv)
        if extra and extra[0].startswith("-"):
            raise UserError(unknown_option(extra[0], self._option_string_actions, self.prog))
        if extra:
            raise UserError(f"unexpected argument {extra[0]!r:.80}; {self._stray}")
        return values


def unknown_option(argument: str, known: Iterable[str], command: str) -> str:
    """Message for an option that `command` does not have, with the one of `known` that was meant."""
    name, known = argument.split("=", 1)[0], list(known)
    theirs = OTHERS.get(name.lstrip("-").replace("_", "-").lower(), ())
    meant = next((f"--{ours}" for ours in theirs if f"--{ours}" in known), None) or nearest(name, known)
    hint = f"did you mean {meant!r}?" if meant else f"see {command} --help"
    return f"unknown option: {name!r:.80}; {hint}"
