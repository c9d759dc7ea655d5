"""How long a picture takes still, from what was measured of those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

STAGES = {
    "C low": "planning at low resolution",
    "C high": "drawing at full resolution",
    "B": "adding detail",
    "A": "decoding to pixels",
}
"""The stages of a picture that take long, with what a person is told of them."""


@dataclasses.dataclass(frozen=True)
class Load:
    """What one device batch has to do."""

    steps: Mapping[str, int]
    """Of each stage, in their order."""
    pixels: int
    """Of one picture."""
    batch: int


class Pace:
    """Seconds per step, by stage, size and batch."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], float] = {}

    def note(self, stage: str, load: Load, seconds: float) -> None:
        """A step of `stage` took `seconds`; the last measurement counts."""
        self._known[stage, load.pixels, load.batch] = seconds

    def of(self, stage: str, load: Load) -> float | None:
        """Seconds of a step: as measured at this size, or at the one nearest to it and in proportion to its
        work (the plan's size hardly depends on the picture's); None where nothing was.
        """
        if (known := self._known.get((stage, load.pixels, load.batch))) is not None:
            return known
        work = load.pixels * load.batch
        near = [(abs(p * b - work), p * b, s) for (name, p, b), s in self._known.items() if name == stage]
        if not near:
            return None
        _, measured, seconds = min(near)
        return seconds if stage == "C low" else seconds * work / measured

    def remaining(self, load: Load, stage: str | None, done: int) -> float | None:
        """Seconds until a batch is finished that has done so many steps of `stage`; None for one that waits.

        None is also the result where a stage that is still to come was never measured.
        """
        names = list(load.steps)
        ahead = names[names.index(stage) :] if stage in names else names
        total = 0.0
        for name in ahead:
            left = load.steps[name] - (done if name == stage else 0)
            if (seconds := self.of(name, load)) is None:
                return None
            total += seconds * left
        return total
