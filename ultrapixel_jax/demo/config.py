"""The demo cascade's sizes: the layout of the full model with a few million parameters.

Its low-resolution pass is a picture of 384² (latent 9×9, where the full model has 1024² and 24×24), so that
768² is four times its area and 1536² sixteen times.
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

WIDTH = 128
VOCABULARY = 654
"""Tokens of the tokenizer that `demo.words` makes."""
stage_c = StageCConfig(
    levels=(
        LevelConfig(WIDTH, 4, down_blocks=1, up_blocks=1),
        LevelConfig(WIDTH, 4, down_blocks=4, up_blocks=4),
    ),
    c_cond=WIDTH,
    c_clip_text=128,
    c_clip_text_pooled=128,
    c_clip_img=16,
)
config = CascadeConfig(
    stage_c=stage_c,
    guidance=GuidanceConfig(
        channels=WIDTH,
        inr_channels=64,
        inr_width=64,
        inr_heads=4,
        inr_head_dim=16,
        inr_groups=16,
        lr_side=12,
        # As in training. With 0.3, the released weight of latents below 72×72, fewer pictures are right.
        up_guide_weights=((0, 1.0),),
        trained_sides=(362, 2304),
        trained_ratio=25 / 12,
    ),
    stage_b=StageBConfig(
        levels=(
            LevelConfig(32, 1, down_blocks=1, up_blocks=1, layers="CT"),
            LevelConfig(64, 1, down_blocks=1, up_blocks=2, layers="CT"),
            LevelConfig(128, 4, down_blocks=2, up_blocks=3),
            LevelConfig(128, 4, down_blocks=2, up_blocks=2),
        ),
        c_cond=128,
        c_clip=128,
        pads=True,
    ),
    stage_a=StageAConfig(c_hidden=48, bottleneck_blocks=2, codebook_size=1024),
    clip_text=ClipTextConfig(
        vocab_size=VOCABULARY, positions=24, width=128, layers=3, heads=4, mlp_width=512, projection=128
    ),
    clip_vision=ClipVisionConfig(image_size=28, width=16, layers=1, heads=2, mlp_width=32, projection=16),
    # Without squeeze-excitation, whose means over the whole map would tell sizes apart: with it, latents of
    # large pictures came out several times those of small ones.
    effnet_encoder=EffnetEncoderConfig(
        EfficientNetConfig(
            stem=16,
            stages=(
                EfficientNetStage("fused", 1, 1, 16, 1),
                EfficientNetStage("fused", 2, 2, 32, 1),
                EfficientNetStage("fused", 2, 2, 48, 1),
                EfficientNetStage("fused", 2, 2, 96, 2),
                EfficientNetStage("fused", 2, 2, 128, 3),
            ),
            head=256,
        )
    ),
    previewer=PreviewerConfig(channels=(192, 96, 48, 24)),
    controlnet=ControlNetConfig(
        backbone=EfficientNetConfig(
            stem=16,
            stages=(
                EfficientNetStage("fused", 1, 2, 16, 1),
                EfficientNetStage("fused", 2, 2, 32, 1),
                EfficientNetStage("fused", 2, 2, 64, 1),
                EfficientNetStage("fused", 2, 2, 128, 2),
            ),
            head=256,
        ),
        bottleneck=(512, 128, 2),
        projection=128,
        channels=WIDTH,
        slots=(0, 1, 3, 6, 8, 9),
    ),
    lora=LoraConfig(stage_c=stage_c, text_width=128),
    sampling_c=DiffusionConfig(steps=20, cfg=4.0, cfg_hr=1.0, schedule="stable_diffusion", shift=2.0),
    sampling_b=DiffusionConfig(steps=6, cfg=2.0, schedule="stable_diffusion", shift=2.0),
)
