"""Stage C from nothing, on latents of a finished EffNet encoder and CLIP's text.

    python train.py configs/train/stage_c.py --sources STAGE_B CLIP --data.path DATA --output RUN

`--task.train-text-encoder` trains a text encoder of `model.clip_text`'s size with it.
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import OptimizerConfig, StageCTask, TrainConfig

config = TrainConfig(
    task=StageCTask(),
    model=full,
    data=DataConfig(areas=(768,), batch_size=1024, workers=8, clip_image_size=224),
    steps=500_000,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000, accumulate=4),
)
