"""One picture of a source: where its bytes and its caption are, and what keeps it from being used."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from etils import epath

from ultrapixel_jax.data.text import decoded, whole_characters
from ultrapixel_jax.errors import UserError

MISSING_CAPTION = "missing caption"
MISSING_IMAGE = "missing image"
BROKEN_IMAGE = "broken image"
BROKEN_SOURCE = "broken source"
SMALL_IMAGE = "small image"
NO_PICTURE = "no picture"


class Skip(Exception):  # noqa: N818  (no fault of ours)
    """An item that becomes no example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@runtime_checkable
class Bytes(Protocol):
    """Somewhere that bytes can be read from."""

    def read(self) -> bytes:
        """The bytes; `OSError` or `ValueError` if they cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class Blob:
    """Bytes in a file: all of it, or a member of a tar."""

    path: str
    offset: int = 0
    size: int | None = None
    """None is the whole file."""
    version: str = ""
    """Changes with the file: its size and times, or what the bucket has for that."""

    def read(self) -> bytes:
        """The bytes; `OSError` or `ValueError` if they cannot be read."""
        if self.size is None:
            return epath.Path(self.path).read_bytes()
        with epath.Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def caption_keys(key: str) -> tuple[str, ...]:
    """Where a caption is looked for: under `key`; by default also where Hugging Face's data sets have it."""
    return (key, "text") if key == "caption" else (key,)


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of the source, or something in it that is none."""

    id: str
    """Unique in the source, printable: the path below it, with the tar's name where it lies in one."""
    image: Bytes | None = None
    caption: str | None = None
    """Where the listing has it (tables)."""
    caption_files: tuple[tuple[str, Blob], ...] = ()
    """Else the files beside the image, each with its suffix; the first that has one counts."""
    problem: tuple[str, str] | None = None
    """Reason and detail of what the listing found wrong."""

    def read_caption(self, key: str, encoding: str = "utf-8") -> str:
        """The caption, stripped; a `.json` file has it under `key` (`caption_keys`).

        Raises:
            Skip: there is none.
        """
        if self.caption is not None:
            return checked(self.caption)
        found = []
        for suffix, blob in self.caption_files:
            try:
                text = decoded(blob.read(), encoding)
                return checked(_of_json(text, key) if suffix.endswith(".json") else text)
            except Skip as skip:
                problem = skip.detail
            except (OSError, ValueError, RecursionError) as error:
                problem = f"it cannot be read: {getattr(error, 'strerror', None) or error}"
            found.append(f"{suffix}: {problem}")
        raise Skip(MISSING_CAPTION, "; ".join(found) or "there is none")


def _of_json(text: str, key: str) -> object:
    value = json.loads(text)
    if isinstance(value, dict):
        keys = [k for k in caption_keys(key) if isinstance(value.get(k), str)]
        if not keys:
            raise Skip(MISSING_CAPTION, f"no text under {key!r}")
        return value[keys[0]]
    return value


def checked(caption: object) -> str:
    """`caption` as it is stored: stripped, whole characters.

    Raises:
        Skip: it is no text, empty, or holds what no text has.
    """
    if not isinstance(caption, str):
        raise Skip(MISSING_CAPTION, "it is no text")
    text = whole_characters(caption).strip()
    if not text:
        raise Skip(MISSING_CAPTION, "it is empty")
    if "\0" in text:
        raise Skip(MISSING_CAPTION, "it has NUL characters: is it UTF-16? name its --encoding")
    return text


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a folder or of a tar."""

    name: str
    """Below the source, with slashes."""
    blob: Blob

    @property
    def suffix(self) -> str:
        """With its dot, in small letters."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def stem(self) -> str:
        """The name, with folders, without suffix."""
        return self.name[: len(self.name) - len(PurePosixPath(self.name).suffix)]

    @property
    def key(self) -> str:
        """WebDataset's: the name up to its first dot."""
        folder, base = os.path.split(self.name)
        return os.path.join(folder, base.partition(".")[0])  # noqa: PTH118  (slashes, on any system)


def known_encoding(name: str) -> str:
    """`name` if Python knows such an encoding of text; `UserError` else."""
    try:
        bytes(4).decode(name)  # nothing would not be looked at
        return name
    except (LookupError, ValueError):
        pass
    raise UserError(f"--encoding {name!r:.40} is not known; use utf-8, cp1252, shift_jis, gb18030, …")
