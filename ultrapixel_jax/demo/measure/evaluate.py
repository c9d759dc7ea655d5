"""What the demo cascade draws for captions it never saw, as a table.

    python -m ultrapixel_jax.demo.measure.evaluate CHECKPOINT OUTPUT --count 200 --sizes 384 768 1536
    python -m ultrapixel_jax.demo.measure.evaluate CHECKPOINT OTHER --guidance off

Each picture is made from the shortest caption of a held-out scene; `detect` says what is on it, and
`compare` whether that is the scene. Of the same run, the low-resolution pass is decoded, too: whether the
picture keeps its layout, and how much sharper it is than that picture enlarged. OUTPUT gets `table.md`,
`table.json` and a line per picture in `pictures.jsonl`. Kill the program at any moment, repeat the command,
and it goes on; the same OUTPUT also takes more scenes, seeds and sizes, but no other settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, number, one_of, whole
from ultrapixel_jax.config import MAX_STEPS, GuidanceConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.demo.measure.detect import SIDE
from ultrapixel_jax.demo.measure.scores import Drawn, judge, markdown, row
from ultrapixel_jax.demo.measure.sharpness import enlarge
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.build import VERSION
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.sizes import (
    HW,
    Bucket,
    check_size,
    lr_latent,
    lr_pixels,
    padded_pixels,
    stage_b_latent,
)

if TYPE_CHECKING:
    from ultrapixel_jax.sampling.pipeline import Cascade

SETTINGS, LINES, TABLE, MARKDOWN = "settings.json", "pictures.jsonl", "table.json", "table.md"
SEED_STEP = 1_000_000
"""Picture `number` of scene i has seed number·SEED_STEP + i: other noise for every picture."""


class Case(NamedTuple):
    """One picture to make."""

    size: HW
    """Height and width in pixels."""
    scene: int
    """Index of the scene."""
    number: int
    """Of the picture, among those of the same scene and size."""

    @property
    def name(self) -> str:
        """Different for each, and a file name."""
        return f"{self.size[0]}x{self.size[1]}-{self.scene:05d}-{self.number}"

    @property
    def seed(self) -> int:
        """Of the sampling; the same at every size."""
        return self.number * SEED_STEP + self.scene


Draw = Callable[[Sequence[Case], Sequence[str]], list[Drawn]]
"""Pictures of cases of one size and their captions."""


# ---------------------------------------------------------------------------- all pictures


def evaluate(
    draw: Draw,
    output: Path,
    settings: dict[str, Any],
    cases: Sequence[Case],
    *,
    split: str = "held_out",
    scene_seed: int = 0,
    batch_size: int = 4,
    workers: int = 0,
    pictures: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make and judge what is missing of `cases`; returns the table.

    Args:
        draw: makes at most `batch_size` pictures of one size.
        output: the directory to write.
        settings: of `draw`; another evaluation's `output` is refused.
        cases: the pictures, those of one size together.
        split: of the scenes.
        scene_seed: of the scenes.
        batch_size: pictures made at once.
        workers: processes that judge pictures while others are made; 0 judges in this one.
        pictures: of how many scenes the pictures are kept, of every size.
        quiet: no progress bar.

    Raises:
        UserError: `output` is of other settings or cannot be written.
    """
    from tqdm import tqdm

    settings = {"world": VERSION, "split": split, "scene_seed": scene_seed, **settings}
    done = start(output, settings)
    todo = [case for case in cases if case.name not in done]
    batches = [
        group[i : i + batch_size]
        for _, cases_ in itertools.groupby(todo, key=lambda case: case.size)
        for group in [list(cases_)]
        for i in range(0, len(group), batch_size)
    ]
    with (
        (output / LINES).open("a", encoding="utf-8") as lines,
        tqdm(
            total=len(cases), initial=len(cases) - len(todo), unit="picture", disable=quiet, desc="evaluating"
        ) as bar,
    ):

        def judged() -> Iterator[dict[str, Any]]:
            with _Judges(workers) as judges:
                for batch in batches:
                    told = [scenes.sample(scene_seed, c.scene, split, c.size[0] / c.size[1]) for c in batch]
                    drawn = draw(batch, [plain_caption(scene) for scene in told])
                    for case, scene, pair in zip(batch, told, drawn, strict=True):
                        if case.scene < pictures:
                            _keep(output, case, pair)
                        yield from judges.give(case.name, scene, pair)
                yield from judges.rest()

        for line in judged():
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            done[line["name"]] = line
            bar.update()
    wanted = {
        size: [done[c.name] for c in cases if c.size == size] for size in dict.fromkeys(c.size for c in cases)
    }
    result = {
        "settings": settings,
        "rows": [{"size": list(size), **row(rows)} for size, rows in wanted.items()],
    }
    write_whole(output / TABLE, json.dumps(result, indent=1) + "\n")
    write_whole(output / MARKDOWN, markdown(result["rows"]))
    return result


