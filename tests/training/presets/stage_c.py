"""The smallest stage C, from cached latents: what the tests of stopping and going on train."""

import dataclasses

from configs.tiny import config as tiny
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    DiffusionTraining,
    LogConfig,
    OptimizerConfig,
    StageCTask,
    TrainConfig,
)

stage_c = dataclasses.replace(
    tiny.stage_c,
    levels=(LevelConfig(16, 2, down_blocks=1, up_blocks=1, dropout=0.1),),
    c_cond=16,
    timestep_conditions=(),
)
config = TrainConfig(
    task=StageCTask(DiffusionTraining()),
    model=dataclasses.replace(tiny, stage_c=stage_c, guidance=None),
    data=DataConfig(cached=True, batch_size=4, image_vector_probability=0.5),
    steps=20,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.9),
    checkpoints=CheckpointConfig(every=1),
    log=LogConfig(every=1, tensorboard=False),
)
