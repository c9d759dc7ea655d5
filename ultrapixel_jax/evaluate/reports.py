"""What an evaluation writes: JSON, a Markdown table, every picture's scores, the best and the worst."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ultrapixel_jax.config.version import __version__
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.data.sheet import sheet
from ultrapixel_jax.evaluate.features import Measured
from ultrapixel_jax.evaluate.measures import TITLES, Figure, Figures
from ultrapixel_jax.evaluate.sets import by_size
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.models import measuring

JSON, TABLE, SCORES, SHEET = "report.json", "report.md", "scores.jsonl", "best_and_worst.jpg"
SHOWN = 8
"""Best and worst pictures each."""
THUMBNAIL = 320
"""Pixels on their longer side."""


def described(measured: Measured) -> dict[str, Any]:
    """A set, JSON-able."""
    sizes = measured.sizes[measured.whole].tolist()
    return {
        "name": measured.pictures.name,
        "pictures": len(measured.whole),
        "sizes": dict(by_size([(h, w) for h, w in sizes])),
        "broken": dict(measured.broken),
        "crops": {name: int(f.counts.sum()) for name, f in measured.channels.items() if name == "crops"},
    }


def report(
    measured: Measured,
    figures: Figures,
    *,
    networks: Sequence[Mapping[str, str]],
    settings: Mapping[str, Any],
    against: Mapping[str, Any] | None,
    versus: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """All of an evaluation, JSON-able."""
    return {
        "set": described(measured),
        "against": against,
        "versus": versus,
        "figures": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
        "networks": list(networks),
        "settings": dict(settings),
        "notes": list(notes),
        "version": __version__,
    }


def shown(figure: Figure) -> tuple[str, str]:
    """A figure and its interval, in as many digits as the interval leaves."""
    if figure.interval is None:
        return f"{figure.value:.4g}", "–"
    low, high = figure.interval
    width = max(high - low, 1e-12)
    digits = int(np.clip(2 - np.floor(np.log10(width)), 0, 8))
    return f"{figure.value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    found = result["set"]
    lines = [f"# {found['name']}", "", "| measure | value | 95 % interval | deviation | of | note |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, values in result["figures"].items():
        figure = Figure(**values)
        value, interval = shown(figure)
        deviation = "–" if figure.deviation is None else f"{figure.deviation:.3g}"
        of = f"{figure.rows:,} crops of {figure.pictures:,}" if figure.rows else f"{figure.pictures:,}"
        of += f" beside {figure.others:,}" if figure.others else ""
        lines.append(f"| {TITLES[name]} | {value} | {interval} | {deviation} | {of} | {figure.note} |")
    settings = result["settings"]
    lines += ["", f"- pictures: {found['pictures']:,} ({_sizes(found['sizes'])})"]
    for key, said in (("against", "compared with"), ("versus", "wins over")):
        if other := result[key]:
            count = "" if other.get("pictures") is None else f", {other['pictures']:,} pictures"
            lines.append(f"- {said}: {other['name']}{count}")
    lines += [f"- {key}: {value}" for key, value in settings.items() if value is not None]
    for network in result["networks"]:
        random = (
            " **random weights**, comparable only with the same" if "random:" in network["source"] else ""
        )
        lines.append(f"- {network['name']}: {network['source']}, sha256 {network['sha256'][:16]}…{random}")
    if found["broken"]:
        lines += ["", f"{len(found['broken'])} pictures cannot be read and do not count:", ""]
        lines += [f"- {name}: {why}" for name, why in found["broken"].items()]
    if result["notes"]:
        lines += ["", *(f"- note: {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def as_json(columns: Mapping[str, Figures]) -> str:
    """Figures of several sets."""
    plain = {
        name: {key: dataclasses.asdict(f) for key, f in figures.items()} for name, figures in columns.items()
    }
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _sizes(sizes: Mapping[str, int]) -> str:
    first = [f"{n:,} of {size}" for size, n in list(sizes.items())[:4]]
    return ", ".join(first) + (f", … {len(sizes) - 4} more sizes" if len(sizes) > 4 else "")


def write(
    directory: Path, result: Mapping[str, Any], measured: Measured, each: Mapping[str, Sequence[float]]
) -> list[Path]:
    """All files of a report; which were written.

    Raises:
        UserError: one cannot be written.
    """
    with user_errors(directory, "report"):
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / JSON, directory / TABLE]
        write_whole(paths[0], json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_whole(paths[1], markdown(result))
        if each:
            paths += [directory / SCORES, directory / SHEET]
            samples = [measured.pictures.samples[i] for i in measured.whole]
            lines = (
                json.dumps(
                    {"name": s.name, "prompt": s.prompt, **dict(zip(each, values))}, ensure_ascii=False
                )
                for s, values in zip(samples, zip(*each.values(), strict=True), strict=True)
            )
            write_whole(paths[2], "".join(f"{line}\n" for line in lines))
            name = next((name for name in each if name in measuring.CLIPS), next(iter(each)))
            Image.fromarray(best_and_worst(measured, name, each[name])).save(paths[3], quality=88)
    return paths


def best_and_worst(measured: Measured, name: str, values: Sequence[float]) -> np.ndarray:
    """The pictures with the highest scores of a CLIP, and below them those with the lowest."""
    order = np.argsort(-np.asarray(values), kind="stable").tolist()
    count = min(SHOWN, len(order) // 2)
    pictures, labels = [], []
    for place in (*order[:count], *order[len(order) - count :]):
        sample = measured.pictures.samples[measured.whole[place]]
        image = sample.read()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        pictures.append(np.asarray(image))
        labels.append(f"{values[place]:.2f} {sample.prompt}")
    title = f"{TITLES[name]}: the highest {count} and the lowest {count} of {len(order)}"
    return sheet(pictures, labels, columns=count, title=title)
