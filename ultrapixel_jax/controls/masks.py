"""Inpainting: what its ControlNet sees of a picture and a mask, and random masks for training (§10)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageDraw

NUMBERS = 64
"""Random numbers that a mask takes, at most."""
INVERTED = 0.4
"""Share of the masks that are inverted: all but the drawn is to be painted."""
STROKES, POINTS = 4, 4
"""Most brush strokes of a mask, and corners of each after its first."""
BOXES = 3
"""Most boxes of a mask."""


def inpainting_map(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 4"]:
    """RGB, white where `mask` says that it is to be painted, and the mask as fourth channel; 255 is 1."""
    shown = np.where(mask[..., None], np.uint8(255), image)
    return np.concatenate([shown, 255 * mask[..., None].astype(np.uint8)], axis=2)


def random_mask(numbers: Float64[np.ndarray, " n"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Where a training picture of `size` is to be painted: brush strokes or boxes, or all but these.

    A function of `NUMBERS` random numbers in [0, 1). The mask has both kinds of pixels.
    """
    height, width = size
    draw = iter(numbers)
    inverted, brushes = next(draw) < INVERTED, next(draw) < 0.5
    mask = Image.new("1", (width, height))
    paint = ImageDraw.Draw(mask)
    if brushes:
        for _ in range(1 + int(next(draw) * STROKES)):
            _stroke(paint, draw, height, width)
    else:
        for _ in range(1 + int(next(draw) * BOXES)):
            h, w = (max(1, round(side * (0.1 + 0.5 * next(draw)))) for side in (height, width))
            y, x = int(next(draw) * (height - h + 1)), int(next(draw) * (width - w + 1))
            paint.rectangle((x, y, x + w - 1, y + h - 1), fill=1)
    out = np.array(mask)
    if out.all():  # strokes over all of a small picture
        out[: height // 2] = False
    return ~out if inverted else out


def _stroke(paint: ImageDraw.ImageDraw, draw: Iterator[float], height: int, width: int) -> None:
    """One stroke from a random place, of a few straight parts with round joints."""
    side = min(height, width)
    thick = max(2, round(side * (0.04 + 0.14 * next(draw))))
    points = [(next(draw) * width, next(draw) * height)]
    for _ in range(1 + int(next(draw) * POINTS)):
        angle, length = 2 * np.pi * next(draw), side * (0.1 + 0.3 * next(draw))
        x, y = points[-1]
        x, y = x + length * np.cos(angle), y + length * np.sin(angle)
        points.append((min(max(x, 0), width - 1), min(max(y, 0), height - 1)))
    paint.line(points, fill=1, width=thick, joint="curve")
    for x, y in points:
        r = thick / 2
        paint.ellipse((x - r, y - r, x + r, y + r), fill=1)
