"""Train UltraPixel, or the models beneath it.

    python train.py configs/train/guidance.py --sources CHECKPOINT --data.path DATA --output RUN

The same command continues a run that was stopped or killed, with the same losses as if it had not been.
`python train.py PRESET.py --help` explains every field. The loop itself is `ultrapixel_jax/training/loop.py`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from ultrapixel_jax import commands, processes
from ultrapixel_jax.training import stopping
from ultrapixel_jax.training.effects import without_effect
from ultrapixel_jax.training.options import COMPILE, dry_run_of, given, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 also when stopped by SIGTERM, 2 for bad input, 130 when
    interrupted.
    """
    interrupted = "the same command continues from the last checkpoint"
    with stopping.heard():
        return commands.run(lambda: processes.together(lambda: run(argv)), interrupted=interrupted)


def run(argv: Sequence[str] | None) -> int:
    """The loop is imported, and jax with it, when the configuration is known to be good."""
    options, dry = dry_run_of(sys.argv[1:] if argv is None else argv)
    config = parse(options)
    notes = [f"note: {line}" for line in without_effect(given(options), config)]
    if dry is not None:
        from ultrapixel_jax.training.dry_run import dry_run

        lines = dry_run(config, compiled=dry == COMPILE)
        if processes.is_first():
            print("\n".join([*notes, *lines]))
        return 0
    from ultrapixel_jax.training.loop import train

    train(config, notes=notes)
    return 0


if __name__ == "__main__":
    # Tracing makes hundreds of thousands of objects that live on: looking among them for garbage every 700
    # takes a twentieth of the time until the first step.
    gc.set_threshold(100_000)
    sys.exit(main())
