"""Deep Zoom: a picture in square pieces, at every power of two of its size.

A picture is decoded once and held with its smaller sizes, as many pictures as fit `BUDGET`, the last ones
asked for; pieces that were cut are kept in `CUT` bytes, and by browsers for good. Pieces are PNG, so that
every pixel has the file's colour.
"""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from ultrapixel_jax.web import reading
from ultrapixel_jax.web.server import RefusedError

TILE = 512
"""Side of a piece, in pixels."""
BUDGET = 720_000_000
"""Bytes of decoded pictures: two of 8192², which is what is compared."""
CUT = 64_000_000
"""Bytes of pieces."""
BYTES = 4
"""Of a pixel in Pillow's memory."""

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The values that were asked for last, up to a number of bytes in all."""

    def __init__(self, budget: int, size: Callable[[Value], int]) -> None:
        self._budget, self._size = budget, size
        self._values: OrderedDict[object, Value] = OrderedDict()

        self.bytes = 0
        """Of all values."""

    def get(self, key: object) -> Value | None:
        """The value of `key`, if it is still there."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def room(self, size: int) -> None:
        """Forget the oldest until `size` bytes more fit."""
        while self._values and self.bytes + size > self._budget:
            self.bytes -= self._size(self._values.popitem(last=False)[1])

    def add(self, key: object, value: Value) -> None:
        """Keep `value`."""
        if key not in self._values:
            self.room(self._size(value))
            self._values[key] = value
            self.bytes += self._size(value)


Levels = list[Image.Image]
"""A picture from 1×1 to its size, each level half of the next."""


class Tiles:
    """Pieces of pictures."""

    def __init__(self) -> None:
        self._levels = Kept[Levels](BUDGET, lambda levels: sum(BYTES * x.width * x.height for x in levels))
        self._cut = Kept[bytes](CUT, len)
        self._decoding, self._lock = threading.Lock(), threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of decoded pictures."""
        return self._levels.bytes

    def cut(self, path: Path, version: str, level: int, column: int, row: int) -> bytes:
        """A piece of the picture at `path`, PNG.

        Args:
            path: of the file.
            version: of its content.
            level: 0 is one pixel, ⌈log₂ of the longer side⌉ the picture itself.
            column: from the left.
            row: from the top.

        Raises:
            UserError: the file is broken or too large.
            RefusedError: there is no such piece.
        """
        key = path, version, level, column, row
        with self._lock:
            if (known := self._cut.get(key)) is not None:
                return known
        levels = self._decoded(path, version)
        left, top = column * TILE, row * TILE
        of = levels[level] if 0 <= level < len(levels) else None
        if of is None or not (0 <= left < of.width and 0 <= top < of.height):
            raise RefusedError(HTTPStatus.NOT_FOUND, "the picture has no such piece")
        piece = of.crop((left, top, min(left + TILE, of.width), min(top + TILE, of.height)))
        out = io.BytesIO()
        piece.save(out, "PNG", compress_level=1)
        with self._lock:
            self._cut.add(key, out.getvalue())
        return out.getvalue()

    def _decoded(self, path: Path, version: str) -> Levels:
        with self._decoding:  # whoever asks for another piece of the same picture waits for it
            with self._lock:
                if (known := self._levels.get((path, version))) is not None:
                    return known
            size = reading.head(path)
            with self._lock:
                pixels = min(size.width * size.height, reading.MAX_PIXELS)
                self._levels.room(math.ceil(BYTES * pixels * 4 / 3))
            levels = pyramid(reading.pixels(path))
            with self._lock:
                self._levels.add((path, version), levels)
            return levels


def pyramid(picture: Image.Image) -> Levels:
    """All levels of `picture`; each pixel is the mean of those below it."""
    levels = [picture]
    while max(levels[-1].size) > 1:
        levels.append(levels[-1].reduce(2))
    return levels[::-1]


def description(width: int, height: int) -> bytes:
    """The XML that Deep Zoom's viewers ask for first."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" Overlap="0" '
        f'TileSize="{TILE}">'
        f'<Size Width="{width}" Height="{height}"/></Image>\n'
    ).encode()
