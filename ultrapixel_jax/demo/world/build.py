"""The demo world as a dataset: scenes, drawn and captioned, to sharded ArrayRecord.

    python -m ultrapixel_jax.demo.world.build OUTPUT --split train --count 20000 --side 384 --seed 0
    python -m ultrapixel_jax.demo.world.build OUTPUT --count 20000 --side 512 1024 2048 --tile 256

OUTPUT is what `python -m ultrapixel_jax.data.build` writes, so `data.loader` and `data.cache` read it
unchanged; ids are SPLIT-INDEX. Example i is scene i of the split at every size of one shape, so that
datasets of two sizes show the same scenes. With several sizes, each scene is drawn at one of them;
--ratios adds to each square as large pictures of other shapes. With --tile, only a square of it is, at a
random place: what stages A and B learn from, who see no more at a time.

Kill the program at any moment, repeat the command, and it goes on.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import one_of, whole
from ultrapixel_jax.data.buckets import bucket_size
from ultrapixel_jax.data.build import summary
from ultrapixel_jax.data.config import parse_ratio
from ultrapixel_jax.data.plan import uniforms
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import caption
from ultrapixel_jax.demo.world.render import LARGEST, render
from ultrapixel_jax.errors import UserError

HW = tuple[int, int]
_DOMAIN = 0x711E
"""Keeps the random sizes and places apart from other random numbers of the same seed."""

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 2},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
"""Options of Pillow's `save`, by name."""
VERSION = 6
"""Of the world: to be raised with every change of scenes, drawing or captions."""


def build(
    output: str,
    *,
    split: str = "train",
    count: int = 20000,
    size: Sequence[HW] = ((384, 384),),
    tile: int = 0,
    seed: int = 0,
    first: int = 0,
    encoding: str = "png",
    shard_images: int = 500,
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the dataset `output`, or go on with it; returns its report.

    Args:
        output: the directory to write.
        split: `train` or `held_out`.
        count: number of scenes.
        size: heights and widths in pixels; each scene has one of them.
        tile: side of the square that is kept of each picture; 0 keeps all.
        seed: of the scenes and their captions.
        first: index of the first scene.
        encoding: one of `FORMATS`.
        shard_images: pictures per shard.
        workers: processes; 0 works in this one.
        quiet: no progress bar.

    Raises:
        UserError: bad values, or `output` cannot be written.
    """
    scenes.sample(seed, first, split)  # complains about bad values
    if encoding not in FORMATS:
        raise UserError(f"format {encoding!r:.80} is not known; use one of {', '.join(FORMATS)}")
    for height, width in size:
        if min(height, width) < max(16, tile) or max(height, width) > LARGEST:
            raise UserError(f"size {height}x{width} is outside {max(16, tile)} to {LARGEST} pixels")
    plan = {"source": "ultrapixel_jax.demo", "version": VERSION, "split": split, "items": count,
            "size": [list(hw) for hw in size], "tile": tile, "seed": seed, "first": first, "format": encoding,
            "shard_images": shard_images}  # fmt: skip

    from etils import epath

    from ultrapixel_jax.data import records

    directory = epath.Path(output)
    if not records.start(directory, plan):
        return records.read_json(directory / records.REPORT)
    starts = range(first, first + count, shard_images)
    jobs = [
        _Job(os.fspath(directory), i, len(starts), start, min(start + shard_images, first + count),
             split, seed, tuple(size), tile, encoding)
        for i, start in enumerate(starts)
    ]  # fmt: skip
    todo = [job for job in jobs if records.shard_done(directory, job.index) is None]
    _run(todo, workers, count, quiet)
    shards = [s for i in range(len(jobs)) if (s := records.shard_done(directory, i)) is not None]
    return records.finish(records.CaptionedImages, directory, plan, shards)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard to make."""

    directory: str
    index: int
    count: int
    first: int
    end: int
    split: str
    seed: int
    size: tuple[HW, ...]
    tile: int
    encoding: str


def _make_shard(job: _Job) -> int:
    """Write one shard; returns the number of its pictures."""
    from etils import epath

    from ultrapixel_jax.data import records

    directory = epath.Path(job.directory)
    report = records.ShardReport()
    records.write_shard(records.CaptionedImages, directory, job.index, job.count, _examples(job), report)
    return job.end - job.first


def _examples(job: _Job) -> Iterator[dict[str, Any]]:
    from PIL import Image

    for index in range(job.first, job.end):
        which, y, x, _ = uniforms(4, (_DOMAIN, job.seed, index)).tolist()
        whole = height, width = job.size[int(which * len(job.size))]
        scene = scenes.sample(job.seed, index, job.split, height / width)
        window = None
        if side := job.tile:
            top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
            window, height, width = (top, left, side, side), side, side
        drawn = render(scene, *whole, window)
        data = io.BytesIO()
        Image.fromarray(drawn).save(data, **FORMATS[job.encoding])
        data.seek(0)
        yield {
            "image": data,
            "caption": caption(scene, job.seed, index),
            "id": f"{job.split}-{index:07d}",
            "height": height,
            "width": width,
        }


def _run(jobs: Sequence[_Job], workers: int, total: int, quiet: bool) -> None:
    """Make the shards, here or in worker processes."""
    import multiprocessing

    from tqdm import tqdm

    from ultrapixel_jax.data.build import end_with_parent

    done = total - sum(job.end - job.first for job in jobs)
    with tqdm(total=total, initial=done, unit="image", desc="drawing", disable=quiet) as bar:
        if workers == 0:
            for job in jobs:
                bar.update(_make_shard(job))
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, max(len(jobs), 1)), context, end_with_parent)
        try:
            for future in as_completed([pool.submit(_make_shard, job) for job in jobs]):
                bar.update(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?); repeat the command to go on, perhaps with fewer "
                "--workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------- command line


