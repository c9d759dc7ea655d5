"""Contact sheets: pictures in rows, with what they are written below each."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "_h _w 3"]
GAP, FONT, LINE = 8, 14, 17
"""Pixels between pictures; height of letters and of lines."""
LINES = 3
"""Most lines below a picture."""


def sheet(
    pictures: Sequence[Picture], labels: Sequence[str], columns: int | None = None, title: str = ""
) -> Picture:
    """All pictures as they are, each with its label below.

    Args:
        pictures: of any sizes.
        labels: one for each; empty for none. What does not fit in three lines is left out.
        columns: pictures side by side; None makes the sheet about as wide as high.
        title: a line above all.
    """
    width, height = max(p.shape[1] for p in pictures), max(p.shape[0] for p in pictures)
    if columns is None:
        columns = max(1, round((len(pictures) * height / width) ** 0.5))
    columns = min(columns, len(pictures))
    below = [_wrapped(label, width) for label in labels]
    room = LINE * max(map(len, below))
    rows, top = -(-len(pictures) // columns), LINE + GAP if title else 0
    size = (columns * (width + GAP) + GAP, top + rows * (height + room + GAP) + GAP)
    out = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(FONT)
    if title:
        pen.text((GAP, GAP), _shown(title), "black", font)
    for i, (picture, lines) in enumerate(zip(pictures, below, strict=True)):
        row, column = divmod(i, columns)
        x, y = GAP + column * (width + GAP), top + GAP + row * (height + room + GAP)
        out.paste(Image.fromarray(picture), (x, y))
        for n, line in enumerate(lines):
            pen.text((x, y + picture.shape[0] + n * LINE), line, "black", font)
    return np.asarray(out)


def stacked(sheets: Sequence[Picture]) -> Picture:
    """Sheets below one another, on white."""
    width = max(s.shape[1] for s in sheets)
    return np.concatenate(
        [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    )


def _wrapped(label: str, width: int) -> list[str]:
    """Lines of at most `width` pixels; of what is too long, the beginning."""
    letters = max(8, int(width / (0.52 * FONT)))
    lines = textwrap.wrap(_shown(label), letters)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"{lines[LINES - 1][: letters - 4]} ..."]
    return lines


def _shown(text: str) -> str:
    """`text` in letters that Pillow's own font has: without accents; others as their numbers."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return plain.encode("ascii", "backslashreplace").decode()
