"""Sizes of one picture in every stage: pixels, latents, buckets, and the numbers that follow from them.

All of it is arithmetic on the host, in Python integers and floats. Pairs are always (height, width).
A *bucket* is the set of shapes that a picture runs through: two pictures with equal buckets use the
same compiled programs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ultrapixel_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

HW = tuple[int, int]

MIN_SIDE = 256
"""Shortest side in pixels."""
MAX_SIDE = 8192
"""Longest side in pixels."""
MAX_RATIO = 6
"""Longest side over shortest."""
MAX_LR_TOKENS = 1024
"""Rows of the guidance networks' position embedding: LR height × width fits in them."""
STAGE_C_FACTOR = 42.67
"""Pixels per stage C latent position."""
STAGE_B_FACTOR = 4
"""Pixels per stage B (stage A) latent position."""
PIXEL_MULTIPLE = 8
"""Stage B un-shuffles its latent by 2, so pictures are made in multiples of 4·2 and then cropped."""
NEARLY = 1.05
"""By how much a side or an aspect ratio may be beyond what a model was trained on, before that is said."""
LR_SIDE = 32
"""Side of the square low-resolution picture of the full model, in units of 32 pixels."""


def stage_c_latent(height: int, width: int) -> HW:
    """Size of stage C's latent for a picture of `height` × `width` pixels."""
    return math.ceil(height / STAGE_C_FACTOR), math.ceil(width / STAGE_C_FACTOR)


def padded_pixels(height: int, width: int) -> HW:
    """Pixels rounded up to the next multiple of 8: what stages B and A make, before the crop."""
    return _round_up(height), _round_up(width)


def stage_b_latent(height: int, width: int) -> HW:
    """Size of stage B's latent, 4:1 of the padded pixels; both sides are even."""
    h, w = padded_pixels(height, width)
    return h // STAGE_B_FACTOR, w // STAGE_B_FACTOR


def lr_pixels(height: int, width: int, side: int = LR_SIDE) -> HW:
    """Pixels of the low-resolution pass: about (32·side)², with the aspect ratio of `height` × `width`."""
    root = math.sqrt(height / width)
    return 32 * int(side * root), 32 * int(side / root)


def lr_latent(height: int, width: int, side: int = LR_SIDE) -> HW:
    """Size of stage C's latent in the low-resolution pass."""
    return stage_c_latent(*lr_pixels(height, width, side))


def control_side(side: int = LR_SIDE) -> int:
    """Shorter side of a control image, in pixels: 32 for each position of the low-resolution latent, as it
    was trained. 768 for the full model.
    """
    return 32 * lr_latent(1, 1, side)[0]


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """The shapes of one picture; equal buckets share compiled programs."""

    hr: HW
    """Stage C latent of the high-resolution pass."""
    lr: HW
    """Stage C latent of the low-resolution pass."""
    stage_b: HW
    """Stage B latent."""
    pixels: HW
    """Decoded pixels, multiples of 8, before the crop to the size that was asked for."""

    @classmethod
    def of(cls, height: int, width: int, lr_side: int = LR_SIDE) -> Bucket:
        """Bucket of a picture of `height` × `width` pixels; `lr_side` is `GuidanceConfig.lr_side`.

        Raises:
            UserError: a size that `check_size` refuses.
        """
        check_size(height, width)
        return cls(
            hr=stage_c_latent(height, width),
            lr=lr_latent(height, width, lr_side),
            stage_b=stage_b_latent(height, width),
            pixels=padded_pixels(height, width),
        )


def check_size(height: int, width: int) -> None:
    """Refuse a size that cannot be made.

    Raises:
        UserError: a side below 256 or above 8192, an aspect ratio beyond 6:1, or a low-resolution
            pass with more positions than the guidance networks have embeddings for.
    """
    for name, side in (("height", height), ("width", width)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise UserError(f"{name} {side} is outside {MIN_SIDE} to {MAX_SIDE} pixels")
    if max(height, width) > MAX_RATIO * min(height, width):
        ratio = max(height, width) / min(height, width)
        raise UserError(
            f"size {height}x{width} has an aspect ratio of {ratio:.2f}:1, beyond {MAX_RATIO}:1; "
            f"make the shorter side at least {math.ceil(max(height, width) / MAX_RATIO)}"
        )
    h, w = lr_latent(height, width)
    if h * w > MAX_LR_TOKENS:
        raise UserError(
            f"size {height}x{width} needs {h}x{w} = {h * w} low-resolution tokens, more than the "
            f"{MAX_LR_TOKENS} position embeddings of the guidance; take an aspect ratio nearer 1:1"
        )


def outside_training(
    height: int, width: int, sides: tuple[int, int] | None, ratio: float | None
) -> str | None:
    """That a picture of `height` × `width` pixels is not of a size that the model was trained on, in words.

    None where it is.

    Args:
        height: in pixels.
        width: in pixels.
        sides: `GuidanceConfig.trained_sides`; None where nobody knows.
        ratio: `GuidanceConfig.trained_ratio`.
    """
    side, shape = math.sqrt(height * width), max(height, width) / min(height, width)
    known = []
    if sides is not None and not sides[0] <= side * NEARLY <= sides[1] * NEARLY**2:
        known.append(f"areas from {sides[0]}x{sides[0]} to {sides[1]}x{sides[1]}")
    if ratio is not None and shape > ratio * NEARLY:
        known.append("squares alone" if ratio == 1 else f"sides of at most {ratio:.3g}:1")
    if not known:
        return None
    return (
        f"size {height}x{width} is not what the model was trained on: {' and '.join(known)}; expect mistakes"
    )


def parse_size(text: str) -> HW:
    """Read ``HEIGHTxWIDTH`` in pixels (the order of the paper's tables), e.g. ``2560x5120``.

    Raises:
        UserError: another form, or a size that `check_size` refuses.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*[xX×]\s*([0-9]{1,9})\s*", text)
    if match is None:
        raise UserError(f"size {text!r:.80} is not HEIGHTxWIDTH in pixels; write it like 2560x5120")
    height, width = int(match[1]), int(match[2])
    check_size(height, width)
    return height, width


def scale(hr_h: int, hr_w: int) -> np.float32:
    """The scale that the scale-aware normalisation embeds, of an HR latent of `hr_h` × `hr_w`.

    In Python floats, rounded once at the end: the embedding multiplies it by 10,000, so that one unit
    in the last place shows in the output.
    """
    import numpy as np  # not before: `--help` needs none of it

    return np.float32(math.sqrt(math.log(hr_h * hr_w) / math.log(24 * 24)))


def up_guide_weight(hr_h: int, hr_w: int, thresholds: Sequence[tuple[int, float]]) -> float:
    """Weight of the guidance at the up places when sampling an HR latent of `hr_h` × `hr_w`.

    Args:
        hr_h: height of the latent.
        hr_w: width of the latent.
        thresholds: (smallest H·W, weight), as in `GuidanceConfig.up_guide_weights`; the largest
            threshold that H·W reaches counts.

    Raises:
        UserError: H·W is below every threshold.
    """
    reached = [(smallest, weight) for smallest, weight in thresholds if hr_h * hr_w >= smallest]
    if not reached:
        raise UserError(
            f"guidance.up_guide_weights has no entry for a latent of {hr_h}x{hr_w}; add one for 0"
        )
    return max(reached)[1]


def _round_up(side: int) -> int:
    return -(-side // PIXEL_MULTIPLE) * PIXEL_MULTIPLE
