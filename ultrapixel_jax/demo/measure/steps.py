"""How many steps the demo needs: pictures that are all right, by sampler and number of steps.

    python -m ultrapixel_jax.demo.measure.steps OUTPUT --samplers ddpm dpmpp_2m --steps 4 10 20 40 --preview
    python -m ultrapixel_jax.demo.measure.steps OUTPUT --steps 20 --set cfg_until=0.7 reuse_hr=2 --preview

Every combination draws the same held-out scenes from the same noise. OUTPUT gets a line per picture in
`pictures.jsonl`, `table.md`, and with matplotlib `steps.png`. Kill the program at any moment, repeat the
command, and it goes on; the same OUTPUT takes more samplers, steps, settings, scenes and sizes, and its table
has all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, Reader, one_of, whole
from ultrapixel_jax.config import MAX_STEPS, SamplerName
from ultrapixel_jax.demo.measure import scores
from ultrapixel_jax.demo.measure.evaluate import LINES, MARKDOWN, SEED_STEP, Case, square, start
from ultrapixel_jax.demo.measure.scores import Drawn, judge
from ultrapixel_jax.demo.measure.sharpness import enlarge
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.build import VERSION
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.errors import UserError, unknown_key
from ultrapixel_jax.evaluate.statistics import wilson
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.sampling.requests import SETTINGS, SETTINGS_B, Request, with_settings

if TYPE_CHECKING:
    from ultrapixel_jax.sampling.pipeline import Cascade

PLOT = "steps.png"
SUFFIXES = {"C": "", "HR": "_hr", "B": "_b"}
"""Whose steps and sampler are varied: both passes of stage C, its HR pass, stage B."""
READERS = {**SETTINGS, **SETTINGS_B}


class Batch(NamedTuple):
    """Pictures that are drawn together."""

    settings: Mapping[str, Any]
    """Of sampling, where it is not the model's own."""
    cases: Sequence[Case]


Draw = Callable[[Batch, Sequence[str]], tuple[list[np.ndarray], float | None]]
"""Pictures of a batch and its captions, and the seconds that it took; None where programs were compiled."""


