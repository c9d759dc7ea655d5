"""The demo's stage C with its text encoder, from cached latents of 384² pictures and their captions."""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    DiffusionTraining,
    LogConfig,
    OptimizerConfig,
    StageCTask,
    TrainConfig,
)

config = TrainConfig(
    task=StageCTask(diffusion=DiffusionTraining(adaptive_buckets=32), train_text_encoder=True),
    model=demo,
    data=DataConfig(
        cached=True, cached_text=False, batch_size=32, image_vector_probability=0.0, caption_dropout=0.1
    ),
    steps=20_000,
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300, schedule="cosine", ema_decay=0.999),
    checkpoints=CheckpointConfig(every=1000, keep_last=2),
    log=LogConfig(every=100),
)
