"""Variables of any network made of random numbers, in numpy, so that nothing compiles and nothing is zero."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from configs.tiny import config as tiny
from ultrapixel_jax.config import GuidanceConfig, LevelConfig
from ultrapixel_jax.models import components

SMALL = dataclasses.replace(
    tiny,
    stage_c=dataclasses.replace(
        tiny.stage_c,
        levels=(
            LevelConfig(16, 2, down_blocks=1, up_blocks=1),
            LevelConfig(16, 2, down_blocks=1, up_blocks=1),
        ),
        c_cond=16,
    ),
    guidance=GuidanceConfig(
        channels=16, inr_channels=16, inr_width=16, inr_heads=2, inr_head_dim=8, inr_groups=4
    ),
    stage_b=dataclasses.replace(
        tiny.stage_b,
        levels=(
            LevelConfig(8, 1, down_blocks=1, up_blocks=1, up_repeats=2, layers="CT"),
            LevelConfig(16, 2, down_blocks=1, up_blocks=1),
        ),
        c_cond=16,
    ),
)
"""The cascade with the smallest stages B and C that have every kind of layer."""


def filled(name: str, config: Any, seed: int = 0) -> dict[str, Any]:
    """Variables of component `name`, of a size that keeps activations near 1."""
    random = np.random.default_rng(seed)

    def fill(path: Any, struct: Any) -> np.ndarray:
        kind = getattr(path[-1], "key", "")
        x = random.standard_normal(struct.shape)
        if kind == "var":
            return np.exp(0.3 * x).astype(np.float32)
        if kind == "scale":
            return (1 + 0.1 * x).astype(np.float32)
        # Depthwise kernels (k, k, c) have k² inputs; others all but their last axis.
        inputs = struct.shape[:2] if len(struct.shape) == 3 else struct.shape[:-1]
        return (x / math.sqrt(math.prod(inputs)) if inputs else 0.1 * x).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, components.abstract(name, config))
