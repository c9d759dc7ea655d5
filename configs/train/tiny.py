"""The guidance networks of the tiny cascade on a frozen stage C with random weights: to try things out.

    python train.py configs/train/tiny.py --data.path DATA --output RUN

Seconds per hundred steps on a CPU; what it learns is of no use.
"""

import dataclasses

from configs.tiny import config as tiny
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    GuidanceTask,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

assert tiny.guidance is not None
config = TrainConfig(
    task=GuidanceTask(),
    model=dataclasses.replace(tiny, guidance=dataclasses.replace(tiny.guidance, lr_side=8)),
    data=DataConfig(areas=(256,), ratios=("1/1",), batch_size=4, image_vector_probability=0.0),
    random_frozen=True,
    steps=100,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    checkpoints=CheckpointConfig(every=50),
    log=LogConfig(every=10),
)
