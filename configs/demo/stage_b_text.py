"""The demo's stage B once more, with the text encoder that came with stage C; the EffNet encoder stays."""

import dataclasses

from configs.demo.stage_b import config as stage_b
from ultrapixel_jax.training.config import OptimizerConfig, StageBTask

assert isinstance(stage_b.task, StageBTask)
config = dataclasses.replace(
    stage_b,
    task=dataclasses.replace(stage_b.task, train_encoder=False),
    random_frozen=False,
    steps=1500,
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=100, schedule="cosine", ema_decay=0.998),
)
