"""The demo's text encoder alone, from captions and cached latents of 384² pictures: a few minutes.

Without it, stage C had not learned which of two objects is the left one after 275,000 pictures. AdamW learns
in these steps that "left of" is not "above", but not that it is not "right of"; Muon does.
"""

import dataclasses

from configs.demo.stage_c import config as stage_c
from ultrapixel_jax.training.config import OptimizerConfig, TextTask

config = dataclasses.replace(
    stage_c,
    task=TextTask(),
    data=dataclasses.replace(stage_c.data, batch_size=256, caption_dropout=0.0),
    steps=1500,
    optimizer=OptimizerConfig(
        algorithm="muon", learning_rate=4e-3, warmup_steps=100, schedule="cosine", ema_decay=0.99
    ),
)
