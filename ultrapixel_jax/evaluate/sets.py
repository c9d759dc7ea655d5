"""Sets of pictures: folders, the prompts that come with them, and reading one picture at a time."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ultrapixel_jax.data import folders
from ultrapixel_jax.data.images import BrokenImage, decode
from ultrapixel_jax.data.items import Blob, Item, Skip
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint
from ultrapixel_jax.sampling.picture import KEY
from ultrapixel_jax.sampling.prompts import read_prompts

Origin = Literal["metadata", "captions", "none"] | Path
"""Where prompts come from: what this project writes into its pictures, files beside them, or one file."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture of a set."""

    name: str
    """Below the folder, printable."""
    blob: Blob | None = None
    """The file; None of a picture in memory."""
    pixels: UInt8[np.ndarray, "_h _w 3"] | None = None
    prompt: str | None = None

    def read(self) -> Image.Image:
        """The picture, upright, sRGB.

        Raises:
            BrokenImage: it cannot be read.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        assert self.blob is not None
        try:
            return decode(self.blob.read())
        except (OSError, ValueError) as error:
            raise BrokenImage(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Pictures to measure, in the order of their names."""

    name: str
    """What reports call it."""
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """What a person may want to know."""

    @property
    def has_prompts(self) -> bool:
        """Whether every picture has one."""
        return all(sample.prompt is not None for sample in self.samples)

    def identity(self, start: int, end: int) -> str:
        """Changes with the files from `start` to `end`: their names, sizes and times."""
        parts = [(s.name, s.blob.version if s.blob else "") for s in self.samples[start:end]]
        return fingerprint(parts)


def in_memory(name: str, pictures: UInt8[np.ndarray, "n h w 3"], prompts: Sequence[str]) -> PictureSet:
    """A set of pictures of one size that lie in memory."""
    samples = (
        Sample(f"{i:05d}", pixels=picture, prompt=prompt)
        for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True))
    )
    return PictureSet(name, tuple(samples))


def read_set(folder: Path, origin: Origin | None = None) -> PictureSet:
    """The pictures in `folder` and below, with their prompts.

    Args:
        folder: a directory.
        origin: where prompts come from; None takes the pictures' metadata, or captions where a picture has
            none.

    Raises:
        UserError: no such folder, less than two pictures, or prompts that were asked for are missing.
    """
    with user_errors(folder, "pictures"):
        if not folder.is_dir():
            raise UserError(f"pictures {str(folder)!r}: no such folder")
        entries, _ = folders.walk(str(folder))
    items = [item for item in folders.pair(entries) if item.image is not None]
    if len(items) < 2:
        found = "no picture" if not items else "one picture alone"
        raise UserError(f"{folder} has {found}; a set that is measured needs two or more")
    prompts, missing = _prompts(items, origin)
    notes = ()
    if missing and origin in ("metadata", "captions"):
        others = "no such metadata" if origin == "metadata" else "no caption beside them"
        raise UserError(
            f"{len(missing)} of {len(items)} pictures in {folder} have {others}: {_some(missing)}"
        )
    if missing and len(missing) < len(items):
        without = f"{len(missing)} of {len(items)} pictures in {folder} have no prompt ({_some(missing)})"
        notes = (f"{without}; nothing is scored with prompts",)
    samples = []
    for item in items:
        assert isinstance(item.image, Blob)
        samples.append(Sample(item.id, item.image, prompt=prompts.get(item.id)))
    return PictureSet(folder.name or str(folder), tuple(samples), notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _prompts(items: Sequence[Item], origin: Origin | None) -> tuple[Mapping[str, str], list[str]]:
    """Prompts by the picture's name, and names without one."""
    if isinstance(origin, Path):
        return _listed(items, origin), []
    found: dict[str, str] = {}
    for item in items:
        text = None
        if origin in (None, "metadata"):
            text = _of_metadata(item.image)
        if text is None and origin in (None, "captions"):
            text = _of_caption(item)
        if text is not None:
            found[item.id] = text
    return found, [item.id for item in items if item.id not in found]


def _of_metadata(image: object) -> str | None:
    """The prompt that a picture of this project was drawn from."""
    assert isinstance(image, Blob)
    try:
        with Path(image.path).open("rb") as file:
            if file.read(len(PNG)) != PNG:
                return None
        with Image.open(image.path, formats=("PNG",)) as picture:  # reads the chunks before the pixels
            prompt = json.loads(picture.info[KEY])["prompt"]
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, RecursionError):
        return None  # a picture that is broken is named where it is measured
    return prompt if isinstance(prompt, str) else None


def _of_caption(item: Item) -> str | None:
    try:
        return item.read_caption("caption")
    except Skip:
        return None


def _listed(items: Sequence[Item], path: Path) -> Mapping[str, str]:
    """Prompts of a file: an object of names and prompts, or a list of prompts in the order of the names.

    Raises:
        UserError: there is no such file, or it does not fit the pictures.
    """
    with user_errors(path, "prompts"):
        data = path.read_bytes()
    try:
        named = json.load(io.BytesIO(data)) if data.lstrip().startswith(b"{") else None
    except (ValueError, RecursionError):  # lines that are objects
        named = None
    if isinstance(named, dict) and all(isinstance(text, str) for text in named.values()):
        missing = [item.id for item in items if item.id not in named]
        if missing:
            raise UserError(f"prompts {path} have none for {len(missing)} pictures: {_some(missing)}")
        return named
    entries = read_prompts(path)
    if len(entries) != len(items):
        raise UserError(f"prompts {path} are {len(entries)}, and the pictures are {len(items)}")
    return {item.id: entry.prompt for item, entry in zip(items, entries, strict=True)}


def by_size(sizes: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """How many pictures are of each size (height×width), the most frequent first."""
    return [(f"{h}×{w}", n) for (h, w), n in Counter(sizes).most_common()]
