"""Released checkpoints to ours, and back.

    python -m convert SOURCE [SOURCE ...] OUTPUT
    python -m convert RUN_OR_CHECKPOINT [RUN_OR_CHECKPOINT ...] OUTPUT
    python -m convert --export RUN_OR_CHECKPOINT OUTPUT [--component NAME]

SOURCE is a file or a directory: safetensors (also sharded, with an index), or the torch pickles that
are named so. Each file is recognised by its content. OUTPUT is a new directory. Networks of training runs
and of checkpoints are gathered in one checkpoint; of equal ones, the last is taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ultrapixel_jax.checkpoints.manifest import MANIFEST
from ultrapixel_jax.checkpoints.runs import is_run
from ultrapixel_jax.config import check_dtype, unknown_key
from ultrapixel_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see python -m convert --help)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(
        prog="python -m convert", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="source(s), then the output")
    p.add_argument(
        "--export", action="store_true",
        help="write a checkpoint's components, or those that a run trains, as released safetensors files",
    )  # fmt: skip
    p.add_argument("--component", action="append", default=[], metavar="NAME",
                   help="only this component; may be repeated")  # fmt: skip
    p.add_argument("--config", type=Path, metavar="FILE",
                   help="configuration of models that were not released")  # fmt: skip
    p.add_argument("--dtype", default=None, metavar="NAME",
                   help="store as float32 or bfloat16; without it every tensor keeps its own")  # fmt: skip
    p.add_argument("--compress", action="store_true",
                   help="store the networks compressed: bfloat16 takes a quarter less")  # fmt: skip
    p.add_argument("--mantissa-bits", type=int, metavar="N",
                   help="round gathered networks to N bits of mantissa (bfloat16 has 7)")  # fmt: skip
    p.add_argument("--tokenizer", type=Path, metavar="DIR",
                   help="CLIP's tokenizer, where it does not lie in a source directory")  # fmt: skip
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    options, unknown = parser().parse_known_args(argv)
    if unknown:
        known = ["--export", "--component", "--config", "--dtype", "--compress", "--mantissa-bits"]
        known += ["--tokenizer", "--help"]
        raise UserError(unknown_key(unknown[0].split("=")[0], known, "option"))
    if len(options.paths) < 2:
        raise UserError("give at least one source and the output directory (see python -m convert --help)")
    *sources, output = options.paths
    dtype = check_dtype(options.dtype) if options.dtype else None
    gathers = not options.export and any(is_run(path) or (path / MANIFEST).is_file() for path in sources)
    if options.mantissa_bits is not None:
        if not 0 <= options.mantissa_bits <= 23:
            raise UserError(f"--mantissa-bits {options.mantissa_bits} is outside 0 to 23")
        if not gathers:
            raise UserError("--mantissa-bits is for gathering runs and checkpoints; convert first")

    if options.export:
        from convert.export import export_checkpoint

        if options.compress:
            raise UserError("--compress is for checkpoints; released files are never compressed")
        if len(sources) != 1:
            raise UserError("--export takes one checkpoint or run and the output directory")
        export_checkpoint(sources[0], output, options.component)
    elif gathers:
        from convert.collect import collect

        collect(
            sources, output, options.component, dtype,
            compressed=options.compress, mantissa_bits=options.mantissa_bits,
        )  # fmt: skip
    else:
        from convert.convert import convert

        convert(
            sources, output, options.component, options.config, dtype, options.tokenizer,
            compressed=options.compress,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    try:
        run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
