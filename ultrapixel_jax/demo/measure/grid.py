"""What the demo draws at many areas and shapes, with guidance and without, as one table and one plot.

    python -m ultrapixel_jax.demo.measure.grid CHECKPOINT OUT --count 100
    python -m ultrapixel_jax.demo.measure.grid CHECKPOINT OUT --areas 1 4 16 --ratios 1/1 1/2 --preview
    python -m ultrapixel_jax.demo.measure.grid CHECKPOINT OUT --areas 1 4 16 --count 100 100 24

Areas are multiples of the base size's; each is drawn in every ratio of height to width, from captions that
training never showed. Pictures are judged by `demo.measure.evaluate`, whose directories are in OUT. OUT gets
`grid.md` and, with matplotlib, `grid.png`: shares of pictures that are all right and that keep the layout of
their low-resolution pass, against the area, a line for each ratio. Kill the program at any moment, repeat the
command, and it goes on; with more areas and ratios, those that are there are not drawn again.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, number, one_of, whole
from ultrapixel_jax.config import MAX_STEPS
from ultrapixel_jax.data.config import parse_ratio
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.demo.measure import scores
from ultrapixel_jax.demo.measure.evaluate import TABLE, square
from ultrapixel_jax.demo.train import follow
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.sizes import HW, PIXEL_MULTIPLE, check_size

AREAS = (1.0, 2.0, 4.0, 9.0, 16.0, 25.0, 36.0)
RATIOS = ("1/1", "3/2", "2/3", "2/1", "1/2")
SIDE = 384
"""Of the demo's base size, in pixels."""
TRAINED = (
    *((side, side) for side in (384, 768, 1536, 2304)),
    *((272, 544), (544, 272), (544, 1088), (1088, 544), (1088, 2176), (2176, 1088)),
)
"""Sizes of this grid with as many latent positions as those that the demo in the package was trained on."""
GUIDANCE = {"on": [], "off": ["--guidance", "off"]}
"""Further words of `demo.measure.evaluate`."""
MEASURES = {"all": "all right", "layout": "layout kept"}
Cells = Mapping[tuple[str, HW], Mapping[str, Any]]
"""`scores.row` by guidance and size."""


def size_of(area: float, ratio: Fraction, side: int = SIDE) -> HW:
    """Height and width in pixels of `area` times side², as near to `ratio` as multiples of 8 are."""
    height, width = (side * math.sqrt(area * r) for r in (ratio, 1 / ratio))
    return tuple(PIXEL_MULTIPLE * round(s / PIXEL_MULTIPLE) for s in (height, width))  # pyright: ignore


def markdown(
    cells: Cells,
    counts: Mapping[float, int],
    ratios: Sequence[Fraction],
    side: int,
    trained: Sequence[HW],
) -> str:
    """A row for each area of `counts` (its captions) and guidance: all right, layout kept, in per cent.

    A column for each ratio; `trained` sizes are bold.
    """

    def cell(guidance: str, area: float, ratio: Fraction) -> str:
        size = size_of(area, ratio, side)
        values = (cells[guidance, size][name] for name in MEASURES)
        text = ", ".join("–" if value is None else f"{100 * value:.0f}" for value in values)
        return f"**{text}**" if size in trained else text

    head = ["area", "side", "captions", "guidance", *(f"{r.numerator}/{r.denominator}" for r in ratios)]
    body = [
        [f"{area:g}", f"{side * math.sqrt(area):.0f}²", f"{count}", guidance]
        + [cell(guidance, area, r) for r in ratios]
        for area, count in counts.items()
        for guidance in dict.fromkeys(name for name, _ in cells)
    ]
    said = f"{', '.join(MEASURES.values())}, in percent; trained sizes bold"
    return f"{said}\n\n{scores.table(head, body, labels=4)}"


