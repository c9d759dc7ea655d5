"""How reliable the detector is: its verdicts on rendered scenes, whose contents are known.

    python -m ultrapixel_jax.demo.measure.validate --count 500 --sizes 384 768 1536
    python -m ultrapixel_jax.demo.measure.validate --count 500 --sizes 384 --blur 3 --noise 10
    python -m ultrapixel_jax.demo.measure.validate --count 120 --sizes 384 256x512 --encoded previewer

With --encoded they are first encoded to latents, and decoded by the previewer or by stages B and A: what
latents can hold, and decoders show.
Every second scene is held out. "Sensitivity": each scene is also held against a picture in which one
property of one object is another; it is the share of these where the verdict on that property is "wrong".
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, one_of, whole
from ultrapixel_jax.data.config import MULTIPLE
from ultrapixel_jax.demo.config import config
from ultrapixel_jax.demo.measure.detect import Verdict, compare, detect
from ultrapixel_jax.demo.measure.evaluate import square
from ultrapixel_jax.demo.measure.sharpness import enlarge
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import HW, Bucket

DECODERS = ("previewer", "stages")
"""Of latents: the previewer, or stages B and A."""
PROPERTIES = ("colour", "shape", "texture", "relation")
_TURNED = {"left of": "above", "above": "right of", "right of": "below", "below": "left of"}


def degrade(
    image: UInt8[np.ndarray, "h w 3"], blur: float, noise: float, seed: int = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture after a Gaussian blur and with Gaussian noise.

    Args:
        image: RGB.
        blur: standard deviation in 512ths of the shorter side.
        noise: standard deviation in steps of 255.
        seed: of the noise.
    """
    if blur == 0 and noise == 0:
        return image
    sigma = blur * min(image.shape[:2]) / 512
    values = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    if noise:
        values += noise * np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def can_change(scene: scenes.Scene, what: str) -> bool:
    """Whether `changed` has another value for this property."""
    return what != "relation" or scene.relation in _TURNED


def changed(scene: scenes.Scene, what: str, index: int) -> scenes.Scene:
    """`scene` with another value of one of `PROPERTIES`; `index` chooses the object and the value.

    Raises:
        UserError: an unknown property, or a relation that cannot be changed.
    """
    if what not in PROPERTIES or not can_change(scene, what):
        raise UserError(f"{what!r:.80} of a scene with relation {scene.relation!r} cannot be changed")
    objects = list(scene.objects)
    if what == "relation":  # a quarter turn about the middle of both
        assert scene.relation is not None
        x, y = ((a + b) / 2 for a, b in zip(*((o.x, o.y) for o in objects)))
        turned = tuple(dataclasses.replace(o, x=x - (o.y - y), y=y + (o.x - x)) for o in objects)
        return dataclasses.replace(scene, objects=turned, relation=_TURNED[scene.relation])

    which = index % len(objects)
    outer = scene.relation == "inside" and which == 1
    options: Sequence[str] = {
        "colour": tuple(scenes.COLOURS),
        "shape": scenes.ROOMY if outer else scenes.SHAPES,
        "texture": scenes.TEXTURES,
    }[what]
    taken = [o.colour for o in objects] if what == "colour" else [getattr(objects[which], what)]
    rest = [value for value in options if value not in taken]
    objects[which] = dataclasses.replace(objects[which], **{what: rest[index % len(rest)]})
    return dataclasses.replace(scene, objects=tuple(objects))


Show = Callable[[scenes.Scene, HW], UInt8[np.ndarray, "h w 3"]]
"""The picture of a scene at a height and width."""


def drawn(scene: scenes.Scene, size: HW) -> UInt8[np.ndarray, "h w 3"]:
    """The picture itself."""
    return render(scene, *size)


