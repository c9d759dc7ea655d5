"""Proofs on the demo, a line of figures per scene: what is there is kept, so that a program can be killed at
any moment and go on; a table of their means, and a contact sheet of the pictures of the first scenes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ultrapixel_jax.data.sheet import sheet
from ultrapixel_jax.demo.measure.scores import table
from ultrapixel_jax.errors import UserError

Picture = UInt8[np.ndarray, "h w 3"]
SHOWN = 256
"""Side of the pictures that are kept for the sheet, at most."""


class Measured(NamedTuple):
    """Of one scene."""

    values: dict[str, float]
    """Truths are 0 or 1."""
    pictures: dict[str, Picture]
    """By label, in the order of the sheet."""


def measured(
    run: Callable[[int], Measured], output: Path, name: str, count: int, pictures: int
) -> list[dict[str, float]]:
    """Lines of the first `count` scenes of the proof `name`; what is missing is made by `run`.

    The pictures of the first `pictures` are kept.

    Raises:
        UserError: `output` cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        done = lines_of(output, name)
        with (output / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            for index in range(len(done), count):
                found = run(index)
                for n, (label, image) in enumerate(found.pictures.items() if index < pictures else ()):
                    small = Image.fromarray(image)
                    small.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
                    text = f"{name}-{index:03d}-{n}.png"
                    small.save(output / text)
                    (output / text).with_suffix(".txt").write_text(label, encoding="utf-8")
                file.write(json.dumps(found.values) + "\n")
                file.flush()
                done.append(found.values)
                print(f"{name} {index + 1}/{count}: {found.values}", file=sys.stderr, flush=True)
    except OSError as error:
        raise UserError(f"output {output}: {error.strerror or error}") from error
    return done[:count] if count else done


def lines_of(output: Path, name: str) -> list[dict[str, float]]:
    """What was measured before."""
    path = output / f"{name}.jsonl"
    if not path.is_file():
        return []
    whole_lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in whole_lines if line.endswith("\n")]


def markdown(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Means over the scenes of each proof."""
    rows = [
        [name, what, str(len(values)), f"{np.mean(values):.3f}"]
        for name, lines in measured.items()
        for what in dict.fromkeys(key for line in lines for key in line)
        for values in [[line[what] for line in lines if what in line]]
    ]
    return table(["proof", "what", "scenes", "mean"], rows, labels=2)


def save_sheet(output: Path, file: Path) -> None:
    """Write all pictures that were kept.

    Raises:
        UserError: there are none, or `file` cannot be written.
    """
    try:
        Image.fromarray(contact_sheet(output)).save(file, quality=85)
    except (OSError, ValueError) as error:
        raise UserError(f"--sheet {str(file)!r}: {error}") from error


def contact_sheet(output: Path) -> Picture:
    """All pictures that were kept, each proof's scenes in rows.

    Raises:
        UserError: there are none.
    """
    paths = sorted(output.glob("*-*-*-*.png"))
    if not paths:
        raise UserError(f"{output} has no pictures yet; give --count 1 or more")
    rows: dict[str, list[Path]] = {}
    for path in paths:
        rows.setdefault(path.stem.rpartition("-")[0], []).append(path)
    columns = max(map(len, rows.values()))
    empty = np.full((SHOWN, SHOWN, 3), 255, np.uint8)
    pictures, labels = [], []
    for name, row in rows.items():
        for n in range(columns):
            there = n < len(row)
            pictures.append(np.asarray(Image.open(row[n]).convert("RGB")) if there else empty)
            text = row[n].with_suffix(".txt").read_text(encoding="utf-8") if there else ""
            labels.append(f"{name.rpartition('-')[0]}: {text}" if there and n == 0 else text)
    return sheet(pictures, labels, columns)
