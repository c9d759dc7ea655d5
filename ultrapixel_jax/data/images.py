"""Encoded images to pixels: decoding with checks, resizing to cover, cropping, the low-resolution copy."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from ultrapixel_jax.data.colour import to_srgb
from ultrapixel_jax.data.config import MAX_MEGAPIXELS, LrResize

KEPT = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats whose bytes lie in a record as they are; MPO is a JPEG with further pictures behind it."""
FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG2000", "PCX", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "XBM", "XPM",
)  # fmt: skip
"""What is read: all of Pillow's that hold one picture and call no other program, as EPS does."""
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs",
    ".bmp", ".dib", ".dds", ".gif", ".icns", ".ico", ".im", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c",
    ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".psd", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras",
    ".tga", ".tif", ".tiff", ".xbm", ".xpm",
)  # fmt: skip
"""Names of such files, in small letters."""
LAYERED = ("MPO", "PSD", "ICNS", "ICO")
"""Formats whose further pictures are layers, previews or other sizes of the first."""
TEXT_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Text chunks of a PNG that may say how it is turned."""
WHITE = (255, 255, 255, 255)

HW = tuple[int, int]

# Pillow's limit of pixels is one for the whole program; `decode` has its own, per picture.
Image.MAX_IMAGE_PIXELS = None


class BrokenImage(Exception):  # noqa: N818  (it names a thing in the data, not a fault of ours)
    """An image that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture as the networks see it, and where it comes from."""

    image: Image.Image
    """Upright, sRGB, transparency over white."""
    format: str
    """Pillow's name of the format."""
    notes: tuple[str, ...]
    """What a person may want to know: of several pictures the first was taken, a profile is broken."""

    def encoded(self, data: bytes) -> bytes:
        """`data`, what it was decoded from, where records may hold that; else the pixels as PNG."""
        if self.format in KEPT:
            return data
        out = io.BytesIO()
        self.image.save(out, "PNG", compress_level=3)
        return out.getvalue()


def decode(data: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> Image.Image:
    """Decode an image completely: upright by its EXIF orientation, sRGB, transparency over white.

    Raises:
        BrokenImage: in no known format, damaged, truncated, or of more than `max_megapixels`.
    """
    return read(data, max_megapixels).image


def read(data: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> Decoded:
    """Like `decode`, and tells more."""
    if not data:
        raise BrokenImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
        width, height = image.size
        if width * height > max_megapixels * 10**6:
            raise BrokenImage(
                f"it has {width}×{height} pixels, more than the {max_megapixels} megapixels that are allowed"
            )
        kind = image.format or ""
        frames = getattr(image, "n_frames", 1)
        image.load()
        upright, note = to_srgb(ImageOps.exif_transpose(image))
        several = frames > 1 and kind not in LAYERED
        notes = (f"of {frames} pictures in it, the first") if several else "", note
        return Decoded(_rgb(upright), kind, tuple(filter(None, notes)))
    except UnidentifiedImageError as error:  # whose own message has the address of an object
        raise BrokenImage(_unknown(data)) from error
    # What Pillow's readers raise for damaged files is not one type.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError,
            TypeError, AttributeError, OverflowError, NotImplementedError, RuntimeError,
            ArithmeticError, MemoryError) as error:  # fmt: skip
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error


def _without_texts(data: bytes) -> bytes:
    """A PNG without its text chunks: whole workflows lie there, which Pillow refuses for their size."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 8 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or data.startswith(TEXT_KEPT, place + 8):
            parts.append(data[place:end])
        place = end
    return b"".join(parts) if len(parts) > 1 else data


UNREADABLE = {
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"%PDF": "PDF", b"%!PS": "PostScript",
    b"<svg": "SVG", b"<?xml": "XML (SVG?)", b"PK\3\4": "zip", b"\x1f\x8b": "gzip", b"Rar!": "rar",
    b"7z\xbc\xaf": "7z", b"\x1aE\xdf\xa3": "Matroska video", b"SIMPLE  =": "FITS", b"version https://git-lfs":
    "a git-lfs pointer: run `git lfs pull`", b"<!DOCTYPE": "a web page", b"<html": "a web page",
}  # fmt: skip
"""How files begin that are often taken for pictures, and what they are."""


def _unknown(data: bytes) -> str:
    """Why no reader takes `data`."""
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace").strip()
        what = "HEIC" if brand in ("heic", "heix", "mif1", "hevc", "msf1", "heis") else f"video or {brand}"
        return f"it is {what}, which is not read: save it as PNG or JPEG"
    for head, what in UNREADABLE.items():
        if data.lstrip()[:64].startswith(head):
            return f"it is {what}, which is not read"
    if len(data) < 64 or data.count(b"\0", 0, 4096) == min(len(data), 4096):
        return "it is no image, or one that is cut off"
    return "it is no image in a format that is read"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _grey(np.asarray(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba)
    image = image.convert("RGB")
    image.info.clear()  # a profile that is done with, or texts, must not be saved again
    return image


def _grey(values: np.ndarray) -> Image.Image:
    """32-bit grey levels, which have no range of their own, by the range that they lie in."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high < 2**16):
        raise ValueError(f"its pixels are numbers from {low:.4g} to {high:.4g}, of no known range")
    whole = np.issubdtype(values.dtype, np.integer)
    scale = 255 if high <= 1 and not whole else 1 if high < 256 else 1 / 256
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))


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
