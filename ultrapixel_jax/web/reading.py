"""PNG files as they may be: of any size, broken, somebody else's. What they take of memory is bounded."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ultrapixel_jax.config import HR_FIELDS
from ultrapixel_jax.errors import UserError, one_line
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.picture import KEY
from ultrapixel_jax.sizes import MAX_SIDE

MAX_PIXELS = MAX_SIDE * MAX_SIDE
"""Of a picture that is opened: 268 MB as Pillow has it, with four bytes for each."""
FAULTS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for broken files."""
GIVEN = ("PNG", "JPEG", "WEBP")
"""Formats of pictures that can be drawn from."""
_ONE = threading.Lock()
"""One picture is decoded at a time, since each takes memory; and `warnings` know no threads."""


@dataclasses.dataclass(frozen=True)
class Head:
    """The beginning of a PNG."""

    width: int
    height: int
    prompt: str
    """Empty for pictures of others."""


def head(path: Path) -> Head:
    """Size and prompt of the picture at `path`, without decoding it.

    Raises:
        UserError: it is no PNG.
    """
    with _ONE, _opened(path) as picture:
        text = picture.info.get(KEY, "")
        size = picture.size
    return Head(*size, prompt=_prompt(text))


def pixels(path: Path) -> Image.Image:
    """The whole picture, RGB.

    Raises:
        UserError: it is no PNG, is broken, or has more than `MAX_PIXELS`.
    """
    with _ONE, _opened(path) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise UserError(f"{path.name!r} has {width}x{height} pixels; {MAX_SIDE}x{MAX_SIDE} are the most")
        try:
            picture.load()
            return picture if picture.mode == "RGB" else picture.convert("RGB")
        except FAULTS as error:
            raise UserError(f"picture {path.name!r} is truncated or damaged: {error}") from error


def check_given(path: Path) -> str:
    """Its format, such as `png`, if the file at `path` is a picture that can be drawn from.

    Raises:
        UserError: it is none, is damaged, or has more than `MAX_PIXELS`.
    """
    with _ONE, _opened(path, GIVEN) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise UserError(f"the picture has {width}x{height} pixels; {MAX_SIDE}x{MAX_SIDE} are the most")
        return str(picture.format).lower()


def settings(path: Path, name: str) -> dict[str, Any]:
    """What the picture at `path` was asked for, by the keys of prompt files, and how it was made.

    Args:
        path: the file, which is checked from its first to its last byte.
        name: what it is called where something is wrong with it.

    Raises:
        UserError: broken, or without metadata.
    """
    try:
        with _ONE:
            metadata = pictures.read_metadata(path)
        return {
            "asked": _asked(metadata),
            "made": _made(metadata),
            "conditions": metadata.get("conditions", {}),
        }
    except UserError as error:
        raise UserError(one_line(error).replace(repr(str(path)), repr(name))) from error


def _asked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    # Its conditions name files, which nothing that was sent here may have opened.
    request, _ = pictures.recorded({key: metadata[key] for key in metadata if key != "conditions"})
    names = ("prompt", "negative_prompt", "seed", "height", "width")
    asked = {name: getattr(request, name) for name in names} | dataclasses.asdict(request.stage_c)
    of_b = dataclasses.asdict(request.stage_b)
    return asked | {f"{name}_b": value for name, value in of_b.items() if name not in HR_FIELDS}


def _made(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = ("checkpoint", "config", "dtype", "batch_size", "mesh", "preview", "versions")
    return {name: metadata.get(name) for name in names}


def _opened(path: Path, formats: tuple[str, ...] = ("PNG",)) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `pixels` looks at the size
            return Image.open(path, formats=formats)
    except FAULTS as error:
        raise UserError(f"{path.name!r} is not a {' or '.join(formats)} picture") from error


def _prompt(text: object) -> str:
    import json

    try:
        prompt = json.loads(text)["prompt"] if isinstance(text, str) else ""
        return prompt if isinstance(prompt, str) else ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
