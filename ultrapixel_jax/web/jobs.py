"""What is drawn, as browsers see it."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from typing import Any, Literal

from ultrapixel_jax.web.asks import Ask
from ultrapixel_jax.web.pace import Load, Pace
from ultrapixel_jax.web.told import by_name

State = Literal["waiting", "drawing", "done", "failed", "cancelled"]


@dataclasses.dataclass
class Job:
    """One request in the queue; changed under the studio's lock."""

    ask: Ask
    browser: str
    """Which browser asked, by a word that it made up."""
    count: int
    """Pictures."""
    load: Load
    batches: int
    notes: list[str]
    """What may be a surprise, a line each."""
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    asked_at: float = dataclasses.field(default_factory=time.time)
    batches_done: int = 0
    stage: str | None = None
    step: int = 0
    pictures: list[str] = dataclasses.field(default_factory=list)
    """Names of the finished ones."""
    previews: dict[str, list[bytes]] = dataclasses.field(default_factory=dict)
    """WebP of each picture of the batch at work: `plan` is the LR pass's, `large` the HR pass's."""
    previewed: int = 0
    """Changes with every preview."""
    error: str = ""
    began: float = 0.0
    """`time.monotonic` of its start."""
    took: float = 0.0
    """Seconds, of a finished one."""
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")

    def remaining(self, pace: Pace) -> float | None:
        """Seconds until it is finished, once it is drawn; None where nobody knows."""
        now = pace.remaining(self.load, self.stage, self.step)
        each = pace.remaining(self.load, None, 0)
        later = self.batches - self.batches_done - 1
        if now is None or (later > 0 and each is None):
            return None
        return now + max(0, later) * (each or 0.0)

    def shown(self, pace: Pace, browser: str) -> dict[str, Any]:
        """What `browser` is told of it."""
        entry = self.ask.entry
        seconds = pace.of(self.stage, self.load) if self.stage else None
        steps = self.load.steps.get(self.stage or "", 0)
        return {
            "id": self.id,
            "mine": self.browser == browser,
            "state": self.state,
            "asked_at": self.asked_at,
            "prompt": entry.prompt,
            "negative_prompt": entry.negative_prompt or "",
            "seed": entry.seed,
            "height": entry.height,
            "width": entry.width,
            "count": self.count,
            "settings": dict(entry.settings),
            "stages": dict(self.load.steps),
            "stage": self.stage,
            "step": self.step,
            "stage_seconds": None if seconds is None else seconds * (steps - self.step),
            "seconds": None if self.over else self.remaining(pace),
            "batch": self.batches_done + 1,
            "batches": self.batches,
            "pictures": list(self.pictures),
            "previews": {kind: len(images) for kind, images in self.previews.items()},
            "previewed": self.previewed,
            "notes": [by_name(note) for note in self.notes],
            "error": by_name(self.error),
            "took": self.took,
        }
