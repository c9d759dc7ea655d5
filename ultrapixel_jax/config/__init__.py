"""Typed configuration: every size of every network, and how to sample.

Frozen dataclasses with the released sizes as defaults. Neither jax nor flax is imported, so that ``--help``
and bad arguments answer at once.
"""

from ultrapixel_jax.config.cascade import (
    COMPONENTS,
    HR_FIELDS,
    MAX_STEPS,
    CascadeConfig,
    DiffusionConfig,
    SamplerName,
    ScheduleName,
)
from ultrapixel_jax.config.mesh import MESH_AXES, parse_mesh
from ultrapixel_jax.config.networks import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ControlNetConfig,
    EfficientNetConfig,
    EfficientNetStage,
    EffnetEncoderConfig,
    GuidanceConfig,
    InceptionConfig,
    LevelConfig,
    LoraConfig,
    PreviewerConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
    Upsampler,
)
from ultrapixel_jax.config.reading import (
    DTYPES,
    check_dtype,
    drawn_alike,
    from_dict,
    load_config,
    to_dict,
)

__all__ = [
    "COMPONENTS",
    "DTYPES",
    "HR_FIELDS",
    "MAX_STEPS",
    "MESH_AXES",
    "CascadeConfig",
    "ClipConfig",
    "ClipTextConfig",
    "ClipVisionConfig",
    "ControlNetConfig",
    "DiffusionConfig",
    "EfficientNetConfig",
    "EfficientNetStage",
    "EffnetEncoderConfig",
    "GuidanceConfig",
    "InceptionConfig",
    "LevelConfig",
    "LoraConfig",
    "PreviewerConfig",
    "SamplerName",
    "ScheduleName",
    "StageAConfig",
    "StageBConfig",
    "StageCConfig",
    "Upsampler",
    "check_dtype",
    "drawn_alike",
    "from_dict",
    "load_config",
    "parse_mesh",
    "to_dict",
]
