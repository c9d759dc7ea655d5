"""Figures as bars with their intervals, and by size; with matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate.measures import TITLES, Figure

COLOUR = "#4a6fa5"
INSTALL = "pip install 'ultrapixel_jax[plots]'"


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def draw(path: Path, columns: Mapping[str, Mapping[str, Figure]], title: str) -> None:
    """One panel for each measure, a bar for each column (a set, or a size) with its interval.

    Args:
        path: of the PNG.
        columns: figures by the column's name.
        title: above all.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib.figure as mpl  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"plots need matplotlib: {INSTALL}") from error
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = mpl.Figure(figsize=(3.2 * across, 2.8 * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, name in zip(axes, names):
        _panel(axis, name, [(column, f[name]) for column, f in columns.items() if name in f])
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    with user_errors(path, "plot"):
        figure.savefig(path, dpi=120, format="png")


def _panel(axis: Any, name: str, bars: Sequence[tuple[str, Figure]]) -> None:
    values = [figure.value for _, figure in bars]
    places = list(range(len(bars)))
    axis.bar(places, values, color=COLOUR, width=0.6)
    for place, (_, figure) in zip(places, bars, strict=True):
        if figure.interval is not None:
            low, high = figure.interval
            error = [[max(0.0, figure.value - low)], [max(0.0, high - figure.value)]]
            axis.errorbar(place, figure.value, yerr=error, color="black", capsize=4)
    axis.set_xticks(places, [column for column, _ in bars], fontsize=8)
    axis.set_xlim(-0.8, len(bars) - 0.2)
    axis.set_title(TITLES[name], fontsize=10)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
