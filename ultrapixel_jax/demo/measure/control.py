"""What steers a picture beside its prompt, measured on the demo by its detector, and a contact sheet of it.

    python -m ultrapixel_jax.demo.measure.control OUT --proof edges --controlnet RUN --count 50
    python -m ultrapixel_jax.demo.measure.control OUT --proof inpainting start upscale --count 50
    python -m ultrapixel_jax.demo.measure.control OUT --proof edges start --count 0 --sheet sheet.webp

- `edges`: pictures of held-out scenes drawn with the edges of the scene's drawing as control, and without;
- `inpainting`: one object of a drawing is painted over, and the caption says another colour of it;
- `start`: from a drawing of one scene to the caption of another, at strengths 0.3, 0.6, 0.9, and from noise;
- `upscale`: drawings of 384² drawn at 1536², beside bicubic interpolation.

OUT gets a line per scene and the pictures of the first ones. Kill the program at any moment, repeat the
command, and it goes on; a larger --count adds scenes. `--sheet` shows what is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from scipy import ndimage

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, one_of, whole
from ultrapixel_jax.controls import canny_map
from ultrapixel_jax.controls.canny import SIDE
from ultrapixel_jax.demo.measure.detect import compare, detect
from ultrapixel_jax.demo.measure.proofs import (
    SHOWN,
    Measured,
    Picture,
    lines_of,
    markdown,
    measured,
    save_sheet,
)
from ultrapixel_jax.demo.measure.scores import same_layout
from ultrapixel_jax.demo.measure.sharpness import enlarge, sharpness
from ultrapixel_jax.demo.measure.validate import changed
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError

WITHIN = 2
"""Pixels of the edge map by which an edge may be off."""
STRENGTHS = (0.3, 0.6, 0.9)
FEATHER = 16
MARGIN = 0.04
"""Around an object that is painted over, in shorter sides."""
SMALL = 384
"""Side of what is drawn larger."""


Model = Callable[..., Picture]
"""Prompt, side in pixels, seed and steering to a picture."""


# ---------------------------------------------------------------------------- proofs


def edges(image: Picture) -> Bool[np.ndarray, "s s"]:
    """Edges at the ControlNet's own 224×224."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return canny_map(np.asarray(small))[..., 0] > 0


