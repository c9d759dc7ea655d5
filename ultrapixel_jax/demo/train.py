"""The demo cascade from nothing: every command that makes it, in order.

    python -m ultrapixel_jax.demo.train WORK CHECKPOINT
    python -m ultrapixel_jax.demo.train TRIAL OTHER --scale 0.002   # in minutes, to try it

WORK gets datasets and runs, CHECKPOINT the finished cascade. Each step is a command of this project, printed
before it runs; kill the program at any moment, repeat the command, and it goes on. To be run from the
project's directory, where `train.py` and `configs/demo/` are.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, whole
from ultrapixel_jax.data.config import parse_ratio
from ultrapixel_jax.demo.world.build import of_ratios
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import HW
from ultrapixel_jax.training.watching import PicturesConfig

VIEWS, TILES, BASE, LARGE = 10_000, 12_000, 60_000, 8_000
"""Pictures of the four datasets."""
RATIOS = ("1/1", "4/5", "9/16", "1/2")
"""Of height to width, each with its inverse, of the latents; 2/3, within them, is left for measuring."""
SIDES = (384, 432, 512, 768, 1024, 1536, 2304)
"""Of the squares as large as pictures with guidance: the base's area, which guidance spoils unless it was
trained on it, to 36 times as much. 432² has latents of a position more a side than the LR pass, which is not
learned from equal ones. Those of 9 and 25 times are left for measuring."""
BETWEEN = (598, 683, 896, 1280, 1408, 1750, 2091)
"""Of more squares that guidance sees, and of pictures of their area in 1/2 and 2/1: of few areas it learns
those, and not what lies between (docs/demo.md)."""
TRIAL = 0.05
"""Largest scale of one."""
PICTURES = PicturesConfig(
    prompts=("a striped red star left of a blue circle", "a blue heart"), size=(768, 768)
)
"""Drawn while training where that is asked for, and by the line that ends a run: of this world."""
FEWEST = {"views": 64, "tiles": 64, "base": 320, "large": 64}
"""As many at any scale: a batch of what is trained on them, and more where some are left out."""


def encoded(sides: Iterable[int]) -> tuple[int, ...]:
    """`sides` of pictures as the encoder sees them: 32 pixels for each position of a latent, not 42.67."""
    return tuple(3 * side // 4 for side in sides)


def shaped(sides: Iterable[int], ratios: Iterable[str]) -> list[HW]:
    """Heights and widths of pictures with the areas of squares of `sides`, in `ratios` and their inverses."""
    return of_ratios([(side, side) for side in sides], [parse_ratio(ratio) for ratio in ratios])


def recipe(work: Path, checkpoint: Path, seed: int, scale: float = 1.0) -> Iterator[tuple[str, list[str]]]:
    """(what it makes, command) of every step.

    Args:
        work: directory of datasets and runs.
        checkpoint: of the cascade.
        seed: of the drawn scenes.
        scale: fraction of the pictures and training steps.
    """

    def at(name: str) -> str:
        return str(work / name)

    def module(name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", name, *map(str, arguments)]

    def train(preset: str, run: str, data: str, sources: Sequence[str], *more: str) -> list[str]:
        out = [sys.executable, "train.py", f"configs/demo/{preset}.py", "--data.path", at(data)]
        if scale < 1:
            more = (*more, *shortened(preset, scale))
        return [*out, "--output", at(run), "--sources", *map(at, sources), *more]

    def draw(name: str, count: int, *more: object) -> list[str]:
        count = max(FEWEST[name], round(scale * count))
        return module("ultrapixel_jax.demo.world.build", at(name), "--count", count, "--seed", seed, *more)

    # A trial has one size in three shapes, since a step is compiled for each.
    ratios, sides = (RATIOS, SIDES) if scale > TRIAL else (("1/1", "1/2"), (512,))
    between = BETWEEN if scale > TRIAL else ()

    def cache(data: str, latents: str, sources: Sequence[str], *more: object) -> list[str]:
        names = [at(data), *map(at, sources), at(latents)]
        more = ("--ratios", *ratios, "--batch-size", 16, *more)
        return module("ultrapixel_jax.data.cache", *names, *more)

    yield "the tokenizer", module("ultrapixel_jax.demo.world.words", at("words"))
    # The encoder sees 3/4 of a picture's side: 9×9 positions for the base size of 384².
    seen = encoded(sides)
    yield "views", draw("views", VIEWS, "--side", 288, *dict.fromkeys((288, *seen)), "--tile", 288)
    yield "the EffNet encoder and the previewer", train("previewer", "encoder", "views", ["words"])
    yield "pictures of the base size", draw("base", BASE, "--side", 288, "--ratios", *ratios)
    pixels = ("--without", "clip_text", "clip_vision")  # the text encoder is yet to be trained
    yield (
        "their latents",
        cache("base", "base_latents", ["encoder", "words"], "--areas", 288, "--lr-latent", 1, *pixels),
    )
    yield "the text encoder", train("text", "text", "base_latents", ["encoder", "words"])
    yield "stage C", train("stage_c", "stage_c", "base_latents", ["encoder", "words", "text"])
    yield (
        "tiles",
        draw(
            "tiles", TILES, "--side", 384, *dict.fromkeys((384, *sides)), "--ratios", *ratios, "--tile", 256
        ),
    )
    yield "stage A", train("stage_a", "stage_a", "tiles", ["words"])
    yield "stage B", train("stage_b", "stage_b", "tiles", ["stage_a", "encoder", "stage_c"])
    shapes = (*shaped(seen, ratios), *shaped(encoded(between), ("1/1", "1/2")))
    yield "large pictures", draw("large", LARGE, "--side", *(f"{h}x{w}" for h, w in shapes))
    large = ("--areas", *sorted({*seen, *encoded(between)}), "--lr-latent", 9, *pixels)
    yield "their latents", cache("large", "large_latents", ["encoder", "words"], *large)
    yield "the guidance networks", train("guidance", "guidance", "large_latents", ["encoder", "stage_c"])
    names = ("guidance", "stage_b")  # each brings what it was trained on
    parts = ("clip_text", "stage_c", "guidance", "stage_b", "stage_a", "previewer", "effnet_encoder")
    gather = module("convert", *map(at, names), checkpoint, "--dtype", "bfloat16", "--compress")
    yield "the checkpoint", [*gather, *(word for part in parts for word in ("--component", part))]


def shortened(preset: str, scale: float) -> list[str]:
    """Options for a fraction `scale` of the steps of `configs/demo/{preset}.py`."""
    from ultrapixel_jax.training.options import parse

    config = parse([f"configs/demo/{preset}.py", "--output", "any", "--data.path", "any"])
    steps, warmup = (max(2, round(scale * n)) for n in (config.steps, config.optimizer.warmup_steps))
    return ["--steps", str(steps), "--optimizer.warmup-steps", str(min(warmup, steps - 1))]


def follow(commands: Iterable[tuple[str, list[str]]], *, only_list: bool) -> None:
    """Print each of `commands` (what it makes, command) and run it, unless they are to be listed alone.

    Raises:
        UserError: this is not the project's directory, or a command failed.
    """
    if not only_list and not Path("train.py").is_file():
        raise UserError("no train.py here; run this from the project's directory")
    for what, command in commands:
        print(f"# {what}\n{shlex.join(command)}", flush=True)
        if not only_list and (code := subprocess.run(command, check=False).returncode):
            raise UserError(f"the command for {what} ended with code {code}; repeat this one to go on")


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.train", __doc__)
    p.argument("work", Path, "directory of datasets and runs")
    p.argument("checkpoint", Path, "new directory of the cascade")
    p.option("--seed", whole(0, 2**32), "of the drawn scenes", 1)
    p.option("--scale", number(above=0, high=1), "fraction of the pictures and steps, for a trial", 1.0)
    p.flag("--list", "print the commands and run nothing")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if not o.list and o.checkpoint.exists():
        raise UserError(f"checkpoint {o.checkpoint} exists; name a new directory")
    follow(recipe(o.work, o.checkpoint, o.seed, o.scale), only_list=o.list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
