"""What a run says when it is finished: how to sample from what it trained."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training.config import (
    ControlNetTask,
    GuidanceTask,
    LoraTask,
    PersonalTask,
    StageCTask,
    TextTask,
    TrainConfig,
)
from ultrapixel_jax.training.tasks import make_task

DRAWING = ("clip_text", "stage_c", "stage_b", "stage_a")
"""Networks that every picture takes."""


def finished(config: TrainConfig) -> str:
    """The last line of a run whose steps are all done."""
    line = f"finished: {config.output} has all {config.steps} steps"
    try:
        found = set(Sources(config.sources).entries)
    except UserError:  # a source is no longer there, and a run needs its sources to be sampled from
        return line
    if config.random_frozen:
        found |= set(DRAWING)
    return f"{line}; {to_sample(config, found | set(make_task(config).trained))}"


def to_sample(config: TrainConfig, networks: Collection[str]) -> str:
    """How to sample from a run that with its sources has `networks`."""
    run = shlex.quote(config.output)
    draw = "python sample.py --checkpoint {} --prompt " + shlex.quote(config.pictures.prompts[0])
    if missing := [name for name in DRAWING if name not in networks]:
        return (
            f"to sample, join it with a checkpoint or run that has {', '.join(missing)}: "
            f"python -m convert OTHER {run} NEW; {draw.format('NEW')}"
        )
    if isinstance(config.task, ControlNetTask):
        kind = config.model.controlnet.kind
        files = "IMAGE:MASK" if kind == "inpainting" else "IMAGE"
        return f"sample from it: {draw.format(run)} --control {kind}:{files}"
    if isinstance(config.task, PersonalTask) and config.model.lora.tokens:
        word = config.model.lora.tokens[0].partition("=")[0].strip()
        return f"draw it: python sample.py --checkpoint {run} --prompt " + shlex.quote(f"a photo of {word}")
    if not isinstance(config.task, GuidanceTask | LoraTask | PersonalTask | StageCTask | TextTask):
        return f"pictures decoded by it: {draw.format(run)}"
    return f"sample from it: {draw.format(run)}"
