"""Stacking the weights of a level's blocks, for `scanned` networks, and taking them apart again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.config import StageBConfig, StageCConfig


def _levels(config: StageCConfig | StageBConfig) -> dict[str, tuple[int, int]]:
    """(layers per block, blocks) of every level, by name."""
    down = {f"down_{i}": (len(lv.layers), lv.down_blocks) for i, lv in enumerate(config.levels)}
    up = {f"up_{i}": (len(lv.layers), lv.up_blocks) for i, lv in enumerate(reversed(config.levels))}
    return down | up


def stack(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """Variables of an unrolled network to those of a `scanned` one.

    `layer_3`, `layer_6`, … of a level whose blocks are C T A become `rest/layer_0` with a leading
    axis, and so on; the first block stays, since it alone takes the skip. Layers may be missing, in all
    blocks alike.
    """
    params = dict(variables["params"])
    for name, (length, blocks) in _levels(config).items():
        level = dict(params[name])
        if blocks > 1:
            level["rest"] = {
                f"layer_{k}": jax.tree.map(
                    lambda *xs: jnp.stack(xs), *(level[f"layer_{b * length + k}"] for b in range(1, blocks))
                )
                for k in range(length)
                if f"layer_{length + k}" in level
            }
        for n in range(length, length * blocks):
            level.pop(f"layer_{n}", None)
        params[name] = level
    return {**variables, "params": params}


def unstack(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """Inverse of `stack`."""
    params = dict(variables["params"])
    for name, (length, blocks) in _levels(config).items():
        level = dict(params[name])
        rest = level.pop("rest", {})
        for key, layer in rest.items():
            k = int(re.sub(r"\D", "", key))
            for b in range(1, blocks):
                level[f"layer_{b * length + k}"] = jax.tree.map(lambda x, b=b: x[b - 1], layer)
        params[name] = level
    return {**variables, "params": params}
