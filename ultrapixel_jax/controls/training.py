"""What a ControlNet sees of a picture that it is trained on."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from ultrapixel_jax.controls.canny import canny_map
from ultrapixel_jax.controls.masks import inpainting_map, random_mask


def map_of_picture(
    kind: Literal["canny", "inpainting"],
    image: UInt8[np.ndarray, "h w 3"],
    numbers: Float64[np.ndarray, " n"],
) -> Float32[np.ndarray, "h w c"] | UInt8[np.ndarray, "h w c"]:
    """Its edges; or the picture with a mask that is a function of random `numbers`."""
    if kind == "canny":
        return canny_map(image)
    return inpainting_map(image, random_mask(numbers, image.shape[:2]))
