"""The demo's text encoder alone, from captions and cached latents of 384² pictures: a few minutes.

Without it, stage C had not learned which of two objects is the left one after 275,000 pictures.
"""

import dataclasses

from configs.demo.stage_c import config as stage_c
from ultrapixel_jax.training.config import OptimizerConfig, TextTask

config = dataclasses.replace(
    stage_c,
    task=TextTask(),
    data=dataclasses.replace(stage_c.data, batch_size=256, caption_dropout=0.0),
    steps=2000,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, schedule="cosine", ema_decay=0.99),
)
