"""Buckets: the few sizes that images are brought to, so that a batch has one (§12).

Sizes are pairs (height, width) in pixels; a ratio is height / width. All comparisons are exact, in
integers, so that every process and machine sorts an image into the same bucket.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from ultrapixel_jax.data.config import MULTIPLE, parse_ratio
from ultrapixel_jax.errors import UserError

HW = tuple[int, int]


class Buckets:
    """All combinations of areas and ratios, and which one an image belongs to.

    The nearest ratio is that of the smallest |log(ratio / own)|, which treats portrait and landscape
    alike; then the nearest area that of the smallest |s² − height·width|. Of two equally near ones the
    ratio nearer to zero and the smaller area win.
    """

    def __init__(self, areas: Sequence[int], ratios: Sequence[str]) -> None:
        """Make the buckets of areas s² for s in `areas`, for each of `ratios` and its inverse.

        Raises:
            UserError: a side would be shorter than 32 pixels.
        """
        own = {parse_ratio(ratio) for ratio in ratios}
        self.ratios = sorted(own | {1 / ratio for ratio in own})
        self.areas = sorted(areas)
        self.sizes: list[HW] = [bucket_size(s, ratio) for ratio in self.ratios for s in self.areas]
        """Height and width by bucket number: ratio by ratio, in each from the smallest area."""
        for (h, w), (ratio, s) in zip(self.sizes, [(r, s) for r in self.ratios for s in self.areas]):
            if min(h, w) < MULTIPLE:
                raise UserError(
                    f"area {s}² at ratio {ratio} has a side below {MULTIPLE} pixels; leave out that ratio "
                    "or take a larger area"
                )

    def assign(self, height: int, width: int) -> int:
        """Number of the bucket of an image."""
        r = self.ratios
        i = bisect.bisect_left(r, Fraction(height, width))
        # Nearer in the logarithm: own² against the product of its neighbours.
        if i == len(r) or (i > 0 and Fraction(height * height, width * width) <= r[i - 1] * r[i]):
            i -= 1
        area = min(range(len(self.areas)), key=lambda j: abs(self.areas[j] ** 2 - height * width))
        return i * len(self.areas) + area

    def assign_all(self, sizes: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
        """The same for rows (height, width)."""
        known: dict[HW, int] = {}  # photographs have few different sizes
        out = np.empty(len(sizes), np.int32)
        for i, (height, width) in enumerate(sizes.tolist()):
            if (height, width) not in known:
                known[height, width] = self.assign(height, width)
            out[i] = known[height, width]
        return out


def bucket_size(s: int, ratio: Fraction) -> HW:
    """Sides of area s² at `ratio`, floored to multiples of 32: s·√ratio and s / √ratio."""
    p, q = ratio.numerator, ratio.denominator
    unit = MULTIPLE * MULTIPLE
    # ⌊√x⌋ is isqrt(⌊x⌋): no rounding of the root can move a side across a multiple.
    return MULTIPLE * math.isqrt(s * s * p // (q * unit)), MULTIPLE * math.isqrt(s * s * q // (p * unit))


def lr_size(height: int, width: int, side: int) -> HW:
    """Size of the low-resolution image of a picture (§1), in pixels.

    At least 32 pixels a side. `side` is s: 24 in training.
    """
    root = math.sqrt(height / width)
    return MULTIPLE * max(1, int(side * root)), MULTIPLE * max(1, int(side / root))
