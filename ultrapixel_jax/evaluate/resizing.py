"""Pictures as Inception sees them: three conventions of resizing, by name, and crops at their own size.

A distance between sets depends on the convention, so that its name goes into every report.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Convention = Literal["clean", "fidelity", "pytorch"]
Pixels = UInt8[np.ndarray, "_h _w 3"]
Crops = int | Literal["grid"]
"""How many crops of a picture, at random places; or all of a grid that do not overlap."""
CENTRE = 128.0
"""Of the scale that TensorFlow's network was trained with."""


def clean(pixels: Pixels, side: int) -> Float32[np.ndarray, "s s 3"]:
    """clean-fid's: each channel by Pillow's bicubic with antialiasing, clipped, not rounded."""
    channels = [
        np.asarray(
            Image.fromarray(pixels[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        )
        for c in range(3)
    ]
    return np.stack(channels, -1).clip(0, 255)


def fidelity(pixels: Pixels, side: int) -> Float32[np.ndarray, "s s 3"]:
    """torch-fidelity's and torchmetrics': TensorFlow 1's bilinear, whose pixels have no centres."""

    def places(count: int) -> Float32[np.ndarray, " s"]:
        return np.arange(side, dtype=np.float32) * (np.float32(count) / np.float32(side))

    return _bilinear(pixels, places)


def pytorch(pixels: Pixels, side: int) -> Float32[np.ndarray, "s s 3"]:
    """pytorch-fid's: torch's bilinear without antialiasing, with centres of pixels."""

    def places(count: int) -> Float32[np.ndarray, " s"]:
        at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(count / side)
        return np.maximum(at - np.float32(0.5), np.float32(0))

    return _bilinear(pixels, places)


def _bilinear(
    pixels: Pixels, places: Callable[[int], Float32[np.ndarray, " s"]]
) -> Float32[np.ndarray, "s s 3"]:
    """Between the nearest rows and columns of `places`; no other pixels are looked at."""

    def neighbours(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = places(count)
        low = np.minimum(np.floor(at).astype(int), count - 1)
        return low, np.minimum(low + 1, count - 1), at - low.astype(np.float32)

    top, bottom, down = neighbours(pixels.shape[0])
    left, right, across = neighbours(pixels.shape[1])
    across, down = across[None, :, None], down[:, None, None]

    def row(at: np.ndarray) -> np.ndarray:
        rows = pixels[at]
        a, b = rows[:, left].astype(np.float32), rows[:, right].astype(np.float32)
        return a + (b - a) * across

    above = row(top)
    return above + (row(bottom) - above) * down


CONVENTIONS: Mapping[str, Callable[[Pixels, int], Float32[np.ndarray, "s s 3"]]] = {
    "clean": clean,
    "fidelity": fidelity,
    "pytorch": pytorch,
}


def scaled(
    x: Float32[np.ndarray, "*b s s 3"] | UInt8[np.ndarray, "*b s s 3"], convention: Convention
) -> Float32[np.ndarray, "*b s s 3"]:
    """Values from 0 to 255 as the network takes them: −1…1, by the convention's arithmetic."""
    if convention == "pytorch":
        return np.float32(2) * (x.astype(np.float32) / np.float32(255)) - np.float32(1)
    return (x.astype(np.float32) - np.float32(CENTRE)) / np.float32(CENTRE)


def crops(pixels: Pixels, side: int, how: Crops, name: str, seed: int) -> list[Pixels]:
    """Parts of a picture, `side` pixels square, as views; none of a picture that is smaller.

    The grid lies in the middle, so that what is left over is the same on both sides. Random places depend on
    `seed` and on the picture's `name`, not on the pictures beside it.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        return []
    if how == "grid":
        top, left = height % side // 2, width % side // 2
        places = [
            (top + y * side, left + x * side) for y in range(height // side) for x in range(width // side)
        ]
    else:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        places = list(
            zip(
                rng.integers(0, height - side + 1, how).tolist(),
                rng.integers(0, width - side + 1, how).tolist(),
                strict=True,
            )
        )
    return [pixels[y : y + side, x : x + side] for y, x in places]
