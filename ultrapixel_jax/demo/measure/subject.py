r"""Whether the demo draws a new object by its word, with a LoRA that ten pictures of it taught.

    python -m ultrapixel_jax.demo.world.subject FOLDER
    python -m ultrapixel_jax.data.build FOLDER DATA
    python -m ultrapixel_jax.demo.world.build WORLD --count 3000 --seed 30 --side 768
    python train.py configs/demo/personalize.py --data.path DATA --data.prior WORLD --output RUN \
        --sources ultrapixel_jax/assets/demo
    python -m ultrapixel_jax.demo.measure.subject OUT --lora RUN --count 50

- `subject`: new scenes with the word, with the LoRA and without: whether the template is found, and whether
  an object beside it is right;
- `base`: held-out scenes of the world, with the LoRA and without: whether all is right by the detector;
- `template`: the template itself, on drawings: of the subject, where it is to be found, and of the world and
  of objects that share its shape or its texture, where it is not. Needs no model.

OUT gets a line per scene and the pictures of the first ones. Kill the program at any moment, repeat the
command, and it goes on; a larger --count adds scenes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import signal

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, one_of, whole
from ultrapixel_jax.demo.measure.detect import cielab, compare, detect, labels_of
from ultrapixel_jax.demo.measure.proofs import Measured, Picture, lines_of, markdown, measured, save_sheet
from ultrapixel_jax.demo.measure.sharpness import enlarge
from ultrapixel_jax.demo.measure.validate import degrade
from ultrapixel_jax.demo.world import scenes, subject
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError

SIDE = 96
"""Pixels of a side that the template is looked for at."""
SIZES = tuple(0.24 * 1.14**n for n in range(10))
"""Of the template, in sides: a little beyond those of the world's objects at both ends."""
MARGIN = 0.06
"""Around the template's outline, in sizes: what must not have its colours."""
ALIKE = (0.7, 0.7)
"""Correlation of shape and of texture from which on it counts as found."""
SEED = 21
"""Of the new scenes."""

Plane = Float[np.ndarray, "h w"]


class Match(NamedTuple):
    """The best place of the template."""

    shape: float
    """Correlation of where its colours are with its silhouette, in a square around it."""
    texture: float
    """Correlation of which of them is where with its halves, within the silhouette."""

    @property
    def found(self) -> bool:
        """Both are enough."""
        return self.shape >= ALIKE[0] and self.texture >= ALIKE[1]


def match(image: Picture) -> Match:
    """The template at the place and size where the worse of its two correlations is best."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    which = labels_of(cielab(np.asarray(small, np.float32)))
    left, right = (which == list(scenes.COLOURS).index(name) for name in subject.COLOURS)
    there, side = (left | right).astype(float), left.astype(float) - right
    best = Match(0.0, 0.0)
    for size in SIZES:
        silhouette, window, halves = _template(size)
        shape = _correlation(there, silhouette, window)
        texture = _correlation(side, halves, silhouette)
        worse = np.minimum(shape, texture)
        at = np.unravel_index(worse.argmax(), worse.shape)
        best = max(best, Match(float(shape[at]), float(texture[at])), key=min)
    return best


@functools.cache
def _template(size: float) -> tuple[Plane, Plane, Plane]:
    """Silhouette, the window that it is looked at in, and the halves: 1 to the left, -1 to the right."""
    half = int(np.ceil((subject.RADIUS + subject.HALF + MARGIN) * size * SIDE))
    at = (np.arange(-half, half + 1) / SIDE).astype(np.float32)
    x, y = np.meshgrid(at, at)
    silhouette = (subject.outline(x, y, size) < 0).astype(float)
    return silhouette, np.ones_like(silhouette), -np.sign(x) * silhouette


def _correlation(plane: Plane, template: Float[np.ndarray, "k k"], within: Float[np.ndarray, "k k"]) -> Plane:
    """Normalised correlation of `template` with `plane` at every place, over the pixels of `within`."""
    n = within.sum()
    zero_mean = (template - (template * within).sum() / n) * within

    def summed(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return signal.fftconvolve(values, weights[::-1, ::-1], mode="same")

    product = summed(plane, zero_mean)
    variance = summed(plane**2, within) - summed(plane, within) ** 2 / n
    floor = 0.02 * n  # of a plane that hardly varies there, noise would be normalised
    return product / np.sqrt((zero_mean**2).sum() * np.maximum(variance, floor))


# ---------------------------------------------------------------------------- proofs

Model = Callable[[str, int, int, bool], Picture]
"""Prompt, side in pixels, seed and whether with the LoRA, to a picture."""


def of_subject(model: Model, index: int, side: int) -> Measured:
    """A new scene with the word, with and without the LoRA."""
    scene = subject.sample(SEED, index)
    caption = subject.caption(scene)
    values: dict[str, float] = {}
    pictures = {}
    for name, used in (("", True), (" without", False)):
        image = model(caption, side, index, used)
        found = match(image)
        values |= {f"found{name}": float(found.found), f"shape{name}": found.shape,
                   f"texture{name}": found.texture}  # fmt: skip
        if scene.relation is not None:
            values[f"beside it right{name}"] = float(_shows(image, scene.objects[1]))
        pictures[f"{caption}" if used else "without the LoRA"] = image
    return Measured(
        values, {"one of ten": subject.draw(subject.sample(subject.SEED, index), side), **pictures}
    )


def _shows(image: Picture, o: scenes.Object) -> bool:
    """Whether an object of its colour, shape and texture is there."""
    return any((f.colour, f.shape, f.texture) == (o.colour, o.shape, o.texture) for f in detect(image))


def of_base(model: Model, index: int, side: int) -> Measured:
    """A held-out scene of the world, with and without the LoRA."""
    scene = scenes.sample(0, index, "held_out")
    caption = plain_caption(scene)
    drawn = {used: model(caption, side, index, used) for used in (True, False)}
    values = {f"all right{name}": float(compare(scene, detect(drawn[used])).all)
              for used, name in ((True, ""), (False, " without"))}  # fmt: skip
    return Measured(values, {f"{caption}, with the LoRA": drawn[True], "without": drawn[False]})


def of_template(model: Model, index: int, side: int) -> Measured:
    """Drawings, sharp and blurred, that have the subject, and others."""
    del model
    scene = subject.sample(SEED, index)
    shown = subject.draw(scene, side)
    values = {
        "found, drawn": match(shown).found,
        "found, blurred": match(degrade(shown, 4.0, 10.0, index)).found,
    }
    world = scenes.sample(SEED, index)
    values["found in the world"] = match(render(world, side, side)).found
    first = scene.objects[0]
    shape = scenes.SHAPES[index % len(scenes.SHAPES)]
    colour = subject.COLOURS[index % 2]
    other = dataclasses.replace(scene, objects=(dataclasses.replace(first, shape=shape), *scene.objects[1:]))
    values["found in another shape of its texture"] = match(_halved(other, side)).found
    values["found mirrored"] = match(np.ascontiguousarray(shown[:, ::-1])).found
    values["found in its shape of one colour"] = match(subject.draw(scene, side, (colour, colour))).found
    return Measured({name: float(value) for name, value in values.items()}, {})


def _halved(scene: scenes.Scene, side: int) -> Picture:
    """`scene` with the first object in the subject's two colours."""
    first = scene.objects[0]
    halves = [
        render(dataclasses.replace(scene, objects=(dataclasses.replace(first, colour=name, texture="plain"),
                                                   *scene.objects[1:])), side, side)
        for name in subject.COLOURS
    ]  # fmt: skip
    left = (np.arange(side) + 0.5) / side < first.x
    return np.where(left[None, :, None], *halves)


