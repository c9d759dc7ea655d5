"""What a fixed set of pictures measures while training: FID, KID, IS, CLIP score, PickScore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate import measures
from ultrapixel_jax.evaluate.features import Measured, joined, measure
from ultrapixel_jax.evaluate.networks import Networks
from ultrapixel_jax.evaluate.references import Reference
from ultrapixel_jax.evaluate.sets import in_memory, read_set
from ultrapixel_jax.files import is_remote
from ultrapixel_jax.sampling.prompts import read_prompts
from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training.pictures import Sampling
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.tasks.base import Task

DRAWS = (cfg.GuidanceTask, cfg.LoraTask, cfg.PersonalTask, cfg.StageCTask)
"""Tasks that draw prompts."""
NAMED = "measure_"
"""How the names of the log begin."""
RESAMPLES = 200


class Measures:
    """Draws and measures; all processes have to call it, as they all hold parts of the networks."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh) -> None:
        """Look for everything that it takes; what is compared with is read when it is first needed.

        Raises:
            UserError: the task draws no prompts, or something that it takes is missing.
        """
        if type(task.config.task) not in DRAWS:
            raise UserError("measures.every is set, but this task draws no prompts; leave it at 0")
        self._config = config = task.config.measures
        entries = read_prompts(config.prompts)
        self._prompts = [entry.prompt for entry in entries[: config.count or None]]
        if len(self._prompts) < 2:
            raise UserError(f"measures.prompts {config.prompts} has one prompt; a set needs two or more")
        self._draw = Sampling(task, sources, mesh, preview=config.preview, what="measures.every")
        self._networks = Networks(config.weights, mesh=mesh)
        crops = None if config.crops == 0 else "grid" if config.crops < 0 else config.crops
        self._settings = measures.Settings(
            resizing=config.resize, crops=crops, clips=measures.chosen_clips(self._networks, ()),
            resamples=RESAMPLES,
        )  # fmt: skip
        if config.against:
            self._networks.require("inception", "measures.against")
            if not Path(config.against).exists():
                raise UserError(f"measures.against {config.against!r:.200} does not exist")
        # Shards are for one process: others would write the same ones at the same time.
        alone = jax.process_count() == 1 and not is_remote(task.config.output)
        self._kept = Path(task.config.output) / "measures" if alone else None
        self._against: Reference | None = None

    def __call__(self, state: TrainState, frozen: Mapping[str, Any]) -> dict[str, float]:
        """Figures and the ends of their intervals, by the names of the log."""
        config = self._config
        channels = measures.channels_of(self._networks, self._settings, prompts=True)
        parts: list[Measured] = []
        batches = self._draw.batches(state, frozen, self._prompts, config.size, config.batch_size)
        for pictures in batches:
            start = sum(len(part.pictures.samples) for part in parts)
            prompts = self._prompts[start : start + len(pictures)]
            parts.append(measure(in_memory("training", pictures, prompts), channels))
        figures, _ = measures.figures(
            joined(parts), self._networks, self._settings, against=self._reference()
        )
        out: dict[str, float] = {}
        for name, figure in figures.items():
            out[f"{NAMED}{name}"] = figure.value
            if figure.interval is not None:
                out[f"{NAMED}{name}_low"], out[f"{NAMED}{name}_high"] = figure.interval
        return out

    def _reference(self) -> Reference | None:
        if self._against is None and self._config.against:
            self._against = measures.reference(
                Path(self._config.against), self._networks, self._settings, self._kept,
                pictures=lambda path: read_set(path, "none"),
            )  # fmt: skip
        return self._against