def _size(text: str) -> HW:
    """Read `N` or `HEIGHTxWIDTH`."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 9 for side in sides):
        raise UserError(f"--side {text!r:.80} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(sides[0]), int(sides[-1])


def of_ratios(sizes: Sequence[HW], ratios: Sequence[Fraction]) -> list[HW]:
    """`sizes`, and of each square also pictures of its area in `ratios` and their inverses.

    Sides are multiples of 32, as training's buckets have them, so that nothing is cropped there.
    """
    shapes = sorted({*ratios, *(1 / r for r in ratios)})
    out = []
    for height, width in sizes:
        same = shapes if height == width and shapes != [1] else [Fraction(1)]
        out += [(height, width) if r == 1 else bucket_size(height, r) for r in same]
    return out


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.world.build", __doc__)
    p.argument("output", str, "new directory, or that of an interrupted build")
    p.option("--split", one_of(scenes.SPLITS), "of the scenes", "train")
    p.option("--count", whole(1, 10**8), "number of scenes", 20000)
    p.option("--side", _size, "pixels on a side, or HEIGHTxWIDTH; several are drawn at random", [(384, 384)],
             shown="384", nargs="+", metavar="N", dest="size")  # fmt: skip
    p.option("--ratios", parse_ratio, "of height to width, of each square of --side; each with its inverse",
             [Fraction(1)], shown="1/1", nargs="+", metavar="N/N")  # fmt: skip
    p.option("--tile", whole(0, LARGEST), "keep a random square of N pixels", 0, shown="0, everything")
    p.option("--seed", whole(0, scenes.MAX_SEED), "of scenes and captions", 0)
    p.option("--first", whole(0, 10**9), "index of the first scene", 0)
    p.option("--format", one_of(FORMATS), "png, or jpeg of quality 95", "png", dest="encoding")
    p.option("--shard-images", whole(1, 1_000_000), "pictures per shard", 500)
    cores = os.cpu_count() or 1
    p.option("--workers", whole(0, 1024), "processes; 0 works in this one", cores, shown="one per core")
    p.flag("--quiet", "no progress bar")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        values = vars(parser().read(argv))
        values["size"] = of_ratios(values["size"], values.pop("ratios"))
        print(summary(build(**values), values["output"]))

    return commands.run(run, interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
