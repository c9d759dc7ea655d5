"""Pictures of the output directory: a list of them, small ones, and names that cannot lead elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import threading
from collections import OrderedDict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from PIL import Image

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint
from ultrapixel_jax.web import reading
from ultrapixel_jax.web.server import RefusedError

SIDES = (320, 1280)
"""Longest sides of small pictures, in pixels: in the list, and alone on the page."""
KEPT = 20_000
"""Most small pictures on disk."""
HEADS = 10_000
"""Most beginnings of files that are remembered."""
IN_MEMORY = 500
"""Most small pictures in memory, where the disk takes none."""
PAGE = 60
"""Pictures that are listed at once."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A file of the directory."""

    name: str
    """With its extension."""
    modified: float
    """Seconds since 1970."""
    version: str
    """Another one for another content: what browsers keep is kept under it."""


class Gallery:
    """The PNG files that lie in a directory, and not below it.

    Args:
        directory: the output directory.
        small: where small pictures are kept; None, or one that cannot be written, keeps them in memory.
    """

    def __init__(self, directory: Path, small: Path | None) -> None:
        self.directory = directory
        self._small = small
        self._heads: OrderedDict[tuple[str, str], reading.Head | str] = OrderedDict()
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------ names

    def item(self, name: str) -> Item:
        """The file called `name`, as the directory lists it.

        Raises:
            RefusedError: there is none: no such file, a link, another directory's.
        """
        if _is_shown(name) and not {*name} & {"/", "\\", "\0", ":"}:
            with contextlib.suppress(OSError, ValueError):
                if found := _item(name, (self.directory / name).lstat()):
                    return found
        raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no picture {name!r:.80} in the output directory")

    def path(self, name: str) -> Path:
        """Where the file called `name` lies; errors are those of `item`."""
        return self.directory / self.item(name).name

    def items(self) -> list[Item]:
        """All files, the newest first."""
        try:
            with os.scandir(self.directory) as entries:
                found = [
                    _item(entry.name, entry.stat(follow_symlinks=False))
                    for entry in entries
                    if _is_shown(entry.name)
                ]
        except OSError as error:
            raise UserError(f"the output directory cannot be read: {error.strerror}") from error
        return sorted(filter(None, found), key=lambda item: (item.modified, item.name), reverse=True)

    def listed(self, start: int = 0, count: int = PAGE) -> dict[str, Any]:
        """A page of the list, with sizes and prompts."""
        items = self.items()
        return {
            "pictures": [self.shown(item) for item in items[start : start + count]],
            "start": start,
            "total": len(items),
        }

    def shown(self, item: Item) -> dict[str, Any]:
        """What a list says of a file."""
        found = self._head(item)
        more = {"fault": found} if isinstance(found, str) else dataclasses.asdict(found)
        return dataclasses.asdict(item) | more

    def _head(self, item: Item) -> reading.Head | str:
        key = item.name, item.version
        with self._lock:
            if key in self._heads:
                return self._heads[key]
        try:
            found = reading.head(self.directory / item.name)
        except UserError as error:
            found = str(error)
        with self._lock:
            self._heads[key] = found
            while len(self._heads) > HEADS:
                self._heads.popitem(last=False)
        return found

    # ------------------------------------------------------------------------ small pictures

    def small(self, item: Item, side: int) -> bytes:
        """A small picture, WebP.

        Raises:
            UserError: the file is broken or too large, or there are no small pictures of that `side`.
        """
        if side not in SIDES:
            raise UserError(f"small pictures have {' or '.join(map(str, SIDES))} pixels a side, not {side}")
        key = self._key(item, side)
        with self._lock:
            if key in self._memory:
                return self._memory[key]
        if self._small is not None:
            with contextlib.suppress(OSError):
                return (self._small / f"{key}.webp").read_bytes()
        self._make(item, reading.pixels(self.directory / item.name))
        return self.small(item, side)

    def remember(self, name: str, picture: Image.Image) -> None:
        """Keep the small pictures of one that was just written, without reading it again."""
        with contextlib.suppress(RefusedError):
            self._make(self.item(name), picture)

    def _key(self, item: Item, side: int) -> str:
        return fingerprint([str(self.directory.resolve()), item.name, item.version, side])

    def _make(self, item: Item, picture: Image.Image) -> None:
        for side in SIDES:
            self._keep(self._key(item, side), reduced(picture, side))

    def _keep(self, key: str, data: bytes) -> None:
        with self._lock:
            if self._small is not None:
                try:
                    self._small.mkdir(parents=True, exist_ok=True)
                    part = self._small / f"{key}.{threading.get_ident()}.part"
                    part.write_bytes(data)
                    part.replace(self._small / f"{key}.webp")
                    self._tidy()
                    return
                except OSError:  # a full disk, or one that cannot be written: memory does
                    self._small = None
            self._memory[key] = data
            while len(self._memory) > IN_MEMORY:
                self._memory.popitem(last=False)

    def _tidy(self) -> None:
        """Remove the oldest half where there are too many."""
        assert self._small is not None
        files = [*self._small.glob("*.webp")]
        if len(files) > KEPT:
            for path in sorted(files, key=lambda file: file.stat().st_mtime)[: KEPT // 2]:
                path.unlink(missing_ok=True)


def reduced(picture: Image.Image, side: int) -> bytes:
    """A WebP of `picture`, with at most `side` pixels a side."""
    small = picture.reduce(max(1, max(picture.size) // (2 * side)))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=85)
    return out.getvalue()


def _is_shown(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(".")


def _item(name: str, status: os.stat_result) -> Item | None:
    """The file of that name; None for what is no plain file, links too."""
    if not stat.S_ISREG(status.st_mode):
        return None
    version = fingerprint([status.st_mtime_ns, status.st_size, status.st_ino])
    return Item(name, status.st_mtime, version)