def plot(
    path: Path,
    cells: Cells,
    areas: Sequence[float],
    ratios: Sequence[Fraction],
    side: int,
    trained: Sequence[HW],
) -> None:
    """Both measures by area: a line for each ratio, dotted without guidance, trained sizes marked."""
    import matplotlib.figure as mpl  # pyright: ignore[reportMissingImports]

    drawn = list(dict.fromkeys(name for name, _ in cells))
    figure = mpl.Figure(figsize=(10, 4), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, 2, sharey=True), MEASURES.items()):
        for n, ratio in enumerate(ratios):
            for guidance in drawn:
                line = "-" if guidance == "on" else ":"
                found = [(a, cells[guidance, size_of(a, ratio, side)][name]) for a in areas]
                points = [(a, 100 * value) for a, value in found if value is not None]
                label = f"{ratio.numerator}/{ratio.denominator}" if guidance == drawn[0] else None
                if points:
                    axis.plot(*zip(*points), line, color=f"C{n}", marker=".", label=label)
                seen = [p for p in points if size_of(p[0], ratio, side) in trained]
                if seen and guidance == "on":
                    axis.plot(*zip(*seen), "o", color=f"C{n}", markersize=9, fillstyle="none")
        axis.set(
            title=f"{title}, % (circles: trained sizes)",
            xlabel=f"area in {side}²",
            xscale="log",
            ylim=(-3, 103),
        )
        axis.set_xticks(areas, [f"{a:g}" for a in areas])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), title="height/width", loc="outside right center"
    )
    with user_errors(path, "plot"):
        figure.savefig(path, dpi=110, format="png")


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.grid", __doc__)
    p.argument("checkpoint", Path, "a checkpoint or training run, as for sample.py")
    p.argument("output", Path, "new directory, or that of an interrupted measurement")
    p.option("--areas", number(above=0, high=400), "multiples of the base area", list(AREAS), nargs="+")
    p.option("--ratios", parse_ratio, "of height to width", [Fraction(r) for r in RATIOS],
             shown=" ".join(RATIOS), nargs="+", metavar="N/N")  # fmt: skip
    p.option("--side", whole(256, 4096), "of the base size, in pixels", SIDE)
    p.option("--trained", square, "sizes that are marked: pixels on a side, or HEIGHTxWIDTH", list(TRAINED),
             shown="those of the demo", nargs="+", metavar="N")  # fmt: skip
    p.option("--guidance", one_of(GUIDANCE), "with it, without it, or both", list(GUIDANCE), nargs="+")
    p.option(
        "--count", whole(1, 10**6), "scenes of each size: one number, or one for each area", [100], nargs="+"
    )
    p.option("--batch-size", whole(1, 1024), "pictures made at once", 4)
    p.option("--pictures", whole(0, 10**6), "keep the pictures of the first N scenes", 2)
    p.option("--steps", whole(1, MAX_STEPS), "denoising steps of stage C, where not the model's own")
    p.option("--steps-b", whole(1, MAX_STEPS), "of stage B")
    p.option("--dtype", DTYPE, "of computing", "float32")
    p.flag("--preview", "the previewer in place of stages B and A: stage C alone is measured, far sooner")
    p.flag("--list", "print the commands and run nothing")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if len(o.count) not in (1, len(o.areas)):
        raise UserError(
            f"--count has {len(o.count)} numbers for {len(o.areas)} areas; give one, or one for each"
        )
    counts = dict(zip(o.areas, o.count * len(o.areas) if len(o.count) == 1 else o.count))
    sizes = {area: [size_of(area, ratio, o.side) for ratio in o.ratios] for area in counts}
    for size in itertools.chain.from_iterable(sizes.values()):
        check_size(*size)
    words = ["--batch-size", o.batch_size, "--pictures", o.pictures, "--dtype", o.dtype]
    for name, steps in (("--steps", o.steps), ("--steps-b", o.steps_b)):
        words += [name, steps] if steps else []
    words += ["--preview"] if o.preview else []
    cells: dict[tuple[str, HW], Mapping[str, Any]] = {}
    chosen = [name for name in GUIDANCE if name in o.guidance]
    for name, count in itertools.product(chosen, dict.fromkeys(counts.values())):
        drawn = dict.fromkeys(size for area, n in counts.items() if n == count for size in sizes[area])
        command = [sys.executable, "-m", "ultrapixel_jax.demo.measure.evaluate", o.checkpoint,
                   o.output / name, "--count", count, *words,
                   "--sizes", *(f"{height}x{width}" for height, width in drawn), *GUIDANCE[name]]  # fmt: skip
        what = f"pictures of {count} captions with guidance {name}"
        follow([(what, [str(word) for word in command])], only_list=o.list)
        if not o.list:
            rows = json.loads((o.output / name / TABLE).read_text(encoding="utf-8"))["rows"]
            cells |= {(name, tuple(row["size"])): row for row in rows}
    if o.list:
        return
    text = markdown(cells, counts, o.ratios, o.side, o.trained)
    with user_errors(o.output, "output"):
        write_whole(o.output / "grid.md", text)
    print(text)
    try:
        plot(o.output / "grid.png", cells, o.areas, o.ratios, o.side, o.trained)
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
