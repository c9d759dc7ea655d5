"""Measures pictures: FID, KID and IS, of whole pictures and of crops, CLIP score, PickScore.

    python -m ultrapixel_jax.evaluate PICTURES --weights DIR --against REAL
    python -m ultrapixel_jax.evaluate PICTURES --weights random:0 --against REAL.npz
    python -m ultrapixel_jax.evaluate --sizes 1024x1024 2160x3840 --prompts FILE --weights DIR --against REAL

DIR are networks that `python -m convert` wrote; random:SEED is an Inception with random weights. Prompts come
from the pictures' metadata, or from captions beside them. With --sizes, pictures are drawn first, for a table
like the paper's. Kill the program at any moment, repeat the command, and it goes on (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, MESH, Reader, one_of, whole
from ultrapixel_jax.errors import UserError, one_line
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.sizes import parse_size

if TYPE_CHECKING:
    from ultrapixel_jax.evaluate.features import Measured
    from ultrapixel_jax.evaluate.measures import Figures
    from ultrapixel_jax.evaluate.networks import Networks
    from ultrapixel_jax.evaluate.sets import Origin, PictureSet

FEATURES, PLOT, TABLE_ONE = "features", "figures.png", "sizes.md"
CONVENTIONS = ("clean", "fidelity", "pytorch")
CLIPS = ("b32", "l14", "h14", "bigg", "paper")


def _crops(text: str) -> int | str | None:
    if text in ("grid", "none"):
        return None if text == "none" else text
    return whole(1, 10_000).read(text)


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.evaluate", __doc__)
    p.argument("pictures", Path, "a folder of pictures", nargs="?")
    p.option("--weights", str, "converted checkpoints, or random:SEED", [], nargs="+", shown="none",
             metavar="DIR")  # fmt: skip
    p.option("--against", Path, "what FID and KID compare with: a folder of pictures, or a file with mu and "
             "sigma", metavar="REAL|STATS.npz")  # fmt: skip
    p.option("--versus", Path, "pictures of the same prompts by another model, for PickScore's win rate",
             shown="that of --against", metavar="DIR")  # fmt: skip
    p.option("--prompts", str, "metadata, captions, none, or a file", metavar="FROM|FILE",
             shown="metadata, else captions; with --sizes a file is needed")  # fmt: skip
    p.option("--output", Path, "directory of the report", shown="output/evaluation/PICTURES", metavar="DIR")
    p.option("--write-stats", Path, "store the statistics of PICTURES, for --against", metavar="STATS.npz")
    p.section("measures")
    p.option("--resize", one_of(CONVENTIONS), "to what Inception takes", "clean")
    p.option("--crops", Reader(_crops, "grid|none|N"), "of each picture at its own size, for the patch "
             "variants: a grid, or N at random places", "grid")  # fmt: skip
    p.option("--crops-seed", whole(0, 2**32 - 1), "of their places", 42)
    p.option("--clip", one_of(CLIPS), "for CLIP scores; paper is H/14 or bigG", [], nargs="+",
             shown="all there are")  # fmt: skip
    p.option("--resamples", whole(0, 10**6), "of pictures, for intervals; 0 for none", 1000)
    p.option("--subsets", whole(1, 10**6), "of KID", 100)
    p.option("--subset-size", whole(2, 10**6), "of KID", 1000)
    p.option("--seed", whole(0, 2**32 - 1), "of shuffles, subsets and resamples", 2020)
    p.section("drawing")
    p.option("--sizes", Reader(parse_size, "HEIGHTxWIDTH"), "draw pictures of these sizes and measure them",
             [], nargs="+", shown="none")  # fmt: skip
    p.option("--checkpoint", Path, "the model that draws", shown="the demo", metavar="DIR")
    p.option("--count", whole(2, 10**6), "pictures of each size: the first prompts", shown="all")
    p.section("running")
    p.option("--batch-size", whole(1, 4096), "pictures or crops at once", 32)
    p.option("--mesh", MESH, "devices to spread over", shown="all, by data")
    p.option("--dtype", DTYPE, "of the networks that measure", "float32")
    p.option("--workers", whole(0, 256), "threads that read pictures", min(8, os.cpu_count() or 1),
             shown="cores, at most 8")  # fmt: skip
    p.flag("--quiet", "no progress bars")
    return p


def _checked(o: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if (o.pictures is None) == (not o.sizes):
        raise UserError("give either a folder of PICTURES or --sizes to draw (see --help)")
    if not o.weights:
        raise UserError(
            "give --weights: networks that python -m convert wrote, or random:0 for an Inception with random "
            "weights, whose figures compare with their like alone"
        )
    drawing = {"checkpoint": o.checkpoint, "count": o.count}
    if not o.sizes and (given := [name for name, value in drawing.items() if value is not None]):
        raise UserError(f"--{given[0]} is for drawing; give --sizes too")
    if o.sizes and (o.prompts is None or o.prompts in ("metadata", "captions", "none")):
        raise UserError("--sizes draws prompts of a file; give it with --prompts")
    if o.sizes and o.write_stats:
        raise UserError("--write-stats is of one set; give its folder instead of --sizes")
    if o.write_stats and o.write_stats.suffix != ".npz":
        raise UserError(f"--write-stats {str(o.write_stats)!r} must end with .npz")
    for name, path in (("pictures", o.pictures), ("--against", o.against), ("--versus", o.versus)):
        if path is not None and not path.exists():
            raise UserError(f"{name} {str(path)!r} does not exist")
    if isinstance(_origin(o.prompts), Path) and not Path(o.prompts).is_file():
        raise UserError(f"--prompts {o.prompts!r:.80} is no file, and not metadata, captions or none")
    if o.versus is not None and o.prompts == "none":
        raise UserError("--versus compares by prompts; leave out --prompts none")


def without_effect(o: argparse.Namespace) -> Iterator[str]:
    """A line for each reason for which options were given that change no figure."""
    changed = parser().changed(o)

    def given(*names: str) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names if name in changed)

    if (names := given("crops_seed")) and not isinstance(o.crops, int):
        yield f"{names} without effect: the places of --crops {o.crops or 'none'} are not drawn"
    if (names := given("subsets", "subset_size")) and o.against is None:
        yield f"{names} without effect: KID compares with --against"
    if (names := given("clip")) and o.prompts == "none":
        yield f"{names} without effect: there are no prompts"


def _origin(text: str | None) -> Origin | None:
    return text if text in (None, "metadata", "captions", "none") else Path(text)  # pyright: ignore


class _Evaluation:
    """Everything that several sets have in common."""

    def __init__(self, o: argparse.Namespace) -> None:
        import jax

        from ultrapixel_jax.compilation import cache
        from ultrapixel_jax.evaluate import measures
        from ultrapixel_jax.evaluate.networks import Networks
        from ultrapixel_jax.sharding import make_mesh

        cache.use()
        self.o = o
        count = jax.device_count()
        mesh = make_mesh(o.mesh or {"data": count}) if o.mesh or count > 1 else None
        self.networks: Networks = Networks(o.weights, batch_size=o.batch_size, dtype=o.dtype, mesh=mesh)
        given = [name if name == "paper" else f"clip_{name}" for name in o.clip]
        self.settings = measures.Settings(
            resizing=o.resize, crops=o.crops, crops_seed=o.crops_seed, resamples=o.resamples,
            clips=measures.chosen_clips(self.networks, given), subsets=o.subsets,
            subset_size=o.subset_size, seed=o.seed,
        )  # fmt: skip
        if o.versus is not None:
            self.networks.require(measures.PICK, "--versus")
        if o.against is not None:
            self.networks.require("inception", "--against")

    def prepare(self, output: Path) -> None:
        """Measure what sets are compared with."""
        from ultrapixel_jax.evaluate import measures
        from ultrapixel_jax.evaluate.features import checked, measure
        from ultrapixel_jax.evaluate.sets import read_set

        o, kept = self.o, output / FEATURES
        self.against = self.versus = None
        if o.against is not None:
            with _bar(o, "against") as bar:
                self.against = measures.reference(
                    o.against, self.networks, self.settings, kept / "against",
                    pictures=lambda path: bar.of(read_set(path, "none")), workers=o.workers,
                    progress=bar.update,
                )  # fmt: skip
        other = o.versus
        if other is None and o.against is not None and o.against.is_dir() and measures.PICK in self.networks:
            other = o.against
        if other is not None and o.prompts != "none":
            asked = _origin(o.prompts)
            found = read_set(other, None if isinstance(asked, Path) else asked)
            if found.has_prompts:
                channels = measures.channels_of(
                    self.networks, self.settings, prompts=True, only=(measures.PICK,)
                )
                with _bar(o, "versus") as bar:
                    self.versus = checked(
                        measure(
                            bar.of(found), channels, kept / "versus", workers=o.workers, progress=bar.update
                        )
                    )
            elif o.versus is not None:
                raise UserError(f"--versus {o.versus} has pictures without prompts")

    def measured(self, pictures: PictureSet, directory: Path) -> Measured:
        """A set in all channels."""
        from ultrapixel_jax.evaluate import measures
        from ultrapixel_jax.evaluate.features import checked, measure

        channels = measures.channels_of(self.networks, self.settings, prompts=pictures.has_prompts)
        if not channels:
            raise UserError(
                f"nothing can be measured: --weights have {', '.join(self.networks.names)}, and the pictures "
                f"in {pictures.name} have no prompts"
            )
        with _bar(self.o, pictures.name) as bar:
            return checked(
                measure(bar.of(pictures), channels, directory, workers=self.o.workers, progress=bar.update)
            )

    def report(self, measured: Measured, directory: Path, more: Figures | None = None) -> Figures:
        """Compute, write and print what is told of a set."""
        from ultrapixel_jax.evaluate import measures, plots, reports
        from ultrapixel_jax.evaluate.networks import described

        with _telling(self.o) as tell:
            figures, each = measures.figures(
                measured, self.networks, self.settings, against=self.against, versus=self.versus, tell=tell
            )
        figures |= more or {}
        used = [name for name in self.networks.names if name in measured.channels]  # crops are Inception's
        settings = {**dataclasses.asdict(self.settings), "dtype": self.o.dtype}
        against = self.against and (
            reports.described(self.against.measured)
            if self.against.measured
            else {"name": self.against.name, **self.against.about}
        )
        result = reports.report(
            measured, figures, networks=described(self.networks, used), settings=settings, against=against,
            versus=self.versus and reports.described(self.versus), notes=self._notes(measured),
        )  # fmt: skip
        reports.write(directory, result, measured, each)
        if plots.available() and figures:
            plots.draw(directory / PLOT, {measured.pictures.name: figures}, measured.pictures.name)
        return figures

    def _notes(self, measured: Measured) -> list[str]:
        from ultrapixel_jax.evaluate import plots

        notes = [*measured.pictures.notes, *(self.against.notes if self.against else ())]
        if measured.broken:
            names = ", ".join(list(measured.broken)[:3])
            notes.append(f"{len(measured.broken)} pictures cannot be read and do not count: {names}")
        crops = measured.channels.get("crops")
        small = 0 if crops is None else sum(crops.counts[i] == 0 for i in measured.whole)
        if small:
            notes.append(f"{small} pictures are smaller than a crop, and do not count for the patch variants")
        if not plots.available():
            notes.append(f"no plots without matplotlib: {plots.INSTALL}")
        return notes


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    _checked(o)
    for line in without_effect(o):
        print(f"warning: {line}", file=sys.stderr)
    if o.sizes:
        _sizes(o)
    else:
        _one_set(o)


def _one_set(o: argparse.Namespace) -> None:
    from ultrapixel_jax.evaluate import references, reports
    from ultrapixel_jax.evaluate.sets import read_set

    pictures = read_set(o.pictures, _origin(o.prompts))
    if o.versus is not None and not pictures.has_prompts:
        raise UserError(f"--versus compares by prompts, and pictures in {o.pictures} have none")
    output = o.output or Path("output", "evaluation", o.pictures.resolve().name)
    evaluation = _Evaluation(o)
    if o.write_stats:
        evaluation.networks.require("inception", "--write-stats")
    evaluation.prepare(output)
    measured = evaluation.measured(pictures, output / FEATURES / "pictures")
    if o.write_stats:
        references.write_statistics(o.write_stats, measured, evaluation.settings.about(evaluation.networks))
        print(f"statistics: {o.write_stats}")
    evaluation.report(measured, output)
    print((output / reports.TABLE).read_text(encoding="utf-8"))
    print(f"written: {output}")


def _sizes(o: argparse.Namespace) -> None:
    from ultrapixel_jax.evaluate import plots, reports, table_one
    from ultrapixel_jax.evaluate.sets import read_set

    output = o.output or Path("output", "evaluation", "sizes")
    evaluation = _Evaluation(o)  # so that what it needs is there before hours of drawing
    sizes = list(dict.fromkeys(o.sizes))
    with _bar(o, "drawing") as bar:
        folders = table_one.draw(
            output, sizes, Path(o.prompts), checkpoint=o.checkpoint, count=o.count,
            progress=lambda name: bar.update(1, name),
        )  # fmt: skip
    evaluation.prepare(output)
    columns = {}
    for size, folder in folders.items():
        name = table_one.name_of(size)
        measured = evaluation.measured(read_set(folder, "metadata"), output / FEATURES / name)
        figures = evaluation.report(measured, output / name)
        if (seconds := table_one.latency(folder)) is not None:
            figures = {**figures, table_one.LATENCY: seconds}
        columns[name] = figures
    head = f"{o.checkpoint or 'the demo'}, by size"
    text = table_one.markdown(columns, head)
    write_whole(output / TABLE_ONE, text)
    write_whole(output / "sizes.json", reports.as_json(columns))
    if plots.available():
        plots.draw(output / "sizes.png", columns, head)
    print(text)
    print(f"written: {output}")


# ---------------------------------------------------------------------------- progress


class _Bar:
    """A progress bar whose length is known when a set is."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def of(self, pictures: PictureSet) -> PictureSet:
        """Take the length of a set, and return it."""
        self._bar.reset(len(pictures.samples))
        return pictures

    def update(self, count: int, what: str = "") -> None:
        """So many more are done."""
        if what:
            self._bar.set_postfix_str(what, refresh=False)
        self._bar.update(count)


@contextmanager
def _bar(o: argparse.Namespace, what: str) -> Iterator[_Bar]:
    from tqdm import tqdm

    with tqdm(unit="picture", desc=what, disable=o.quiet or not sys.stderr.isatty()) as bar:
        yield _Bar(bar)


@contextmanager
def _telling(o: argparse.Namespace) -> Iterator[Callable[[str], Any]]:
    """Say what is being computed; intervals take minutes."""
    shown = not o.quiet and sys.stderr.isatty()

    def tell(what: str) -> None:
        if shown:
            print(f"computing {one_line(what)} …", file=sys.stderr)

    yield tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="finished work is kept; repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
