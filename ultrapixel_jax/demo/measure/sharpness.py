"""How sharp the edges and textures of a picture are, beyond what a smaller picture could hold.

    high = sharpness(picture, detect(picture), (512, 512))
    low = sharpness(enlarge(lr_picture, picture.shape[:2]), detect(lr_picture), (512, 512))

A picture of h × w pixels holds frequencies up to its Nyquist frequency: h/2 periods over the height, w/2
over the width. In the cosine transform (DCT-II) of the larger picture these are the first h × w
coefficients. Without them, what remains is the detail that the small picture cannot have: the square root
of its mean square, in steps of 255, is

- `edges`: within `BAND` of the objects' outlines;
- `textures`: inside the objects, farther from outlines than that.

An enlarged picture has next to none of it (bicubic interpolation leaks a little). Noise is detail, too:
`width` cannot be raised by it, the median over the outlines of the contrast across the edge over its
steepest slope, in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import fft, ndimage

from ultrapixel_jax.demo.measure.detect import Found
from ultrapixel_jax.demo.world.render import HAIRLINE, MOAT, outline
from ultrapixel_jax.demo.world.scenes import SHAPES, Object

BAND = 0.012
"""Half the width of the band along an outline, in shorter sides: room for blur and for an inexact fit."""
ACROSS = 0.01
"""How far edges are followed to both sides of the outline, in shorter sides."""
FAINT = 20
"""Contrast, of 255, below which an edge has no width."""
POINTS = 400
"""Points of each outline where the width is measured."""

HW = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Measures of one picture; None where there is nothing to measure."""

    edges: float | None
    """Detail along edges, in steps of 255."""
    textures: float | None
    """Detail inside objects, in steps of 255."""
    width: float | None
    """Of edges, in pixels."""


def enlarge(image: UInt8[np.ndarray, "h w 3"], size: HW) -> UInt8[np.ndarray, "h2 w2 3"]:
    """`image` by bicubic interpolation at `size` (height, width)."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def sharpness(
    image: UInt8[np.ndarray, "h w 3"], objects: Sequence[Found] | Sequence[Object], lr: HW
) -> Sharpness:
    """Sharpness of a picture at its objects.

    Args:
        image: RGB.
        objects: where they are; those of unclear shape are left out.
        lr: height and width of the small picture, in pixels.
    """
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    detail = beyond(luma, lr) ** 2
    known = [o for o in objects if o.shape in SHAPES]
    fields = [_distance(o, luma.shape) for o in known]
    edge, inside = np.zeros(luma.shape, bool), np.zeros(luma.shape, bool)
    for d in fields:
        edge |= np.abs(d) < BAND
        inside |= d < -(BAND + HAIRLINE[1])
    for o, d in zip(known, fields):
        if any(o.size < other.size for other in known):  # the rim of one that lies inside is no texture
            inside &= (d < -(BAND + HAIRLINE[1])) | (d > MOAT + BAND)
    widths = np.concatenate([_widths(luma, d) for d in fields]) if fields else np.empty(0)
    return Sharpness(
        _root_mean(detail, edge),
        _root_mean(detail, inside),
        float(np.median(widths)) if len(widths) else None,
    )


def beyond(luma: Float[np.ndarray, "h w"], lr: HW) -> Float[np.ndarray, "h w"]:
    """What a picture of `lr` pixels cannot hold of `luma`."""
    coefficients = np.asarray(fft.dctn(luma, norm="ortho"))
    coefficients[: lr[0], : lr[1]] = 0
    return np.asarray(fft.idctn(coefficients, norm="ortho"))


def _distance(o: Found | Object, size: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    """Distance of every pixel to an object's outline, negative inside, in shorter sides."""
    height, width = size
    unit = min(height, width)
    y = (np.arange(height, dtype=np.float32) + 0.5 - (height - unit) / 2) / unit - o.y
    x = (np.arange(width, dtype=np.float32) + 0.5 - (width - unit) / 2) / unit - o.x
    return outline(o.shape, x[None].astype(np.float32), y[:, None].astype(np.float32), o.size)


def _widths(luma: Float[np.ndarray, "h w"], d: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Widths of the edge at points of an outline, in pixels."""
    unit = min(luma.shape)
    y, x = np.nonzero(np.abs(d[1:-1, 1:-1]) * unit < 0.5)
    step = max(1, len(y) // POINTS)
    y, x = y[::step] + 1, x[::step] + 1
    normal = np.stack([d[y + 1, x] - d[y - 1, x], d[y, x + 1] - d[y, x - 1]])
    normal = normal / np.maximum(np.hypot(*normal), 1e-9)
    away = np.arange(-ACROSS * unit, ACROSS * unit, 0.5, dtype=np.float32)
    at = np.stack([y, x])[:, :, None] + normal[:, :, None] * away
    profile = ndimage.map_coordinates(luma, at, order=1, mode="nearest")
    slope = np.abs(np.diff(profile, axis=1)).max(1, initial=0) / 0.5
    contrast = profile.max(1) - profile.min(1)
    return (contrast / np.maximum(slope, 1e-6))[contrast >= FAINT]


def _root_mean(squares: Float[np.ndarray, "h w"], where: Bool[np.ndarray, "h w"]) -> float | None:
    return float(np.sqrt(squares[where].mean())) if where.any() else None
