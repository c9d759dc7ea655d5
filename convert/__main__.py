"""Released checkpoints to ours, and back.

    python -m convert SOURCE [SOURCE ...] OUTPUT
    python -m convert RUN_OR_CHECKPOINT [RUN_OR_CHECKPOINT ...] OUTPUT
    python -m convert --export RUN_OR_CHECKPOINT OUTPUT [--component NAME]

SOURCE is a file or a directory: safetensors (also sharded, with an index), or the torch pickles that
are named so. Each file is recognised by its content. OUTPUT is a new directory. Networks of training runs
and of checkpoints are gathered in one checkpoint; of equal ones, the last is taken,
or with --mean the mean of their weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ultrapixel_jax import commands
from ultrapixel_jax.checkpoints.manifest import MANIFEST
from ultrapixel_jax.checkpoints.runs import is_run
from ultrapixel_jax.commands import DTYPE, one_of, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_remote, place
from ultrapixel_jax.layouts.lora import LAYOUTS

_CONVERSION, _GATHERING, _EXPORT = "conversion", "gathering runs and checkpoints", "export"
ONLY = {
    "compress": ((_CONVERSION, _GATHERING), "released files are never compressed"),
    "config": ((_CONVERSION,), "checkpoints and runs have their own"),
    "layout": ((_EXPORT,), "it is of LoRA files that are written"),
    "dtype": ((_CONVERSION, _GATHERING), "each tensor is written in its own"),
    "mean": ((_GATHERING,), "it is of networks that checkpoints or runs have"),
    "mantissa_bits": ((_GATHERING,), "it rounds networks that are checkpoints or runs already"),
    "tokenizer": (
        (_CONVERSION,),
        "it goes with the checkpoints and runs; name its directory among the sources",
    ),
}
"""What each option is for, and why it has no effect on the rest."""


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m convert", __doc__)
    p.argument("paths", place, "source(s), then the output", nargs="+", metavar="PATH")
    p.flag(
        "--export",
        "write a checkpoint's components, or those that a run trains, as released safetensors files",
    )
    p.option("--component", str, "only this component; may be repeated", [], action="append", shown="all")
    p.option("--layout", one_of(LAYOUTS), "of an exported LoRA", shown="ultrapixel")
    p.option("--config", Path, "configuration of models that were not released", metavar="FILE")
    p.option("--dtype", DTYPE, "of storing", shown="every tensor's own")
    p.flag("--compress", "store the networks compressed: bfloat16 takes a quarter less")
    p.option(
        "--mantissa-bits", whole(0, 23), "round gathered networks to N bits of mantissa (bfloat16 has 7)"
    )
    p.flag(
        "--mean", "of a network that several gathered sources have, the mean of their weights, not the last"
    )
    p.option(
        "--tokenizer", Path, "CLIP's tokenizer, where it does not lie in a source directory", metavar="DIR"
    )
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    options = parser().read(argv)
    if len(options.paths) < 2:
        raise UserError("give at least one source and the output directory (see python -m convert --help)")
    *sources, output = options.paths
    if is_remote(output):
        raise UserError(f"output {output} is in a bucket; write to a local directory and copy that")
    gathers = not options.export and any(is_run(path) or (path / MANIFEST).is_file() for path in sources)
    what = _EXPORT if options.export else _GATHERING if gathers else _CONVERSION
    for name, (of, why) in ONLY.items():
        if vars(options)[name] and what not in of:
            raise UserError(f"--{name.replace('_', '-')} has no effect on {what}: {why}; leave it out")

    if options.export:
        from convert.export import export_checkpoint

        if len(sources) != 1:
            raise UserError("--export takes one checkpoint or run and the output directory")
        export_checkpoint(sources[0], output, options.component, options.layout)
    elif gathers:
        from convert.collect import collect

        collect(
            sources, output, options.component, options.dtype,
            compressed=options.compress, mantissa_bits=options.mantissa_bits,
            mean=options.mean,
        )  # fmt: skip
    else:
        from convert.convert import convert

        if buckets := [path for path in sources if is_remote(path)]:
            raise UserError(f"{buckets[0]}: no checkpoint and no run; copy released files to a local disk")
        convert(
            sources, output, options.component, options.config, options.dtype, options.tokenizer,
            compressed=options.compress,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    return commands.run(lambda: run(argv), interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