def combinations(
    samplers: Sequence[str], steps: Sequence[int], stage: str, fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The settings of every row."""
    suffix = SUFFIXES[stage]
    return [
        {f"sampler{suffix}": sampler, f"steps{suffix}": count, **fixed}
        for sampler in samplers
        for count in steps
    ]


def named(settings: Mapping[str, Any]) -> str:
    """`settings` in words that are the same in whatever order they were given."""
    return " ".join(f"{name}={settings[name]}" for name in sorted(settings))


def measure(
    draw: Draw,
    output: Path,
    settings: dict[str, Any],
    batches: Sequence[Batch],
    *,
    lr: Callable[[tuple[int, int]], tuple[int, int]],
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Draw and judge what is missing of `batches`; all lines of `output`.

    Args:
        draw: makes the pictures.
        output: the directory to write.
        settings: of the model; another one's `output` is refused.
        batches: what to draw.
        lr: height and width of the low-resolution pass's picture, of a picture's own.
        quiet: no progress bar.

    Raises:
        UserError: `output` is of other settings or cannot be written.
    """
    from tqdm import tqdm

    done = start(output, {"world": VERSION, **settings})
    with (output / LINES).open("a", encoding="utf-8") as lines:
        for batch in tqdm(batches, unit="batch", disable=quiet):
            names = [f"{named(batch.settings)}/{case.name}" for case in batch.cases]
            if all(name in done for name in names):
                continue
            told = [scenes.sample(0, c.scene, "held_out", c.size[0] / c.size[1]) for c in batch.cases]
            images, seconds = draw(batch, [plain_caption(scene) for scene in told])
            for name, case, scene, image in zip(names, batch.cases, told, images, strict=True):
                found = judge(scene, Drawn(image, None, lr(case.size)))
                line = {
                    "name": name, "size": list(case.size), "settings": dict(batch.settings),
                    "seconds": None if seconds is None else seconds / len(images),
                    **{share: found[share] for share in scores.SHARES},
                }  # fmt: skip
                if name not in done:
                    lines.write(json.dumps(line) + "\n")
                    done[name] = line
            lines.flush()
    return list(done.values())


# ---------------------------------------------------------------------------- tables and plots


def rows(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for every size and settings, in the order of the settings' names and of numbers in them."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((*line["size"], named(line["settings"])), []).append(line)

    def made(of: list[dict[str, Any]]) -> dict[str, Any]:
        right = [bool(line["all"]) for line in of]
        known = [line["seconds"] for line in of if line["seconds"] is not None]
        return {
            "size": of[0]["size"], "settings": of[0]["settings"], "pictures": len(of),
            "all": sum(right) / len(right), "interval": wilson(float(sum(right)), len(right)),
            "seconds": statistics.median(known) if known else None,
        }  # fmt: skip

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        numbers = [(k, isinstance(v, str), v) for k, v in sorted(row["settings"].items())]
        return (
            row["size"],
            sorted(row["settings"]),
            [v for v in numbers if v[1]],
            [v for v in numbers if not v[1]],
        )

    return sorted(map(made, groups.values()), key=key)


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    body = [
        [
            f"{row['size'][0]}×{row['size'][1]}", f"`{named(row['settings'])}`", str(row["pictures"]),
            f"{100 * row['all']:.1f}", "–".join(f"{100 * end:.0f}" for end in row["interval"]),
            "" if row["seconds"] is None else f"{row['seconds']:.2f}",
        ]
        for row in table
    ]  # fmt: skip
    return scores.table(["size", "settings", "pictures", "all right, %", "95 %", "s/picture"], body, labels=2)


def plot(table: Sequence[dict[str, Any]], path: Path) -> bool:
    """All right against steps, a line for each of the other settings; False without matplotlib."""
    try:
        from matplotlib import figure
    except ImportError:
        return False
    curves: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for row in table:
        name = next(
            (f"steps{suffix}" for suffix in SUFFIXES.values() if f"steps{suffix}" in row["settings"]), ""
        )
        if name:
            other = {k: v for k, v in row["settings"].items() if k != name}
            of_size = curves.setdefault((*row["size"], name), {})
            of_size.setdefault(named(other), {})[row["settings"][name]] = 100 * row["all"]
    drawing = figure.Figure(figsize=(6 * max(len(curves), 1), 4.5), layout="constrained")
    for place, ((height, width, name), of_size) in enumerate(curves.items(), start=1):
        axes = drawing.add_subplot(1, len(curves), place)
        for other, points in of_size.items():
            axes.plot(sorted(points), [points[x] for x in sorted(points)], "o-", label=other)
        axes.set(xlabel=name, ylabel="all right, %", ylim=(0, 100), title=f"{height}×{width}")
        axes.legend(fontsize="small")
    drawing.savefig(path, dpi=120)
    return True


# ---------------------------------------------------------------------------- the command line


def drawing(cascade: Cascade, batch_size: int) -> Draw:
    """What `cascade` draws; previews are enlarged to the size that was asked for."""
    own = cascade.config.sampling_c, cascade.config.sampling_b

    def draw(batch: Batch, captions: Sequence[str]) -> tuple[list[np.ndarray], float | None]:
        stage_c, stage_b = with_settings(*own, batch.settings)
        height, width = batch.cases[0].size
        requests = [
            Request(caption, "", case.seed, height, width, stage_c, stage_b)
            for case, caption in zip(batch.cases, captions, strict=True)
        ]
        compiled, began = cascade.compilations, time.perf_counter()
        results = cascade.generate(requests, batch_size=batch_size)
        seconds = time.perf_counter() - began
        images = [enlarge(r.image, (height, width)) if cascade.preview else r.image for r in results]
        return images, seconds if compiled == cascade.compilations else None

    return draw


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    name = name.replace("-", "_")
    if name not in READERS:
        raise UserError(f"--set: {unknown_key(name, READERS, 'setting')}")
    try:
        return name, READERS[name].read(value)
    except ValueError as error:
        raise UserError(f"--set {name}: {error}") from error


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.steps", __doc__)
    p.argument("output", Path, "new directory, or one to go on with")
    p.section("what is compared")
    p.option("--samplers", one_of(get_args(SamplerName)), "of the stage",
             ["ddpm", "dpmpp_2m", "dpmpp_2m_sde"], nargs="+", metavar="NAME")  # fmt: skip
    p.option("--steps", whole(1, MAX_STEPS), "of the stage", [4, 6, 10, 20, 40], nargs="+")
    p.option("--stage", one_of(SUFFIXES), "both passes of stage C, its HR pass, or stage B", "C")
    p.option("--set", Reader(_setting, "NAME=VALUE"), "other settings of sampling, of all rows", nargs="+")
    p.section("pictures")
    p.option(
        "--checkpoint", Path, "a checkpoint or training run", shown="the demo in the package", metavar="DIR"
    )
    p.option("--count", whole(1, SEED_STEP), "number of scenes", 48)
    p.option("--seeds", whole(1, 1000), "pictures of each scene", 1)
    p.option("--sizes", square, "pixels on a side, or HEIGHTxWIDTH", [(768, 768)], shown="768", nargs="+",
             metavar="N")  # fmt: skip
    p.option("--dtype", DTYPE, "of computing", "float32")
    p.flag("--preview", "the previewer in place of stages B and A")
    p.option("--batch-size", whole(1, 1024), "pictures made at once", 4)
    p.flag("--quiet", "no progress bar")
    return p


def batches(options: argparse.Namespace) -> Iterator[Batch]:
    """What the command line asks for: scenes together, so that an interrupted run has all rows of some."""
    found = combinations(options.samplers, options.steps, options.stage, dict(options.set or ()))
    for size in options.sizes:
        cases = [Case(size, scene, n) for n in range(options.seeds) for scene in range(options.count)]
        for i in range(0, len(cases), options.batch_size):
            for settings in found:
                yield Batch(settings, cases[i : i + options.batch_size])


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    todo = list(batches(o))
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.sampling.pictures import config_identity
    from ultrapixel_jax.sampling.pipeline import Cascade
    from ultrapixel_jax.sizes import lr_pixels

    kept = compilation_cache.executables(compilation_cache.use())
    cascade = Cascade.load(o.checkpoint, dtype=o.dtype, preview=o.preview, executables=kept)
    for batch in todo:
        with_settings(cascade.config.sampling_c, cascade.config.sampling_b, batch.settings)
    settings = {
        "checkpoint": cascade.identity, "config": config_identity(cascade.config), "dtype": o.dtype,
        "preview": o.preview,
    }  # fmt: skip
    lines = measure(
        drawing(cascade, o.batch_size), o.output, settings, todo,
        lr=lambda size: lr_pixels(*size, cascade.lr_side), quiet=o.quiet,
    )  # fmt: skip
    table = rows(lines)
    write_whole(o.output / MARKDOWN, markdown(table))
    print(markdown(table))
    if not plot(table, o.output / PLOT):
        print("no plot: matplotlib is not installed (pip install 'ultrapixel_jax[plots]')", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(
        lambda: run(argv), interrupted="finished pictures are kept; repeat the command to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