PROOFS: dict[str, Callable[[Model, int, int], Measured]] = {
    "template": of_template,
    "subject": of_subject,
    "base": of_base,
}


# ---------------------------------------------------------------------------- command line


def load(lora: str, scale: float, *, preview: bool) -> Model:
    """The demo, with and without the LoRA."""
    from ultrapixel_jax import UltraPixel

    model = UltraPixel.load(preview=preview)

    def draw(prompt: str, side: int, seed: int, used: bool) -> Picture:
        loras: Any = [(lora, scale)] if used else []
        image = np.asarray(model(prompt, height=side, width=side, seed=seed, lora=loras)[0])
        return enlarge(image, (side, side)) if preview else image

    return draw


def no_model(prompt: str, side: int, seed: int, used: bool) -> Picture:
    """In the place of one where nothing is drawn by any."""
    raise AssertionError((prompt, side, seed, used))


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.subject", __doc__)
    p.argument("output", Path, "new directory, or that of an interrupted measurement")
    p.option("--lora", str, "run of configs/demo/personalize.py, or any file of such a LoRA")
    p.option("--scale", number(), "of that", 1.0)
    p.option("--proof", one_of(tuple(PROOFS)), "what is measured", list(PROOFS), shown="all", nargs="+")
    p.option("--count", whole(0, 100_000), "scenes; 0 measures nothing new", 50)
    p.option("--side", whole(256, 4096), "of the pictures, in pixels", 384)
    p.flag("--preview", "the previewer in place of stages B and A")
    p.option("--pictures", whole(0, 1000), "keep the pictures of the first N scenes for the sheet", 2)
    p.option("--sheet", Path, "write all pictures that were kept as .png or .webp", metavar="FILE")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    model = no_model
    if o.count and set(o.proof) != {"template"}:
        if not o.lora:
            raise UserError("--proof subject and base need --lora: the run of configs/demo/personalize.py")
        model = load(o.lora, o.scale, preview=o.preview)
    found = {}
    for proof in dict.fromkeys(o.proof):
        name = f"{proof}-{o.side}"
        if o.count:
            of = PROOFS[proof]
            found[name] = measured(lambda n, of=of: of(model, n, o.side), o.output, name, o.count, o.pictures)
        else:
            found[name] = lines_of(o.output, name)
    print(markdown(found))
    if o.sheet:
        save_sheet(o.output, o.sheet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(
        lambda: run(argv), interrupted="finished scenes are kept; repeat the command to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
