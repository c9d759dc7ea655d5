"""The whole cascade with every kind of layer that the full model has, and a few hundred thousand parameters.

For tests; `sample.py --config` fills it with weights made from names where there is no checkpoint.
"""

from ultrapixel_jax.config import (
    CascadeConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ControlNetConfig,
    DiffusionConfig,
    EfficientNetConfig,
    EfficientNetStage,
    EffnetEncoderConfig,
    GuidanceConfig,
    LevelConfig,
    LoraConfig,
    PreviewerConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
)

stage_c = StageCConfig(
    levels=(
        LevelConfig(64, 4, down_blocks=1, up_blocks=1, dropout=0.1),
        LevelConfig(64, 4, down_blocks=1, up_blocks=1, dropout=0.1),
    ),
    c_cond=64,
    c_clip_text=48,
    c_clip_text_pooled=48,
    c_clip_img=40,
)
backbone = EfficientNetConfig(
    stem=8,
    stages=(
        EfficientNetStage("fused", 1, 1, 8, 1),
        EfficientNetStage("fused", 2, 2, 16, 1),
        EfficientNetStage("fused", 2, 2, 16, 1),
        EfficientNetStage("mbconv", 2, 2, 24, 1),
        EfficientNetStage("mbconv", 2, 2, 32, 1),
    ),
    head=64,
)
config = CascadeConfig(
    stage_c=stage_c,
    guidance=GuidanceConfig(
        channels=64, inr_channels=32, inr_width=32, inr_heads=4, inr_head_dim=8, inr_groups=8
    ),
    stage_b=StageBConfig(
        levels=(
            LevelConfig(16, 1, down_blocks=1, up_blocks=1, up_repeats=2, layers="CT"),
            LevelConfig(32, 4, down_blocks=1, up_blocks=1),
        ),
        c_cond=32,
        c_clip=48,
    ),
    stage_a=StageAConfig(c_hidden=32, bottleneck_blocks=2, codebook_size=64),
    clip_text=ClipTextConfig(vocab_size=514, width=48, layers=2, heads=4, mlp_width=96, projection=48),
    clip_vision=ClipVisionConfig(image_size=28, width=48, layers=2, heads=4, mlp_width=96, projection=40),
    effnet_encoder=EffnetEncoderConfig(backbone),
    previewer=PreviewerConfig(channels=(32, 16, 16, 16)),
    controlnet=ControlNetConfig(
        backbone=backbone, bottleneck=(24, 8, 2), projection=16, channels=64, slots=(0, 1, 3)
    ),
    lora=LoraConfig(stage_c=stage_c, text_width=48),
    sampling_c=DiffusionConfig(steps=4),
    sampling_b=DiffusionConfig(steps=2, cfg=1.1),
)