class _Judges:
    """`judge` in worker processes, or here; lines come as they are ready."""

    def __init__(self, workers: int) -> None:
        import multiprocessing

        from ultrapixel_jax.data.build import end_with_parent

        self._most = 4 * workers
        self._pool = (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
            if workers
            else None
        )
        self._waiting: list[tuple[str, Future[dict[str, Any]]]] = []

    def give(self, name: str, scene: scenes.Scene, drawn: Drawn) -> Iterator[dict[str, Any]]:
        """Hand over one picture; lines that are ready."""
        if self._pool is None:
            yield {"name": name, **judge(scene, drawn)}
            return
        self._waiting.append((name, self._pool.submit(judge, scene, drawn)))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][1].done()):
            yield self._next()

    def rest(self) -> Iterator[dict[str, Any]]:
        """All other lines."""
        while self._waiting:
            yield self._next()

    def _next(self) -> dict[str, Any]:
        name, future = self._waiting.pop(0)
        try:
            return {"name": name, **future.result()}
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?); repeat the command to go on, perhaps with fewer "
                "--workers"
            ) from error

    def __enter__(self) -> _Judges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def start(output: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Make `output` or check that it goes on with `settings`; the lines that are there, by name.

    Raises:
        UserError: `output` is of other settings or cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = output / SETTINGS
        if not path.exists():
            if any(output.iterdir()):
                raise UserError(f"{output} is not empty and no evaluation; give a new directory")
            write_whole(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        there = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{output / SETTINGS} is damaged; remove {output} and start again") from error
    if there != json.loads(json.dumps(settings)):
        other = sorted(k for k in {*there, *settings} if there.get(k) != settings.get(k))
        raise UserError(f"{output} was made with another {', '.join(other)}; give a new directory")
    lines = output / LINES
    if not lines.exists():
        return {}
    data = lines.read_bytes()
    if not data.endswith(b"\n"):  # a line that was being written
        data = data[: data.rfind(b"\n") + 1]
        lines.write_bytes(data)
    return {line["name"]: line for line in map(json.loads, data.decode().splitlines())}


def _keep(output: Path, case: Case, drawn: Drawn) -> None:
    directory = output / "pictures"
    directory.mkdir(exist_ok=True)
    for image, suffix in ((drawn.image, ""), (drawn.low, "-low")):
        if image is not None:
            Image.fromarray(image).save(directory / f"{case.name}{suffix}.png")


# ---------------------------------------------------------------------------- the cascade


def drawing(cascade: Cascade, *, stage_c: Any, stage_b: Any, lr_side: int, batch_size: int) -> Draw:
    """What `cascade` draws, with its low-resolution pass, if any, decoded in the same way.

    Previews are enlarged to the size that was asked for.
    """
    from ultrapixel_jax.sampling.requests import Request

    def sized(image: np.ndarray, size: HW) -> np.ndarray:
        return enlarge(image, size) if cascade.preview else image

    def draw(cases: Sequence[Case], captions: Sequence[str]) -> list[Drawn]:
        height, width = cases[0].size
        requests = [
            Request(caption, "", case.seed, height, width, stage_c, stage_b)
            for case, caption in zip(cases, captions)
        ]
        results = cascade.generate(requests, batch_size=batch_size)
        high = [sized(result.image, (height, width)) for result in results]
        low = low_bucket(height, width, lr_side)
        if cascade.config.guidance is None:
            return [Drawn(image, None, low.pixels) for image in high]
        filled = [*range(len(results)), *[0] * (batch_size - len(results))]  # one compiled program for all
        latent = np.stack([results[i].latents["stage_c_low"] for i in filled])
        pictures = cascade.decode([requests[i] for i in filled], low, latent)
        return [Drawn(image, sized(small, low.pixels), low.pixels) for image, small in zip(high, pictures)]

    return draw


def low_bucket(height: int, width: int, side: int) -> Bucket:
    """Shapes of the low-resolution pass, as those of a picture of its own."""
    pixels = lr_pixels(height, width, side)
    latent = lr_latent(height, width, side)
    return Bucket(hr=latent, lr=latent, stage_b=stage_b_latent(*pixels), pixels=padded_pixels(*pixels))


def _load(options: argparse.Namespace) -> tuple[Cascade, dict[str, Any]]:
    """The cascade with the guidance that was asked for, and the settings that tell evaluations apart."""
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.config import to_dict
    from ultrapixel_jax.sampling.pictures import config_identity
    from ultrapixel_jax.sampling.pipeline import Cascade, Memory

    cache = compilation_cache.use()
    settings = {"dtype": options.dtype, "ema": not options.no_ema, "preview": options.preview}
    load = functools.partial(
        Cascade.load, options.checkpoint, executables=compilation_cache.executables(cache),
        memory=Memory(int8=options.int8), **settings,
    )  # fmt: skip
    cascade = load()
    config = cascade.config
    lr_side = (config.guidance or demo.guidance or GuidanceConfig()).lr_side
    if options.guidance is not None and config.guidance is None and options.guidance != "off":
        raise UserError(f"{options.checkpoint} has no guidance; leave out --guidance")
    if options.guidance is not None and config.guidance is not None:
        guidance = None if options.guidance == "off" else dataclasses.replace(
            config.guidance, timestep=options.guidance
        )  # fmt: skip
        config = dataclasses.replace(config, guidance=guidance)
        cascade = load(config=config)
    for height, width in options.sizes:
        if min(lr_pixels(height, width, lr_side)) < SIDE:
            raise UserError(f"size {height}x{width}: its low-resolution picture is too small to detect in")
    for stage, suffix, names in (
        ("sampling_c", "", ("steps", "cfg", "cfg_hr")),
        ("sampling_b", "_b", ("steps", "cfg")),
    ):
        given = {name: getattr(options, name + suffix) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(config, **{stage: dataclasses.replace(getattr(config, stage), **given)})
    cascade.config = config
    return cascade, {
        **settings,
        "int8": options.int8,
        "checkpoint": cascade.identity,
        "config": config_identity(config),
        "lr_side": lr_side,
        "guidance": "off" if config.guidance is None else config.guidance.timestep,
        "stage_c": to_dict(config.sampling_c),
        "stage_b": to_dict(config.sampling_b),
    }


def _without_effect(options: argparse.Namespace, *, guided: bool) -> list[str]:
    """What the command line says of sampling and no picture shows."""
    from ultrapixel_jax.sampling import effects

    given = [name for name in ("cfg_hr", "steps_b", "cfg_b") if getattr(options, name) is not None]
    return effects.without_effect(effects.Situation(given, preview=options.preview, guided=guided))


# ---------------------------------------------------------------------------- command line


def square(text: str) -> HW:
    """Height and width that `text` says: a number of pixels, or two.

    Raises:
        UserError: it says neither, or a size that is not drawn.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 9 for side in sides):
        raise UserError(f"--sizes {text!r:.80} is neither a number of pixels nor HEIGHTxWIDTH")
    size = int(sides[0]), int(sides[-1])
    check_size(*size)
    return size


def _guidance(text: str) -> str | float:
    if text in ("off", "synchronized"):
        return text
    value = number()(text)
    if not 0 <= value <= 1:
        raise UserError(f"--guidance {text} is outside 0 to 1; or use off or synchronized")
    return value


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.evaluate", __doc__)
    p.argument("checkpoint", Path, "a checkpoint or training run, as for sample.py")
    p.argument("output", Path, "new directory, or that of an interrupted evaluation")
    p.section("pictures")
    p.option("--count", whole(1, SEED_STEP), "number of scenes", 200)
    p.option("--seeds", whole(1, 1000), "pictures of each scene and size", 1)
    p.option("--sizes", square, "pixels on a side, or HEIGHTxWIDTH", [(384, 384), (768, 768), (1536, 1536)],
             shown="384 768 1536", nargs="+", metavar="N")  # fmt: skip
    p.option("--split", one_of(scenes.SPLITS), "of the scenes", "held_out")
    p.option("--scene-seed", whole(0, scenes.MAX_SEED), "of the scenes", 0)
    p.section("sampling, where it is not the model's own")
    p.option("--guidance", _guidance, "none; that of the HR step's own timestep (t_H); or that of timestep T",
             metavar="off|synchronized|T")  # fmt: skip
    for suffix, stage in (("", "C"), ("-b", "B")):
        p.option(f"--steps{suffix}", whole(1, MAX_STEPS), f"denoising steps of stage {stage}")
        p.option(f"--cfg{suffix}", number(), f"classifier-free guidance weight of stage {stage}")
    p.option("--cfg-hr", number(), "that of stage C's HR pass")
    p.option("--dtype", DTYPE, "of computing", "float32")
    p.flag("--int8", "the kernels of stages C and B in eight bits")
    p.flag("--preview", "the previewer in place of stages B and A: stage C alone is measured, far sooner")
    p.flag("--no-ema", "of a run, the trained weights and not their moving average")
    p.section("running")
    p.option("--batch-size", whole(1, 1024), "pictures made at once", 4)
    p.option("--workers", whole(0, 1024), "processes that judge pictures; 0 does it in this one",
             (os.cpu_count() or 1) - 1, shown="cores less one")  # fmt: skip
    p.option("--pictures", whole(0, 10**6), "keep the pictures of the first N scenes", 8)
    p.flag("--quiet", "no progress bar")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        options = parser().read(argv)
        cascade, settings = _load(options)
        for line in _without_effect(options, guided=cascade.config.guidance is not None):
            print(f"note: {line}", file=sys.stderr)
        draw = drawing(
            cascade, stage_c=cascade.config.sampling_c, stage_b=cascade.config.sampling_b,
            lr_side=settings["lr_side"], batch_size=options.batch_size,
        )  # fmt: skip
        sizes = dict.fromkeys(options.sizes)
        cases = [
            Case(size, scene, number)
            for size in sizes
            for number in range(options.seeds)
            for scene in range(options.count)
        ]
        table = evaluate(
            draw, options.output, settings, cases, split=options.split, scene_seed=options.scene_seed,
            batch_size=options.batch_size, workers=options.workers, pictures=options.pictures,
            quiet=options.quiet,
        )  # fmt: skip
        print(markdown(table["rows"]))

    return commands.run(run, interrupted="finished pictures are kept; repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
