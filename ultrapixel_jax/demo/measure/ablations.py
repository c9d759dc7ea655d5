"""The paper's ablations of the guidance (tables 2 and 3), on the demo.

    python -m ultrapixel_jax.demo.measure.ablations LATENTS OUTPUT --steps 1000 --seeds 3 --count 50

LATENTS are `large_latents` of `ultrapixel_jax.demo.train`, or others of several sizes cached with the encoder
of `--sources`. Every variant is trained `--seeds` times, with the same steps and data; run s of each has
initial weights and noise of seed s, and draws the same held-out scenes from the same noise. Pictures are the
previewer's, of stage C alone, since that is what differs. OUTPUT gets the runs, their evaluations, and
`table.md`: mean and standard deviation over the seeds. Kill the program at any moment, repeat the command,
and it goes on. To be run from the project's directory, where `train.py` is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax.checkpoints.weights import DEMO
from ultrapixel_jax.config import DTYPES, check_dtype
from ultrapixel_jax.data.build import Parser, exit_code, whole
from ultrapixel_jax.demo.measure import scores
from ultrapixel_jax.demo.measure.evaluate import MARKDOWN, TABLE
from ultrapixel_jax.demo.train import follow


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table."""

    what: str
    train: tuple[str, ...] = ()
    """Options of training; they stay in the run."""
    evaluate: tuple[str, ...] = ()
    """Options of the evaluation."""
    of: str = ""
    """The variant whose runs are evaluated; its own if empty."""


VARIANTS = {
    "full": Variant("INR and scale-aware normalisation, guidance of t = 0.05"),
    "off": Variant("no guidance", evaluate=("--guidance", "off"), of="full"),
    "t05": Variant("guidance of t = 0.5", ("--model.guidance.timestep", "0.5")),
    "th": Variant("guidance of the step's own t", ("--model.guidance.timestep", "synchronized")),
    "inr": Variant("INR, ordinary normalisation", ("--model.guidance.no-scale-aware-norm",)),
    "bilinear": Variant(
        "bilinear and convolution, ordinary normalisation",
        ("--model.guidance.upsampler", "bilinear_conv", "--model.guidance.no-scale-aware-norm"),
    ),
}
COLUMNS = {
    "colour": "colour", "shape": "shape", "texture": "texture", "relation": "relation",
    "number": "number", "all": "all", "layout": "layout kept", "contents": "contents kept",
}  # fmt: skip
"""Shares of `scores.row`, and their headings."""


def evaluation(output: Path, name: str, seed: int) -> Path:
    """Where the pictures of a variant's run are judged."""
    return output / f"{name}-{seed}" / "evaluation"


def commands(
    latents: Path,
    output: Path,
    *,
    sources: Sequence[Path],
    steps: int,
    batch_size: int,
    seeds: int,
    count: int,
    sizes: Sequence[int],
    dtype: str = "float32",
) -> Iterator[tuple[str, list[str]]]:
    """(what it makes, command) of every training and evaluation."""
    for seed in range(seeds):
        for name, variant in VARIANTS.items():
            run = output / f"{variant.of or name}-{seed}" / "run"
            if not variant.of:
                train = [sys.executable, "train.py", "configs/demo/guidance.py", "--output", str(run)]
                train += ["--data.path", str(latents), "--steps", str(steps)]
                train += ["--sources", *map(str, sources)]
                train += ["--data.batch-size", str(batch_size), "--seed", str(seed), *variant.train]
                yield f"{variant.what}, seed {seed}", train
            judge = [sys.executable, "-m", "ultrapixel_jax.demo.measure.evaluate", str(run)]
            judge += [str(evaluation(output, name, seed)), "--preview", "--scene-seed", str(seed)]
            judge += ["--count", str(count), "--sizes", *map(str, sizes), "--dtype", dtype, *variant.evaluate]
            yield f"pictures of it: {variant.what}, seed {seed}", judge


def markdown(rows: Sequence[tuple[str, list[int], list[dict[str, Any]]]]) -> str:
    """The table of (variant, size, one `scores.row` for each seed)."""

    def cell(values: Sequence[float | None]) -> str:
        known = [100 * value for value in values if value is not None]
        if not known:
            return "–"
        spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
        return f"{statistics.mean(known):.1f}{spread}"

    head = ["size", "variant", *(f"{heading}, %" for heading in COLUMNS.values())]
    lines = [
        [f"{height}×{width}", what, *(cell([row[c] for row in of_seeds]) for c in COLUMNS)]
        for what, (height, width), of_seeds in rows
    ]
    return scores.table(head, lines, labels=2)


def table(output: Path, seeds: int, sizes: Sequence[int]) -> str:
    """The finished evaluations in `output` as a table, by size."""
    tables = {
        (name, seed): json.loads((evaluation(output, name, seed) / TABLE).read_text(encoding="utf-8"))
        for name in VARIANTS
        for seed in range(seeds)
    }
    rows = []
    for size in sizes:
        for name, variant in VARIANTS.items():
            of_seeds = [
                next(row for row in tables[name, seed]["rows"] if row["size"] == [size, size])
                for seed in range(seeds)
            ]
            rows.append((variant.what, [size, size], of_seeds))
    return markdown(rows)


def parser() -> Parser:
    """The command line."""
    p = Parser(
        prog="python -m ultrapixel_jax.demo.measure.ablations", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = p.add_argument
    add("latents", metavar="LATENTS", type=Path, help="cached latents to train on")
    add("output", metavar="OUTPUT", type=Path, help="new directory, or that of an interrupted run")
    add("--sources", type=Path, nargs="+", default=[DEMO], metavar="DIR",
        help="checkpoints or runs with the other networks (default: the demo in the package)")  # fmt: skip
    add("--steps", type=whole("--steps", 1, 10**6), default=1000, metavar="N",
        help="of each training (default: 1000)")  # fmt: skip
    add("--batch-size", type=whole("--batch-size", 1, 10**6), default=2, metavar="N",
        help="of each training (default: 2)")  # fmt: skip
    add("--seeds", type=whole("--seeds", 1, 100), default=3, metavar="N",
        help="trainings of each variant (default: 3)")  # fmt: skip
    add("--count", type=whole("--count", 1, 10**6), default=50, metavar="N",
        help="scenes that each draws (default: 50)")  # fmt: skip
    add("--sizes", type=whole("--sizes", 256, 8192), nargs="+", default=[768, 1536], metavar="N",
        help="pixels on a side (default: 768 1536)")  # fmt: skip
    add("--dtype", type=check_dtype, default="float32", metavar="|".join(DTYPES),
        help="of drawing (default: float32)")  # fmt: skip
    add("--list", action="store_true", help="print the commands and run nothing")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    todo = commands(
        o.latents, o.output, sources=o.sources, steps=o.steps, batch_size=o.batch_size, seeds=o.seeds,
        count=o.count, sizes=o.sizes, dtype=o.dtype,
    )  # fmt: skip
    follow(todo, only_list=o.list)
    if not o.list:
        text = table(o.output, o.seeds, o.sizes)
        (o.output / MARKDOWN).write_text(text, encoding="utf-8")
        print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return exit_code(lambda: run(argv), "repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
