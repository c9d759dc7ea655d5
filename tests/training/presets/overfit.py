"""Stage C and its text encoder on eight pictures, until it knows them."""

import dataclasses

from tests.models.filled import SMALL
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    PicturesConfig,
    StageCTask,
    TrainConfig,
)

level = LevelConfig(32, 4, down_blocks=1, up_blocks=1)
stage_c = dataclasses.replace(SMALL.stage_c, levels=(level, level), c_cond=48)
config = TrainConfig(
    task=StageCTask(train_text_encoder=True, dropout=False),
    model=dataclasses.replace(SMALL, guidance=None, stage_c=stage_c),
    data=DataConfig(
        areas=(128,), ratios=("1/1",), batch_size=8, lr_latent=2, image_vector_probability=0.0,
        caption_dropout=0.0,
    ),
    random_frozen=True,
    steps=150,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20, ema_decay=0.99),
    checkpoints=CheckpointConfig(every=150),
    pictures=PicturesConfig(every=150, prompts=("a red picture", "a blue picture"), size=(256, 256)),
    log=LogConfig(every=15, tensorboard=False),
)  # fmt: skip
