"""The pictures that a request is steered by, as arrays for the networks, and back over what was drawn.

All of it on the host, in numpy and PIL. Pairs are (height, width).
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from ultrapixel_jax.controls import canny_map, inpainting_map
from ultrapixel_jax.controls.canny import SIDE
from ultrapixel_jax.sampling.conditions import Control, Inpaint, own_side
from ultrapixel_jax.sampling.given import GivenPicture
from ultrapixel_jax.sizes import HW

ENCODER_FACTOR = 32
"""Pixels that the EffNet encoder takes for each latent position."""
PAINTED = 127
"""Grey level of a mask above which it is painted over."""
KEPT = 16
"""Control images that are kept: all pictures of a prompt have the same."""


# ---------------------------------------------------------------------------- controls


def control_size(pixels: HW, latent: HW, side: int, control: Control | None) -> HW:
    """Size of a control image for a picture of `pixels` and a pass of `latent`.

    Its shorter side is `side`, as trained; or, for the HR pass of `control`, that of its own picture, up to
    what the latent shows of it.
    """
    own = own_side(control) if control is not None else None
    if own is not None:
        side = min(max(own, side), ENCODER_FACTOR * min(latent))
    short = min(pixels)
    height, width = (round(side * s / short) for s in pixels)
    return height, width


@functools.lru_cache(maxsize=KEPT)
def control_image(control: Control, size: HW, side: int) -> np.ndarray:
    """What the ControlNet of `control` is shown, uint8 (h, w, c); of super-resolution the small picture.

    Args:
        control: what to make it of.
        size: of the control image.
        side: its shorter side in training, at which edges are looked for in a square of 224.
    """
    if control.ready:
        image = control.image.image().convert("L").resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image)[..., None]
    image = np.asarray(control.image.image().resize(size[::-1], Image.Resampling.BILINEAR))
    if control.kind == "canny":
        square = round(SIDE * min(size) / side)
        return np.round(255 * canny_map(image, *control.thresholds, square)).astype(np.uint8)
    if control.kind == "inpainting":
        assert control.mask is not None
        return inpainting_map(image, painted(control.mask, size))
    return np.ascontiguousarray(image[::2, ::2])


def shown(control: Control, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c2"]:
    """A control image as a person looks at it."""
    return image[..., :3] if control.kind == "inpainting" else image


# ---------------------------------------------------------------------------- pictures and masks


def fitted(picture: GivenPicture, latent: HW) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as the encoder takes it, whose latent has the size `latent`."""
    size = (ENCODER_FACTOR * latent[1], ENCODER_FACTOR * latent[0])
    return np.asarray(picture.image().resize(size, Image.Resampling.BICUBIC))


def painted(mask: GivenPicture, size: HW) -> Bool[np.ndarray, "h w"]:
    """Where a mask of `size` is white."""
    image = mask.image().convert("L")
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(image) > PAINTED


def latent_mask(mask: GivenPicture, latent: HW) -> Float[np.ndarray, "h w 1"]:
    """1 at each latent position that has a painted pixel."""
    out = painted(mask, (mask.height, mask.width))
    for axis, count in enumerate(latent):
        out = _largest(out, axis, count)
    return out[..., None].astype(np.float32)


def _largest(x: Bool[np.ndarray, "_ _"], axis: int, count: int) -> Bool[np.ndarray, "_ _"]:
    """Max-pooled along `axis` to `count` cells, which share the pixels on their borders."""
    length = x.shape[axis]
    x = np.moveaxis(x, axis, 0)
    cells = [x[i * length // count : max(-(-(i + 1) * length // count), 1)].max(0) for i in range(count)]
    return np.moveaxis(np.stack(cells), 0, axis)


def pasted(image: UInt8[np.ndarray, "h w 3"], inpaint: Inpaint) -> UInt8[np.ndarray, "h w 3"]:
    """`image`, with the untouched pixels of the picture that it was painted into.

    Between the mask and `feather` pixels from it, one turns into the other.
    """
    size = (image.shape[0], image.shape[1])
    under = inpaint.image.image()
    if under.size != size[::-1]:
        under = under.resize(size[::-1], Image.Resampling.BICUBIC)
    weight = feathered(painted(inpaint.mask, size), inpaint.feather)[..., None]
    mixed = np.round(weight * image + (1 - weight) * np.asarray(under, np.float32)).astype(np.uint8)
    return np.where(weight == 0, np.asarray(under), mixed)


def feathered(mask: Bool[np.ndarray, "h w"], feather: int) -> Float[np.ndarray, "h w"]:
    """1 in the mask, 0 from `feather` pixels outside of it on, with a slope between them.

    The mask is grown by half the feather and blurred by a box that reaches as far.
    """
    from scipy import ndimage  # most pictures do without, and start sooner

    reach = feather // 2
    out = _grown(mask, reach).astype(np.float32)
    for axis in (0, 1):
        out = ndimage.uniform_filter1d(out, 2 * reach + 1, axis, mode="nearest")
    # The filter adds up as it goes along, and is off by its rounding: the ends are set.
    return np.where(mask, 1, np.where(_grown(mask, 2 * reach), np.clip(out, 0, 1), 0)).astype(np.float32)


def _grown(mask: Bool[np.ndarray, "h w"], by: int) -> Bool[np.ndarray, "h w"]:
    """`mask` and all pixels that are at most `by` from it along both axes."""
    from scipy import ndimage

    for axis in (0, 1):
        mask = ndimage.maximum_filter1d(mask, 2 * by + 1, axis, mode="nearest")
    return mask
