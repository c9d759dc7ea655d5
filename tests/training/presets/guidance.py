"""The smallest guidance networks on a frozen random stage C, from cached latents."""

import dataclasses

from tests.training.presets.stage_c import config as base
from ultrapixel_jax.config import GuidanceConfig, LevelConfig
from ultrapixel_jax.training.config import GuidanceTask

levels = (
    LevelConfig(16, 2, down_blocks=1, up_blocks=1),
    LevelConfig(16, 2, down_blocks=1, up_blocks=1),
)
config = dataclasses.replace(
    base,
    task=GuidanceTask(),
    model=dataclasses.replace(
        base.model,
        stage_c=dataclasses.replace(base.model.stage_c, levels=levels, timestep_conditions=("sca", "crp")),
        guidance=GuidanceConfig(
            channels=16, inr_channels=16, inr_width=16, inr_heads=2, inr_head_dim=8, inr_groups=4, lr_side=8
        ),
    ),
    random_frozen=True,
)
