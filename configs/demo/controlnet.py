"""The demo's ControlNet for edges on its frozen stage C, from pictures of the base size and their captions.

Its backbone is small and begins as random numbers. After 26,000 pictures edges are followed within two pixels
of the 224 that it sees (docs/demo.md).
"""

import dataclasses

from configs.demo.stage_c import config as stage_c
from ultrapixel_jax.training.config import ControlNetTask, DiffusionTraining, OptimizerConfig

config = dataclasses.replace(
    stage_c,
    task=ControlNetTask(
        DiffusionTraining("stable_diffusion", adaptive_buckets=32),
        backbone="nothing",
        frozen_statistics=False,
    ),
    data=dataclasses.replace(stage_c.data, cached=False, batch_size=4),
    steps=6500,
    optimizer=OptimizerConfig(
        algorithm="muon", learning_rate=3e-3, warmup_steps=30, schedule="constant", ema_decay=0.995
    ),
)
