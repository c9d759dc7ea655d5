"""Colour profiles (ICC) of pictures: to sRGB, which is what the networks see."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SPACES = {
    "RGB": "RGB ", "RGBA": "RGB ", "RGBX": "RGB ", "P": "RGB ", "PA": "RGB ", "L": "GRAY", "LA": "GRAY",
    "1": "GRAY", "CMYK": "CMYK", "LAB": "Lab ",
}  # fmt: skip
"""Colour space that a profile must be of, by Pillow's mode."""
PLAIN = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
"""Mode that is transformed, by colour space."""
UNSEEN = 1
"""Grey levels that a profile may be off sRGB and still be sRGB: other writers' rounding."""


def to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """`image` in sRGB by its embedded profile, and what to say about the profile, if anything.

    Relative colorimetric with black point compensation, as image editors do it. An image without a
    profile, with that of sRGB, or with one that cannot be used comes back as it is; transparency is kept.
    Returned images have no profile.
    """
    profile = image.info.pop("icc_profile", None)
    space = SPACES.get(image.mode)
    if image.mode == "LAB":
        return _apply(image, _transform(b"", "Lab ")), ""
    if not profile or space is None:
        return image, ""
    try:
        transform = _transform(profile, space)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return image, f"its colour profile cannot be used ({' '.join(str(error).split())}): read as sRGB"
    return (image if transform is None else _apply(image, transform)), ""


def _apply(image: Image.Image, transform: Any) -> Image.Image:
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("P", "PA"):
        plain = image.convert("RGB")
    else:
        plain = image.convert(transform.input_mode)
    out = ImageCms.applyTransform(plain, transform)
    assert out is not None, "a new image, as it is not done in place"
    if alpha is not None:
        out.putalpha(alpha)
    return out


@functools.lru_cache(32)
def _transform(profile: bytes, space: str) -> Any:
    """The transform to sRGB, None where `profile` is sRGB; Pillow's errors where it is of no use."""
    source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
    if profile and source.profile.xcolor_space != space:
        raise ValueError(f"it is for {source.profile.xcolor_space.strip()}, not {space.strip()}")
    mode = PLAIN[space]
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        # Tables that are made beforehand are coarse in the dark, and greys are few anyway.
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION
        | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.HIGHRESPRECALC),
    )  # fmt: skip
    if mode in ("RGB", "L"):  # does it change anything that can be seen?
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        plain = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        before = np.asarray(plain.convert("RGB"), np.int16)
        after = np.asarray(ImageCms.applyTransform(plain, transform), np.int16)
        if np.abs(after - before).max() <= UNSEEN:
            return None
    return transform
