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

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, one_of, whole
from ultrapixel_jax.config import MAX_STEPS
from ultrapixel_jax.demo.measure import scores
from ultrapixel_jax.demo.measure.evaluate import MARKDOWN, TABLE, square
from ultrapixel_jax.demo.train import follow
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.sizes import HW


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


def recipe(
    latents: Path,
    output: Path,
    *,
    sources: Sequence[Path],
    steps: int,
    batch_size: int,
    seeds: int,
    count: int,
    sizes: Sequence[HW],
    variants: Sequence[str] = tuple(VARIANTS),
    drawing_steps: int | None = None,
    dtype: str = "float32",
) -> Iterator[tuple[str, list[str]]]:
    """(what it makes, command) of every training and evaluation."""
    for seed in range(seeds):
        for name in variants:
            variant = VARIANTS[name]
            run = output / f"{variant.of or name}-{seed}" / "run"
            if not variant.of:
                train = [sys.executable, "train.py", "configs/demo/guidance.py", "--output", str(run)]
                train += ["--data.path", str(latents), "--steps", str(steps)]
                train += ["--sources", *map(str, sources)]
                train += ["--data.batch-size", str(batch_size), "--seed", str(seed), *variant.train]
                yield f"{variant.what}, seed {seed}", train
            judge = [sys.executable, "-m", "ultrapixel_jax.demo.measure.evaluate", str(run)]
            judge += [str(evaluation(output, name, seed)), "--preview", "--scene-seed", str(seed)]
            judge += ["--count", str(count), "--sizes", *(f"{height}x{width}" for height, width in sizes)]
            judge += ["--steps", str(drawing_steps)] if drawing_steps else []
            judge += ["--dtype", dtype, *variant.evaluate]
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


def table(output: Path, seeds: int, sizes: Sequence[HW], variants: Sequence[str] = tuple(VARIANTS)) -> str:
    """The finished evaluations in `output` as a table, by size."""
    tables = {
        (name, seed): json.loads((evaluation(output, name, seed) / TABLE).read_text(encoding="utf-8"))
        for name in variants
        for seed in range(seeds)
    }
    rows = []
    for size in sizes:
        for name in variants:
            of_seeds = [
                next(row for row in tables[name, seed]["rows"] if row["size"] == list(size))
                for seed in range(seeds)
            ]
            rows.append((VARIANTS[name].what, list(size), of_seeds))
    return markdown(rows)


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.ablations", __doc__)
    p.argument("latents", Path, "cached latents to train on")
    p.argument("output", Path, "new directory, or that of an interrupted run")
    others = "checkpoints or runs with the other networks"
    p.option("--sources", Path, others, shown="the demo in the package", nargs="+", metavar="DIR")
    p.option("--steps", whole(1, 10**6), "of each training", 1000)
    p.option("--batch-size", whole(1, 10**6), "of each training", 2)
    p.option("--seeds", whole(1, 100), "trainings of each variant", 3)
    p.option("--count", whole(1, 10**6), "scenes that each draws", 50)
    p.option("--sizes", square, "pixels on a side, or HEIGHTxWIDTH", [(768, 768), (1536, 1536)],
             shown="768 1536", nargs="+", metavar="N")  # fmt: skip
    p.option("--variants", one_of(VARIANTS), "some of them alone", list(VARIANTS), nargs="+")
    p.option("--drawing-steps", whole(1, MAX_STEPS), "denoising steps of pictures, where not the model's own")
    p.option("--dtype", DTYPE, "of drawing", "float32")
    p.flag("--list", "print the commands and run nothing")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if missing := {VARIANTS[name].of for name in o.variants} - {"", *o.variants}:
        raise UserError(
            f"--variants {' '.join(o.variants)}: add {', '.join(missing)}, whose runs are judged, too"
        )
    from ultrapixel_jax.checkpoints.weights import DEMO  # imports jax, which --help need not wait for

    todo = recipe(
        o.latents, o.output, sources=o.sources or [DEMO], steps=o.steps, batch_size=o.batch_size,
        seeds=o.seeds, count=o.count, sizes=o.sizes,
        variants=o.variants, drawing_steps=o.drawing_steps, dtype=o.dtype,
    )  # fmt: skip
    follow(todo, only_list=o.list)
    if not o.list:
        text = table(o.output, o.seeds, o.sizes, o.variants)
        write_whole(o.output / MARKDOWN, text)
        print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
