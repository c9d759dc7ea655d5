"""The tasks: one file each, one loss each."""

from __future__ import annotations

from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training.tasks.base import Task
from ultrapixel_jax.training.tasks.controlnet import TrainControlNet
from ultrapixel_jax.training.tasks.guidance import TrainGuidance
from ultrapixel_jax.training.tasks.lora import TrainLora
from ultrapixel_jax.training.tasks.personal import TrainPersonal
from ultrapixel_jax.training.tasks.previewer import TrainPreviewer
from ultrapixel_jax.training.tasks.stage_a import TrainStageA
from ultrapixel_jax.training.tasks.stage_b import TrainStageB
from ultrapixel_jax.training.tasks.stage_c import TrainStageC
from ultrapixel_jax.training.tasks.text import TrainText

TASKS: dict[type, type[Task]] = {
    cfg.ControlNetTask: TrainControlNet,
    cfg.GuidanceTask: TrainGuidance,
    cfg.LoraTask: TrainLora,
    cfg.PersonalTask: TrainPersonal,
    cfg.PreviewerTask: TrainPreviewer,
    cfg.StageATask: TrainStageA,
    cfg.StageBTask: TrainStageB,
    cfg.StageCTask: TrainStageC,
    cfg.TextTask: TrainText,
}


def make_task(config: cfg.TrainConfig) -> Task:
    """The task that `config.task` describes."""
    return TASKS[type(config.task)](config)
