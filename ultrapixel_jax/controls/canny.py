"""Edges by Canny's method, as OpenCV has them bit for bit, and the released steps around it (§10).

It is short with scipy, which is here already; OpenCV would be 150 megabytes more for one function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

LOW, HIGH = 100, 200
"""Released thresholds, of |∂x| + |∂y| by Sobel's filters, in steps of a byte."""
SIDE = 224
"""Of the square in which edges are looked for, whatever the picture's size and aspect."""
TAN = 13573
"""tan 22.5° in 15 bits after the point."""


def canny_map(
    image: UInt8[np.ndarray, "h w 3"],
    low: float | int = LOW,
    high: float | int = HIGH,
    side: int = SIDE,
) -> Float32[np.ndarray, "h w 1"]:
    """What canny's ControlNet sees of an RGB picture: its edges at the picture's size, in [0, 1].

    As released: the picture is made a square of `side`, and the edges there are enlarged, both bilinear
    without antialiasing.
    """
    small = resize_bilinear(image.astype(np.float32) / np.float32(255), (side, side))
    edges = canny((small * np.float32(255)).astype(np.uint8), low, high)
    return resize_bilinear(edges[..., None].astype(np.float32), image.shape[:2])


def canny(
    image: UInt8[np.ndarray, "h w c"], low: float | int = LOW, high: float | int = HIGH
) -> Bool[np.ndarray, "h w"]:
    """Edges of a picture at its own size: `cv2.Canny(image, low, high)`.

    Of several channels, that with the steepest slope counts, pixel by pixel.
    """
    from scipy import ndimage  # whose import takes longer than all else that a plain picture imports here

    low, high = sorted((np.floor(low), np.floor(high)))
    dx, dy = _slopes(image)
    steep = np.abs(dx) + np.abs(dy)
    best = steep.argmax(2)[..., None]  # the first of equal ones, as there
    dx, dy, steep = (np.take_along_axis(v, best, 2)[..., 0] for v in (dx, dy, steep))
    ridge = (steep > low) & _is_ridge(dx, dy, steep)
    labelled: Any = ndimage.label(ridge, np.ones((3, 3)))
    parts, count = labelled
    kept = np.zeros(count + 1, bool)
    kept[parts[ridge & (steep > high)]] = True
    return kept[parts]


def _slopes(
    image: UInt8[np.ndarray, "h w c"],
) -> tuple[Int[np.ndarray, "h w c"], Int[np.ndarray, "h w c"]]:
    """Sobel's 3×3 filters along x and y; the outermost pixels are repeated."""
    x = np.pad(image.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = x[:-2] + 2 * x[1:-1] + x[2:]
    across = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    return down[:, 2:] - down[:, :-2], across[2:] - across[:-2]


def _is_ridge(
    dx: Int[np.ndarray, "h w"], dy: Int[np.ndarray, "h w"], steep: Int[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Whether no neighbour across the edge is steeper; of two that are equal, one counts."""
    around = np.pad(steep, 1)
    h, w = steep.shape

    def at(y: int, x: int) -> np.ndarray:
        return around[1 + y : 1 + y + h, 1 + x : 1 + x + w]

    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << 15
    flat, upright = y < x * TAN, y > x * TAN + (x << 16)
    falling = (dx ^ dy) < 0
    slanted = np.where(
        falling,
        (steep > at(-1, 1)) & (steep > at(1, -1)),
        (steep > at(-1, -1)) & (steep > at(1, 1)),
    )
    sides = (steep > at(0, -1)) & (steep >= at(0, 1))
    ends = (steep > at(-1, 0)) & (steep >= at(1, 0))
    return np.where(flat, sides, np.where(upright, ends, slanted))


def resize_bilinear(x: Float32[np.ndarray, "h w c"], size: tuple[int, int]) -> Float32[np.ndarray, "h2 w2 c"]:
    """Bilinear between the centres of pixels, without antialiasing: torch's `interpolate`."""
    for axis, target in enumerate(size):
        source = x.shape[axis]
        if source == target:
            continue
        ratio = np.float32(source) / np.float32(target)
        place = np.maximum(
            (np.arange(target, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5), 0
        )
        first = place.astype(np.int64)
        weight = (place - first.astype(np.float32)).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        a, b = np.take(x, first, axis), np.take(x, np.minimum(first + 1, source - 1), axis)
        x = a * (1 - weight) + b * weight
    return x