def through_latents(decoders: str) -> Show:
    """The picture after the demo's EffNet encoder and its decoders: what stage C at its best would draw.

    Args:
        decoders: one of `DECODERS`.
    """
    import jax
    import jax.numpy as jnp

    from ultrapixel_jax.checkpoints.weights import load_network
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
    from ultrapixel_jax.sampling.pipeline import Cascade
    from ultrapixel_jax.sampling.requests import Request

    executables = compilation_cache.executables(compilation_cache.use())
    cascade = Cascade.load(None, dtype="float32", preview=decoders == "previewer", executables=executables)
    encoder = EffnetEncoder(config.effnet_encoder)
    variables: Any = load_network("effnet_encoder", None, None, mesh=None, dtype="float32")

    @jax.jit
    def encoded(pixels: Any) -> Any:
        return encoder.apply(variables["effnet_encoder"], pixels.astype(jnp.float32) / 255)

    def show(scene: scenes.Scene, size: HW) -> UInt8[np.ndarray, "h w 3"]:
        bucket = Bucket.of(*size)
        height, width = (MULTIPLE * side for side in bucket.hr)
        latent = np.asarray(encoded(render(scene, height, width)[None]))
        request = Request(plain_caption(scene), "", 0, *size, config.sampling_c, config.sampling_b)
        image = cascade.decode([request], bucket, latent)[0]
        return enlarge(image, size) if cascade.preview else image[: size[0], : size[1]]

    return show


def validate(
    *,
    count: int,
    size: HW,
    blur: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
    quiet: bool = False,
    show: Show = drawn,
) -> dict[str, float]:
    """Shares of right verdicts on `count` scenes shown at `size` (height, width), by property.

    `wrong NAME` is the share of the pictures with another value of that property whose verdict says so.
    """
    from tqdm import tqdm

    right, total = Counter[str](), Counter[str]()
    height, width = size
    for index in tqdm(range(count), unit="picture", desc=f"{height}x{width} pixels", disable=quiet):
        scene = scenes.sample(seed, index, scenes.SPLITS[index % 2], height / width)

        def look(shown: scenes.Scene, index: int = index, scene: scenes.Scene = scene) -> Verdict:
            return compare(scene, detect(degrade(show(shown, size), blur, noise, index)))

        verdict = look(scene)
        for name in (*PROPERTIES, "number", "all"):
            value = getattr(verdict, name)
            total[name] += value is not None
            right[name] += bool(value)
        what = PROPERTIES[index // 2 % len(PROPERTIES)]
        if can_change(scene, what):
            total[f"wrong {what}"] += 1
            right[f"wrong {what}"] += not getattr(look(changed(scene, what, index // 8)), what)
    return {name: right[name] / total[name] for name in total if total[name]}


# ---------------------------------------------------------------------------- command line


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.validate", __doc__)
    p.option("--count", whole(1, 10**6), "scenes of each size", 500)
    p.option("--sizes", square, "pixels on a side, or HEIGHTxWIDTH", [(384, 384), (768, 768), (1536, 1536)],
             shown="384 768 1536", nargs="+", metavar="N")  # fmt: skip
    p.option("--encoded", one_of(DECODERS), "encode them first, by the demo, and decode the latents")
    p.option("--blur", number(low=0, high=100), "deviation of a Gaussian blur in 512ths of the side", 0.0)
    p.option("--noise", number(low=0, high=100), "deviation of noise, of 255", 0.0)
    p.option("--seed", whole(0, scenes.MAX_SEED), "of the scenes", 0)
    p.flag("--quiet", "no progress bar")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        values = parser().read(argv)
        show = through_latents(values.encoded) if values.encoded else drawn
        for height, width in values.sizes:
            shares = validate(
                count=values.count, size=(height, width), blur=values.blur, noise=values.noise,
                seed=values.seed, quiet=values.quiet, show=show,
            )  # fmt: skip
            text = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
            how = f"blur {values.blur:g}, noise {values.noise:g}"
            how += f", {values.encoded}" if values.encoded else ""
            print(f"{height}x{width} pixels, {how}: {text}", flush=True)

    return commands.run(run, interrupted="nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
