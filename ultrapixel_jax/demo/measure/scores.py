"""Scores of single pictures against their scenes, and the tables that they add up to."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ultrapixel_jax.demo.measure.detect import Found, compare, detect, relation
from ultrapixel_jax.demo.measure.sharpness import enlarge, sharpness
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render

MOVED = 0.05
"""How far an object of the picture may lie from that of the low-resolution one, in shorter sides."""
GROWN = 1.2
"""How much larger or smaller it may be, as a factor."""


class Drawn(NamedTuple):
    """What a model draws."""

    image: np.ndarray
    """RGB, uint8."""
    low: np.ndarray | None
    """The low-resolution pass's picture; None where there is no such pass."""
    lr: tuple[int, int]
    """Height and width of the low-resolution picture, with or without such a pass."""


# ---------------------------------------------------------------------------- one picture


def judge(scene: scenes.Scene, drawn: Drawn) -> dict[str, Any]:
    """Everything that is measured of one picture, JSON-able."""
    found = detect(drawn.image)
    size: tuple[int, int] = drawn.image.shape[:2]

    def measured(image: np.ndarray, objects: Sequence[Found] | Sequence[scenes.Object]) -> dict[str, Any]:
        return dataclasses.asdict(sharpness(image, objects, drawn.lr))

    line: dict[str, Any] = {
        "caption": plain_caption(scene),
        **_verdict(scene, found),
        "found": [dataclasses.asdict(f) for f in found],
        "sharpness": measured(drawn.image, found),
        "sharpness_drawn": measured(render(scene, *size), scene.objects),
    }
    if drawn.low is not None:
        low = detect(drawn.low)
        line |= {
            "low": {**_verdict(scene, low), "found": [dataclasses.asdict(f) for f in low]},
            "layout": same_layout(low, found),
            "contents": same_contents(low, found),
            "sharpness_low": measured(enlarge(drawn.low, size), low),
        }
    return line


def _verdict(scene: scenes.Scene, found: Sequence[Found]) -> dict[str, Any]:
    verdict = compare(scene, found)
    return {**dataclasses.asdict(verdict), "all": verdict.all}


def same_layout(low: Sequence[Found], high: Sequence[Found]) -> bool | None:
    """Whether there are as many objects, in the same places and of the same sizes; None for no objects."""
    return _matched(low, high, ()) if low or high else None


def same_contents(low: Sequence[Found], high: Sequence[Found]) -> bool | None:
    """The same layout, with the same colours, shapes and textures."""
    return _matched(low, high, ("colour", "shape", "texture")) if low or high else None


def _matched(low: Sequence[Found], high: Sequence[Found], names: Sequence[str]) -> bool:
    def fits(a: Found, b: Found) -> bool:
        near = math.hypot(a.x - b.x, a.y - b.y) <= MOVED and 1 / GROWN <= a.size / b.size <= GROWN
        return near and all(getattr(a, name) == getattr(b, name) for name in names)

    return len(low) == len(high) and any(
        all(fits(a, b) for a, b in zip(low, order)) and relation(low) == relation(order)
        for order in itertools.permutations(high)
    )


# ---------------------------------------------------------------------------- the table

SHARES = ("colour", "shape", "texture", "relation", "number", "all")
MEASURES = ("edges", "textures", "width")
SOURCES = {"sharpness": "picture", "sharpness_low": "LR enlarged", "sharpness_drawn": "drawn scene"}


def row(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over pictures; None where no picture has the value."""
    return {
        "pictures": len(lines),
        **{name: _mean([line[name] for line in lines]) for name in SHARES},
        "all_low": _mean([line["low"]["all"] for line in lines if "low" in line]),
        **{name: _mean([line.get(name) for line in lines]) for name in ("layout", "contents")},
        **{
            source: {
                name: _mean([line[source][name] for line in lines if source in line]) for name in MEASURES
            }
            for source in SOURCES
        },
    }


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def table(head: Sequence[str], body: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Markdown; the first `labels` columns are words, the others numbers."""
    rows = [head, [*["---"] * labels, *["---:"] * (len(head) - labels)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    def size(row: dict[str, Any]) -> str:
        return f"{row['size'][0]}×{row['size'][1]}"

    right = table(
        ["size", "pictures", *SHARES, "all, LR pass", "layout kept", "contents kept"],
        [
            [
                size(r),
                str(r["pictures"]),
                *(share(r[name]) for name in (*SHARES, "all_low", "layout", "contents")),
            ]
            for r in rows
        ],
    )
    names = {"edges": "detail at edges", "textures": "detail in textures", "width": "edge width, px"}
    sharp = table(
        ["size", *(f"{names[name]}: {source}" for name in MEASURES for source in SOURCES.values())],
        [[size(r), *(number(r[source][name]) for name in MEASURES for source in SOURCES)] for r in rows],
    )
    return f"{right}\n{sharp}"
