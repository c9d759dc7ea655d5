"""The command line of `train.py`: a preset file, then overrides of its fields. Imports no jax."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

from ultrapixel_jax.config import load_config
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training.config import TrainConfig

USAGE = """usage: train.py PRESET.py --output RUN [--data.path DATA] [--FIELD VALUE …]

Trains what the preset says (see configs/train/), or continues the run in RUN.
    train.py PRESET.py --help    explains every field of the preset
"""


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
        raise UserError(_in_one_line(said.getvalue())) from stop
    if not config.output:
        raise UserError("--output is missing: the directory of the run")
    if not config.data.path:
        raise UserError(
            "--data.path is missing: a directory that `python -m ultrapixel_jax.data.build` or `.cache` wrote"
        )
    return config


def _in_one_line(box: str) -> str:
    """What a box of tyro's says first, and the fields that it finds similar."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in box.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    end = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    said = " ".join(lines[:end])
    similar = [line.split()[0].strip(",") for line in lines[end:] if line.startswith("--")]
    similar = [name for name in similar if name != "--help"]
    if similar and "Unrecognized" in said:
        said += f"; perhaps you meant {' or '.join(dict.fromkeys(similar))}"
    return f"{said}; PRESET.py --help explains every field"
