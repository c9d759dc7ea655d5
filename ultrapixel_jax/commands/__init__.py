"""Command lines: options that are read and refused in one way, and how a command ends.

Imports no jax, so that ``--help`` and bad arguments answer at once.
"""

from ultrapixel_jax.commands.ending import run
from ultrapixel_jax.commands.options import (
    DTYPE,
    MESH,
    OTHERS,
    Parser,
    Reader,
    number,
    one_of,
    unknown_option,
    whole,
)

__all__ = [
    "DTYPE",
    "MESH",
    "OTHERS",
    "Parser",
    "Reader",
    "number",
    "one_of",
    "run",
    "unknown_option",
    "whole",
]
