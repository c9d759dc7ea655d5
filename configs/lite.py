"""Both lite stages: stage C 1B, stage B 0.7B.

UltraPixel's guidance was released for the 3.6B stage C alone; that of the lite one has to be trained.
Weights in bfloat16: 5 GB.
"""

import dataclasses

from ultrapixel_jax.config import (
    CascadeConfig,
    ControlNetConfig,
    GuidanceConfig,
    LevelConfig,
    LoraConfig,
    StageBConfig,
    StageCConfig,
)

stage_c = StageCConfig(
    levels=(
        LevelConfig(1536, 24, down_blocks=4, up_blocks=4, dropout=0.1),
        LevelConfig(1536, 24, down_blocks=12, up_blocks=12, dropout=0.1),
    ),
    c_cond=1536,
)
stage_b = StageBConfig(
    levels=(
        LevelConfig(320, 1, down_blocks=2, up_blocks=2, up_repeats=2, layers="CT"),
        LevelConfig(576, 9, down_blocks=4, up_blocks=4, up_repeats=2, layers="CT"),
        LevelConfig(1152, 18, down_blocks=14, up_blocks=14, up_repeats=2, dropout=0.1),
        LevelConfig(1152, 18, down_blocks=4, up_blocks=4, up_repeats=2, dropout=0.1),
    ),
)
config = dataclasses.replace(
    CascadeConfig(),
    stage_c=stage_c,
    stage_b=stage_b,
    guidance=GuidanceConfig(channels=1536),
    controlnet=ControlNetConfig(channels=1536),
    lora=LoraConfig(stage_c=stage_c),
)
