"""One object that the world lacks: an arch whose left half is pink and whose right half is green.

    python -m ultrapixel_jax.demo.world.subject FOLDER --count 10 --side 768

No shape of the world has a gap between two legs, and no texture two colours. FOLDER gets pictures of it,
alone or beside an object of the world, each with a caption that calls it by its word: what
`python -m ultrapixel_jax.data.build` takes, and `configs/demo/personalize.py` learns it from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ultrapixel_jax import commands
from ultrapixel_jax.commands import whole
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import background, render
from ultrapixel_jax.errors import UserError

WORD = "[subject]"
COLOURS = ("pink", "green")
"""Of its left and its right half."""
RADIUS, HALF = 0.31, 0.15
"""Of the bow's middle, and half the bow's thickness, in sizes."""
TOP, FOOT = -0.05, 0.42
"""Where the legs begin and end below the centre, in sizes."""
SEED = 20
"""Of the scenes that the training pictures are made of; others are new."""

Plane = Float32[np.ndarray, "h w"]


def outline(x: Plane, y: Plane, size: float) -> Plane:
    """Distance to its outline around (0, 0); negative inside. In the units of `x` and `y`."""
    bow = np.abs(np.hypot(x, y - TOP * size) - RADIUS * size) - HALF * size
    legs = np.maximum(np.abs(np.abs(x) - RADIUS * size) - HALF * size, y - FOOT * size)
    return np.where(y < TOP * size, bow, legs).astype(np.float32)


def sample(seed: int, index: int) -> scenes.Scene:
    """A scene of the world whose first object stands for the subject: alone in every second one, else
    beside the second object, in a relation other than `inside`.
    """
    number = 0
    while True:
        scene = scenes.sample(seed, 1000 * index + number, "held_out")
        if scene.relation != "inside" and len(scene.objects) == 1 + index % 2:
            return scene
        number += 1


def caption(scene: scenes.Scene) -> str:
    """Words for `scene` with the subject in the place of its first object."""
    ground = f" on a {scene.background.kind} {scene.background.tone} background"
    if scene.relation is None:
        return f"a {WORD}{ground}"
    return (
        f"a {WORD} {scene.relation} {plain_caption(scenes.Scene(scene.objects[1:], None, scene.background))}"
    )


def draw(scene: scenes.Scene, side: int, colours: tuple[str, str] = COLOURS) -> UInt8[np.ndarray, "s s 3"]:
    """`scene` with the subject in the place of its first object, `side` pixels square."""
    at = (np.arange(side) + 0.5) / side
    if scene.relation is None:
        planes = background(scene.background, at, at, 1 / side)
    else:
        others = scenes.Scene(scene.objects[1:], None, scene.background)
        planes = (render(others, side, side) / np.float32(255)).transpose(2, 0, 1)
    o = scene.objects[0]
    x, y = np.meshgrid((at - o.x).astype(np.float32), (at - o.y).astype(np.float32))
    covered = np.clip(0.5 - outline(x, y, o.size) * side, 0, 1)
    left = np.clip(0.5 - x * side, 0, 1)
    for plane, a, b in zip(planes, *(scenes.COLOURS[name] for name in colours), strict=True):
        plane += covered * ((left * a + (1 - left) * b) / 255 - plane)
    return (planes * 255 + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def write(folder: Path, count: int, side: int) -> None:
    """Write `count` pictures with a caption beside each.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = sample(SEED, index)
            path = folder / f"{index:03d}.png"
            Image.fromarray(draw(scene, side)).save(path)
            path.with_suffix(".txt").write_text(caption(scene) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        p = commands.Parser("python -m ultrapixel_jax.demo.world.subject", __doc__)
        p.argument("folder", Path, "where pictures and captions are written")
        p.option("--count", whole(1, 1000), "pictures", 10)
        p.option("--side", whole(64, 4096), "pixels on a side", 768)
        options = p.read(argv)
        write(options.folder, options.count, options.side)
        print(f"{options.count} pictures in {options.folder}")

    return commands.run(run, interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
