"""The demo's guidance networks on its frozen stage C, from cached latents of pictures of 384² to 2304².

As latents these are 9×9 to 54×54, and as large ones in other ratios: 1 to 36 times the base's area. A
shift of the schedule by 2 hides the layout in the noise of large latents too, so that it has to be read from
the guidance.
Batches of 2 learned more than batches of 8 did from as many pictures (docs/demo.md).
On an H100, from networks trained so, batches of 16 at a rate of 5e-3 for 20,000 steps (guidance20 there) took
five minutes.
"""

import dataclasses

from configs.demo.stage_c import config as stage_c
from ultrapixel_jax.demo.train import BETWEEN, SIDES, encoded
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask, OptimizerConfig

config = dataclasses.replace(
    stage_c,
    task=GuidanceTask(DiffusionTraining("stable_diffusion", shift=2.0, adaptive_buckets=32)),
    data=dataclasses.replace(stage_c.data, areas=encoded(sorted((*SIDES, *BETWEEN))), batch_size=2),
    steps=16_000,
    optimizer=OptimizerConfig(
        algorithm="muon", learning_rate=3e-3, warmup_steps=30, schedule="cosine", ema_decay=0.999
    ),
)
