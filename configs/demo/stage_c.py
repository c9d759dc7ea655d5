"""The demo's stage C on the finished text encoder, from captions and cached latents of the base size.

Trained with it, the text encoder forgot what "left of" and "right of" are within 900 steps.
"""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.demo.train import PICTURES, RATIOS
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    DiffusionTraining,
    LogConfig,
    OptimizerConfig,
    StageCTask,
    TrainConfig,
)

config = TrainConfig(
    task=StageCTask(diffusion=DiffusionTraining("stable_diffusion", adaptive_buckets=32), dropout=False),
    model=demo,
    data=DataConfig(
        cached=True,
        cached_text=False,
        areas=(288,),
        ratios=RATIOS,
        batch_size=32,
        image_vector_probability=0.0,
        caption_dropout=0.1,
    ),
    steps=9000,
    scanned=False,
    optimizer=OptimizerConfig(
        algorithm="muon", learning_rate=4e-3, warmup_steps=100, schedule="cosine", ema_decay=0.999
    ),
    checkpoints=CheckpointConfig(every=1000, keep_last=2),
    log=LogConfig(every=100),
    pictures=PICTURES,
)
