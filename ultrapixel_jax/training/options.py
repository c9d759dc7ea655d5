"""The command line of `train.py`: a preset file, then overrides of its fields. Imports no jax."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ultrapixel_jax.commands import unknown_option
from ultrapixel_jax.config import load_config
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training.config import TrainConfig

USAGE = """usage: train.py PRESET.py --output RUN [--data.path DATA] [--FIELD VALUE …]

Trains what the preset says (see configs/train/), or continues the run in RUN.
    train.py PRESET.py --help    explains every field of the preset
    train.py PRESET.py … --dry-run            checks data, sources, mesh and memory, and writes nothing
    train.py PRESET.py … --dry-run compile    asks the compiler for the memory of a step too
"""
DRY_RUN, COMPILE = "--dry-run", "compile"


def dry_run_of(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """`argv` without ``--dry-run``, and what that is: None where it is not there, or `""`, or `compile`.

    Raises:
        UserError: another value.
    """
    rest, kind = [], None
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name == DRY_RUN:
            if equals and value != COMPILE:
                raise UserError(f"--dry-run {value!r:.80} is not known; give nothing or {COMPILE}")
            kind = value
        elif argument == COMPILE and kind == "" and argv[argv.index(argument) - 1] == DRY_RUN:
            kind = COMPILE
        else:
            rest.append(argument)
    return rest, kind


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """The preset's configuration with the command line's overrides.

    Raises:
        UserError: no such preset, an unknown field, or values that are wrong or do not fit together.
        SystemExit: ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if argv else 2)
    if argv[0].startswith("-"):
        raise UserError(f"the first argument is a preset such as configs/train/guidance.py, not {argv[0]}")
    preset = load_config(argv[0], TrainConfig)
    import tyro

    kind: Any = tyro.conf.AvoidSubcommands[TrainConfig]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = tyro.cli(kind, args=argv[1:], default=preset, prog=f"train.py {argv[0]}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_in_one_line(said.getvalue(), preset, argv[1:])) from stop
    if not config.output:
        raise UserError("--output is missing: the directory of the run")
    if not config.data.path:
        raise UserError(
            "--data.path is missing: a directory that `python -m ultrapixel_jax.data.build` or `.cache` wrote"
        )
    return config


def given(argv: Sequence[str]) -> list[str]:
    """Names of the options in `argv`, without the leading hyphens."""
    return [argument[2:].split("=")[0] for argument in argv[1:] if argument.startswith("--")]


def _in_one_line(box: str, preset: TrainConfig, argv: Sequence[str]) -> str:
    """What a box of tyro's says first; for a field that there is not, the one that was meant."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in box.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    end = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    said = " ".join(lines[:end])
    if "Unrecognized" in said:
        known = [*_options(preset), DRY_RUN]
        for argument in argv:
            if argument.startswith("--") and argument.split("=")[0].replace("_", "-") not in known:
                return unknown_option(argument, known, "train.py PRESET.py")
    return f"{said}; PRESET.py --help explains every field"


def _options(config: Any, above: str = "--") -> Iterator[str]:
    """Options of every field, of those of configurations inside it too."""
    for field in dataclasses.fields(config):
        name, value = above + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _options(value, f"{name}.")
        elif isinstance(value, bool):
            yield from (name, f"{above}no-{field.name.replace('_', '-')}")
        else:
            yield name
