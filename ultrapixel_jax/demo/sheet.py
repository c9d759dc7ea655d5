"""A contact sheet of pictures that `sample.py` made: a column per prompt, a row per size.

    python sample.py --prompts configs/demo/sheet.jsonl --output PICTURES
    python -m ultrapixel_jax.demo.sheet PICTURES docs/demo.webp
    python -m ultrapixel_jax.demo.sheet OTHERS docs/sizes.webp --strip

A last row shows the middle of the largest pictures pixel by pixel. Prompts and sizes are read from the
pictures; they keep the order of the file names. With --strip, pictures of any size stand in rows, by area,
larger ones larger.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ultrapixel_jax import commands
from ultrapixel_jax.commands import whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling.pictures import load_pixels, read_metadata, recorded

GAP = 4
"""Pixels between pictures."""
LINES, LINE, FONT = 2, 14, 12
"""Lines of a prompt, their height and that of the letters, in pixels."""
LEFT = 72
"""Room for a size, in pixels. Pillow's own font has no ×."""

Cells = dict[tuple[str, tuple[int, int]], Path]
"""A picture for each prompt and size (height, width)."""


def read(directory: Path) -> Cells:
    """The pictures in `directory`; of two with the same prompt and size, the first.

    Raises:
        UserError: there are none, or one was not made by `sample.py`.
    """
    cells: Cells = {}
    for path in sorted(directory.glob("*.png")):
        request, _ = recorded(read_metadata(path))
        cells.setdefault((request.prompt, (request.height, request.width)), path)
    if not cells:
        raise UserError(f"{str(directory)!r} has no picture; give the directory that sample.py wrote")
    return cells


def sheet(cells: Cells, side: int) -> Image.Image:
    """All pictures, each at most `side` pixels high and wide, with sizes and prompts written beside them."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in cells))
    sizes = sorted({size for _, size in cells}, key=lambda size: size[0] * size[1])
    rows = [f"{height}x{width}" for height, width in sizes] + ["1:1"]
    step, left, top = side + GAP, LEFT, LINES * LINE + GAP
    out = Image.new("RGB", (left + step * len(prompts), top + step * len(rows)), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(FONT)
    for row, text in enumerate(rows):
        pen.text((2, top + step * row + side // 2), text, "black", font)
    for column, prompt in enumerate(prompts):
        x = left + step * column
        lines = textwrap.wrap(prompt, width=2 * side // FONT)[:LINES]
        pen.multiline_text((x, 0), "\n".join(lines), "black", font, spacing=2)
        for row, size in enumerate(sizes):
            if (path := cells.get((prompt, size))) is None:
                continue
            picture = Image.fromarray(load_pixels(path))
            small = picture.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            out.paste(small, (x, top + step * row))
            if size == sizes[-1]:
                out.paste(middle(picture, side), (x, top + step * len(sizes)))
    return out


def middle(picture: Image.Image, side: int) -> Image.Image:
    """The central square of `side` pixels, or what there is of it."""
    a = np.asarray(picture)
    y, x = (max(0, (n - side) // 2) for n in a.shape[:2])
    return Image.fromarray(a[y : y + side, x : x + side])


def strip(cells: Cells, side: int, across: int = 6) -> Image.Image:
    """All pictures by area, with their sizes below, in even rows up to `across` times `side` pixels wide.

    The largest has the area of `side`² pixels, the others less, by the fourth root of their areas: so that
    the smallest can still be seen beside one of 36 times its area.
    """
    sizes = sorted(((size, path) for (_, size), path in cells.items()), key=lambda c: c[0][0] * c[0][1])
    (h, w), _ = sizes[-1]
    scale = side / (h * w) ** 0.25
    shown = []
    for (height, width), path in sizes:
        shrink = scale / (height * width) ** 0.25
        shown.append((round(height * shrink), round(width * shrink), f"{height}x{width}", path))
    total = sum(cell[1] + GAP for cell in shown)
    even = total / math.ceil(total / (across * side))
    rows: list[list[tuple[int, int, str, Path]]] = [[]]
    for cell in shown:
        if rows[-1] and sum(c[1] + GAP for c in rows[-1]) + cell[1] / 2 > even:
            rows.append([])
        rows[-1].append(cell)
    heights = [max(cell[0] for cell in row) + LINE + GAP for row in rows]
    out = Image.new("RGB", (max(sum(c[1] + GAP for c in row) for row in rows), sum(heights)), "white")
    pen, font, bottom = ImageDraw.Draw(out), ImageFont.load_default(FONT), 0
    for row, height in zip(rows, heights):
        left, bottom = 0, bottom + height
        for h, w, size, path in row:
            small = Image.fromarray(load_pixels(path)).resize((w, h), Image.Resampling.LANCZOS)
            out.paste(small, (left, bottom - LINE - GAP - h))
            pen.text((left, bottom - LINE - GAP + 1), size, "black", font)
            left += w + GAP
    return out


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.sheet", __doc__)
    p.argument("pictures", Path, "directory that sample.py wrote")
    p.argument("output", Path, "the sheet: .png, .jpg or .webp", metavar="FILE")
    p.option("--side", whole(32, 4096), "pixels of each picture", 192)
    p.flag("--strip", "in rows by area, whatever their shapes; the largest has the area of --side")
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if o.output.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise UserError(f"sheet {str(o.output)!r} is neither .png, .jpg nor .webp")
    picture = (strip if o.strip else sheet)(read(o.pictures), o.side)
    try:
        picture.save(o.output, quality=85)
    except OSError as error:
        raise UserError(f"{o.output}: {error.strerror or error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