def agreement(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"], within: int = WITHIN) -> float:
    """F1 of edge pixels that have one of the other map within so many pixels, in any direction."""
    if not found.any() or not truth.any():
        return float(found.any() == truth.any())

    def near(of: np.ndarray, other: np.ndarray) -> float:
        away: Any = ndimage.distance_transform_edt(~other)
        return float((away[of] <= within).mean())

    precision, recall = near(found, truth), near(truth, found)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def right(scene: scenes.Scene, image: Picture) -> float:
    """Whether everything is as `scene` says."""
    return float(compare(scene, detect(image)).all)


def by_edges(model: Model, index: int, side: int, strength: float) -> Measured:
    """With the edges of the scene's drawing, and without."""
    from ultrapixel_jax.sampling.conditions import Canny

    scene = scenes.sample(0, index, "held_out")
    source, caption = render(scene, side, side), plain_caption(scene)
    alone = model(caption, side, index)
    steered = model(caption, side, index, control=Canny(source, strength=strength))
    truth = edges(source)
    values = {
        "F1": agreement(edges(steered), truth),
        "F1 without": agreement(edges(alone), truth),
        "all right": right(scene, steered),
        "all right without": right(scene, alone),
    }
    edge_map = np.repeat(255 * truth[..., None].astype(np.uint8), 3, axis=2)
    return Measured(values, {"edges": edge_map, "drawn with them": steered, "without": alone})


def by_inpainting(model: Model, index: int, side: int, strength: float) -> Measured:
    """The first object of a drawing, painted anew in another colour."""
    del strength
    scene = scenes.sample(0, index, "held_out")
    wanted = changed(scene, "colour", 2 * index)  # an even number: the first object
    source = render(scene, side, side)
    mask = mask_of(scene.objects[0], side)
    image = model(
        plain_caption(wanted), side, index, image=source, mask=255 * mask.astype(np.uint8), feather=FEATHER
    )
    near: Any = ndimage.maximum_filter(mask, 2 * FEATHER + 1)
    outside = ~near
    values = {
        "outside unchanged": float((image[outside] == source[outside]).all()),
        "all right": right(wanted, image),
    }
    shown = np.where(mask[..., None], np.uint8(255), source)
    return Measured(values, {"to be painted": shown, plain_caption(wanted): image})


def mask_of(o: scenes.Object, side: int) -> Bool[np.ndarray, "s s"]:
    """A square around an object."""
    at = (np.arange(side) + 0.5) / side
    half = o.size / 2 + MARGIN
    return (np.abs(at - o.y) <= half)[:, None] & (np.abs(at - o.x) <= half)[None]


def from_start(model: Model, index: int, side: int, strength: float) -> Measured:
    """A drawing of one scene, and the caption of another."""
    del strength
    scene, other = scenes.sample(0, index, "held_out"), scenes.sample(1, index, "held_out")
    source, caption = render(other, side, side), plain_caption(scene)
    drawn = {f"{s:g}": model(caption, side, index, image=source, strength=s) for s in STRENGTHS}
    drawn["noise"] = model(caption, side, index)
    away = {
        f"distance at {name}": float(np.sqrt(np.square(image.astype(float) - source).mean()))
        for name, image in drawn.items()
    }
    found = {f"all right at {name}": right(scene, image) for name, image in drawn.items()}
    return Measured({**away, **found}, {f"start ({caption})": source, **drawn})


def by_upscaling(model: Model, index: int, side: int, strength: float) -> Measured:
    """A small drawing, larger."""
    del strength
    scene = scenes.sample(0, index, "held_out")
    small = render(scene, SMALL, SMALL)
    large, bicubic = model(plain_caption(scene), side, index, upscale=small), enlarge(small, (side, side))
    low, high = detect(small), detect(large)
    values = {"layout kept": float(bool(same_layout(low, high)))}
    for name, image, objects in (("", large, high), (" bicubic", bicubic, low)):
        found = sharpness(image, objects, (SMALL, SMALL))
        for what in ("edges", "width"):
            if (value := getattr(found, what)) is not None:
                values[f"{what}{name}"] = value
    middle = tuple(slice(int(at * side) - SHOWN // 2, int(at * side) + SHOWN // 2) for at in _edge(scene))
    return Measured(values, {"bicubic, 1:1": bicubic[middle], "drawn larger, 1:1": large[middle]})


def _edge(scene: scenes.Scene) -> tuple[float, float]:
    """Height and width at which a piece of an object's outline is, in sides."""
    o = scene.objects[-1]
    return min(max(o.y, 0.1), 0.9), min(max(o.x + o.size / 2, 0.1), 0.9)


PROOFS: Mapping[str, tuple[Callable[[Model, int, int, float], Measured], int]] = {
    "edges": (by_edges, 768),
    "inpainting": (by_inpainting, 384),
    "start": (from_start, 384),
    "upscale": (by_upscaling, 1536),
}
"""How each is measured, and at which side unless another is asked for."""


# ---------------------------------------------------------------------------- all scenes


def measure(
    model: Model, output: Path, proof: str, side: int, count: int, strength: float = 1.0, pictures: int = 2
) -> list[dict[str, float]]:
    """Lines of the first `count` scenes; what is missing is drawn.

    Raises:
        UserError: `output` cannot be written.
    """
    run, _ = PROOFS[proof]
    return measured(lambda n: run(model, n, side, strength), output, f"{proof}-{side}", count, pictures)


# ---------------------------------------------------------------------------- command line


def load(controlnet: str | None) -> Model:
    """The demo, with a further ControlNet."""
    from ultrapixel_jax import UltraPixel

    model = UltraPixel.load(controlnets=[controlnet] if controlnet else [])

    def draw(prompt: str, side: int, seed: int, **steering: Any) -> Picture:
        return np.asarray(model(prompt, height=side, width=side, seed=seed, **steering)[0])

    return draw


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.control", __doc__)
    p.argument("output", Path, "new directory, or that of an interrupted measurement")
    p.option("--proof", one_of(tuple(PROOFS)), "what is measured", list(PROOFS), shown="all", nargs="+")
    p.option("--count", whole(0, 100_000), "scenes; 0 measures nothing new", 50)
    p.option("--side", whole(256, 4096), "of the pictures, in pixels", shown="768, 384, 384, 1536")
    p.option("--controlnet", str, "a checkpoint or run with a ControlNet for edges, for that proof")
    p.option("--strength", number(), "of that", 1.0)
    p.option("--pictures", whole(0, 1000), "keep the pictures of the first N scenes for the sheet", 2)
    p.option("--sheet", Path, "write all pictures that were kept as .png or .webp", metavar="FILE")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if "edges" in o.proof and o.count and not o.controlnet:
        raise UserError("--proof edges needs a ControlNet: name the run of configs/demo/controlnet.py with "
                        "--controlnet, or leave that proof out")  # fmt: skip
    model = load(o.controlnet) if o.count else None
    found = {}
    for proof in dict.fromkeys(o.proof):
        side = o.side or PROOFS[proof][1]
        name = f"{proof}-{side}"
        if model is None:
            found[name] = lines_of(o.output, name)
        else:
            found[name] = measure(model, o.output, proof, side, o.count, o.strength, o.pictures)
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
