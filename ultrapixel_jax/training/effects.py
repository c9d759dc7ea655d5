"""Options of ``train.py`` that were given and change nothing, in words; `sampling/effects.py` is of pictures.

Presets say more than a run may need; what counts is what the command line itself says. Imports no jax.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from typing import NamedTuple

from ultrapixel_jax.training.config import (
    GUIDED,
    ControlNetTask,
    PreviewerTask,
    StageATask,
    StageBTask,
    TextTask,
    TrainConfig,
)

RECONSTRUCT = (StageATask, PreviewerTask, StageBTask)
"""Tasks whose pictures are the batch's own, beside what is made of them."""
WORDLESS = (StageATask, PreviewerTask)
"""Tasks that read no caption."""
SIGHTLESS = (*RECONSTRUCT, TextTask)
"""Tasks that no image vector of CLIP reaches."""


class Rule(NamedTuple):
    """Options that have no effect where a condition holds, and why; `*` stands for any part of a name."""

    names: tuple[str, ...]
    holds: Callable[[TrainConfig], bool]
    why: str


def _is(*tasks: type) -> Callable[[TrainConfig], bool]:
    return lambda config: isinstance(config.task, tasks)


def _outliers_are_free(config: TrainConfig) -> bool:
    task = config.task
    return isinstance(task, PreviewerTask) and not (task.train_encoder and task.outlier_weight)


def _fixed_encoder(config: TrainConfig) -> bool:
    return isinstance(config.task, PreviewerTask) and not config.task.train_encoder


RULES = (
    Rule(
        ("data.areas", "data.ratios", "data.lr-resize", "data.max-megapixels", "data.clip-image-size"),
        lambda c: c.data.cached,
        "cached latents have their sizes",
    ),
    Rule(("data.prior-share",), lambda c: not c.data.prior, "there is no second dataset (data.prior)"),
    Rule(("data.cached-text",), lambda c: not c.data.cached, "the data are images, without cached text"),
    Rule(("data.cache-dir",), lambda c: "://" not in c.data.path, "data.path is on this machine"),
    Rule(
        ("data.lr-latent", "data.lr-resize"),
        lambda c: not isinstance(c.task, GUIDED),
        "the task sees no low-resolution image",
    ),
    Rule(("data.caption-dropout",), _is(*WORDLESS), "the task reads no captions"),
    Rule(
        ("data.image-vector-probability", "data.clip-image-size"),
        _is(*SIGHTLESS),
        "the task takes no image vector",
    ),
    Rule(
        ("optimizer.final-fraction",),
        lambda c: c.optimizer.schedule == "constant",
        "optimizer.schedule is constant",
    ),
    Rule(
        ("task.diffusion.adaptive-buckets",),
        lambda c: c.task.diffusion.loss_weight != "adaptive",
        "task.diffusion.loss-weight is not adaptive",
    ),
    Rule(("task.outlier-weight",), _fixed_encoder, "the encoder is not trained (task.train-encoder)"),
    Rule(("task.outlier-limit",), _outliers_are_free, "outliers cost nothing (task.outlier-weight)"),
    Rule(
        ("pictures.prompts", "pictures.size", "pictures.preview", "model.sampling-*"),
        lambda c: c.pictures.every == 0,
        "no pictures are drawn (pictures.every)",
    ),
    Rule(
        ("pictures.prompts", "pictures.size"),
        _is(*RECONSTRUCT, ControlNetTask),
        "the pictures are those of the batch",
    ),
    Rule(
        ("validation.every", "validation.examples"),
        lambda c: c.validation.share == 0,
        "nothing is held out (validation.share)",
    ),
    Rule(
        ("machines.*",),
        lambda c: not (c.machines.distributed or c.machines.coordinator),
        "there is one process (machines.distributed)",
    ),
    Rule(
        ("start-from-sources",),
        lambda c: c.start_from_sources and not c.sources,
        "there are no sources (sources)",
    ),
)  # fmt: skip
"""In the order in which they are told; the first that holds counts."""


def without_effect(given: Collection[str], config: TrainConfig) -> list[str]:
    """A line for each reason for which options of the command line have no effect.

    Args:
        given: names of options as they are written, without the leading hyphens.
        config: what they make.
    """
    lines: dict[str, list[str]] = {}
    names = {_plain(name): name for name in given}
    for pattern, holds, why in ((p, rule.holds, rule.why) for rule in RULES for p in rule.names):
        for name in sorted(fnmatch.filter(names, pattern)):
            if holds(config):
                lines.setdefault(why, []).append(names.pop(name))
    return [f"{', '.join(names)} without effect: {why}" for why, names in lines.items()]


def _plain(name: str) -> str:
    """`data.no-cached_text` as `data.cached-text`."""
    *above, last = name.replace("_", "-").split(".")
    return ".".join([*above, last.removeprefix("no-")])
