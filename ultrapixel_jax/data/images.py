"""Encoded images to pixels: decoding with checks, resizing to cover, cropping, the low-resolution copy."""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from ultrapixel_jax.data.config import LrResize

FORMATS = ("JPEG", "PNG", "WEBP")
"""What may lie in a record."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Names of such files."""
WHITE = (255, 255, 255, 255)

HW = tuple[int, int]


class BrokenImage(Exception):  # noqa: N818  (it names a thing in the data, not a fault of ours)
    """An image that cannot be used; the message says why."""


def decode(data: bytes) -> Image.Image:
    """Decode an image completely: upright by its EXIF orientation, RGB, transparency over white.

    Raises:
        BrokenImage: not JPEG, PNG or WebP, damaged, truncated, or beyond Pillow's limit of pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:  # whose own message has the address of an object
        raise BrokenImage("it is no JPEG, PNG or WebP image") from error
    # What Pillow's readers raise for damaged files is not one type.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError,
            TypeError, Image.DecompressionBombError) as error:  # fmt: skip
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def cover(image: Image.Image, size: HW) -> Image.Image:
    """Resize to the smallest size with the image's own ratio that covers `size` (height, width)."""
    scale = max(size[0] / image.height, size[1] / image.width)
    height = max(size[0], math.floor(image.height * scale + 0.5))
    width = max(size[1], math.floor(image.width * scale + 0.5))
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow's is antialiased


def crop(image: Image.Image, size: HW, y: float, x: float) -> Image.Image:
    """Cut `size` (height, width) out; `y` and `x` in [0, 1) choose among all places."""
    top = int(y * (image.height - size[0] + 1))
    left = int(x * (image.width - size[1] + 1))
    return image.crop((left, top, left + size[1], top + size[0]))


def low_resolution(image: Image.Image, size: HW, method: LrResize) -> Image.Image:
    """The low-resolution copy of a cropped image; `nearest` by torch's rule, which is not Pillow's."""
    if method == "nearest":
        rows, columns = _nearest(image.height, size[0]), _nearest(image.width, size[1])
        return Image.fromarray(np.asarray(image)[rows][:, columns])
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _nearest(source: int, target: int) -> np.ndarray:
    """Which of `source` pixels each of `target` pixels takes: the one at ⌊i·source/target⌋, in float32."""
    ratio = np.float32(source) / np.float32(target)
    index = np.floor(np.arange(target, dtype=np.float32) * ratio).astype(np.int64)
    return np.minimum(index, source - 1)


def pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB as an array."""
    return np.asarray(image)
