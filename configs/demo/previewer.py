"""The demo's previewer, from pictures of the base size."""

import dataclasses

from configs.demo.stage_b import config as stage_b
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import OptimizerConfig, PreviewerTask

config = dataclasses.replace(
    stage_b,
    task=PreviewerTask(),
    data=DataConfig(areas=(288,), ratios=("1/1",), batch_size=16, lr_side=2, image_vector_probability=0.0),
    start_from_sources=False,
    random_frozen=False,
    steps=1500,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine", ema_decay=0.99),
)
