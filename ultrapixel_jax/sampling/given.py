"""Files and pictures that somebody gives to draw from, each known by a checksum.

Nothing here imports jax: what cannot be read is refused before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
from pathlib import Path
from typing import Any

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import bucket_errors, place

MIN_SIDE = 16
"""Shortest side of a picture that is of any use."""
MAX_MEGAPIXELS = 256
"""Most pixels of one: four times those of the largest picture that is drawn."""
KEPT = 4
"""Decoded pictures that are kept: the same one is wanted for each picture of a batch."""


@dataclasses.dataclass(frozen=True)
class GivenFile:
    """A file that a picture depends on."""

    path: str
    """As it was said; empty for what was given in memory."""
    checksum: str
    """Sixteen hex digits of its content; of a run or checkpoint, its identity."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return repr(self.path) if self.path else "the picture given in Python"


@dataclasses.dataclass(frozen=True)
class GivenPicture(GivenFile):
    """A picture that another one is drawn from."""

    height: int
    """Pixels, upright."""
    width: int
    pixels: Any = dataclasses.field(default=None, compare=False, repr=False)
    """Of one in memory, an RGB image of PIL's; a file's are read when they are wanted."""

    def image(self) -> Any:
        """Its pixels, an RGB image of PIL's: upright, sRGB, transparency over white.

        Raises:
            UserError: the file is gone, or another one by now.
        """
        return self.pixels if self.pixels is not None else _decoded(self.path, self.checksum)


def file(path: str | os.PathLike[str]) -> GivenFile:
    """The file at `path`; or the run, or the converted checkpoint, in that directory.

    Raises:
        UserError: it cannot be read.
    """
    path = os.fspath(path)
    return GivenFile(path, _checksum(path))


def picture(given: Any) -> GivenPicture:
    """A picture from a path, an image of PIL's, or an array (height, width[, channels]).

    Arrays hold bytes, or floating numbers in [0, 1]; channels are none, 1, 3 or 4.

    Raises:
        UserError: it cannot be read, is damaged, far too small or far too large.
    """
    if isinstance(given, GivenPicture):
        return given
    if isinstance(given, (str, os.PathLike)):
        path, checksum = os.fspath(given), _digest(_read(os.fspath(given)))
        return GivenPicture(path, checksum, *_size_of(path, checksum))
    image = _in_memory(given)
    return GivenPicture(
        "", _digest(repr(image.size).encode() + image.tobytes()), image.height, image.width, image
    )


def check_there(given: GivenFile, beside: str | os.PathLike[str]) -> GivenFile:
    """`given` of a picture's metadata, where it lies now: at its path, or under its name in `beside`.

    Raises:
        UserError: it is not there, has changed, or was given in memory.
    """
    if not given.path:
        raise UserError(
            f"the picture was drawn from one that was given in Python (checksum {given.checksum}), which it "
            "does not have"
        )
    found = None
    for path in (given.path, str(Path(beside) / Path(given.path).name)):
        try:
            found = _checksum(path)
        except UserError:
            continue
        if found == given.checksum:
            return dataclasses.replace(given, path=path)
    if found is None:
        raise UserError(
            f"the picture was drawn with {given.name} (checksum {given.checksum}), which is missing; put it "
            "there, or beside the picture"
        )
    raise UserError(
        f"the picture was drawn with {given.name} of checksum {given.checksum}, and it has changed: it is "
        f"{found} now"
    )


def _read(path: str) -> bytes:
    try:
        with bucket_errors(path):
            return place(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"file {path!r} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"file {path!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _checksum(path: str) -> str:
    """Of a file's content, or what tells the weights of a run or checkpoint apart."""
    from ultrapixel_jax.checkpoints.manifest import MANIFEST, identity
    from ultrapixel_jax.checkpoints.runs import RunWeights, is_run

    where = place(path)
    try:
        with bucket_errors(path):
            if (where / MANIFEST).is_file():
                return identity(where)
            if is_run(where):
                return RunWeights.open(where).identity()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path!r} cannot be read: {why}") from error
    return _digest(_read(path))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _size_of(path: str, checksum: str) -> tuple[int, int]:
    """Height and width of a file's picture, which is decoded for it: what is damaged shows at once."""
    image = _decoded(path, checksum)
    return image.height, image.width


@functools.lru_cache(maxsize=KEPT)
def _decoded(path: str, checksum: str) -> Any:
    from ultrapixel_jax.data.images import BrokenImage, decode

    data = _read(path)
    if (found := _digest(data)) != checksum:
        raise UserError(f"{path!r} has changed since the command began: checksum {checksum}, now {found}")
    try:
        image = decode(data, MAX_MEGAPIXELS)
    except BrokenImage as error:
        raise UserError(f"picture {path!r} cannot be used: {error}") from error
    _check_size(image, f"picture {path!r}")
    return image


def _in_memory(given: Any) -> Any:
    """An RGB image of one of PIL's, or of an array."""
    import numpy as np
    from PIL import Image

    from ultrapixel_jax.data.images import BrokenImage, decode

    if not isinstance(given, Image.Image):
        array = np.asarray(given)
        if np.issubdtype(array.dtype, np.floating):
            if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
                raise UserError("a picture of floating numbers has to lie in [0, 1]")
            array = (array * 255 + 0.5).astype(np.uint8)
        elif array.dtype == np.bool_:
            array = array.astype(np.uint8) * 255
        if array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.dtype != np.uint8 or not (
            array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
        ):
            raise UserError(
                f"{type(given).__name__} of dtype {array.dtype} and shape {array.shape} is no picture; give "
                "a path, an image of PIL's, or an array (height, width, 3) of bytes or of numbers in [0, 1]"
            )
        given = Image.fromarray(array)
    _check_size(given, "the picture given in Python")
    if given.mode == "RGB" and not given.getexif() and "icc_profile" not in given.info:
        return given.copy()  # as it is now, whatever is done to it later
    buffer = io.BytesIO()
    try:
        # As a file, so that palettes, transparency, profiles and orientations are read in one way.
        wide = given.mode in ("F", "HSV", "YCbCr", "LAB", "CMYK")
        given.save(
            buffer,
            "TIFF" if wide else "PNG",
            **({} if wide else {"exif": given.getexif(), "compress_level": 0}),
        )
        return decode(buffer.getvalue(), MAX_MEGAPIXELS)
    except (BrokenImage, OSError, ValueError, KeyError) as error:
        raise UserError(f"the picture given in Python cannot be used: {error}") from error


def _check_size(image: Any, what: str) -> None:
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{what} has {image.width}x{image.height} pixels; it takes {MIN_SIDE} on each side at least"
        )
    if image.width * image.height > MAX_MEGAPIXELS * 10**6:
        raise UserError(
            f"{what} has {image.width}x{image.height} pixels, more than the {MAX_MEGAPIXELS} megapixels that "
            "are read"
        )
