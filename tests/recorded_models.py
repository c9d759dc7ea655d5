"""The small networks of the recordings: configuration from their metadata, weights from names."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert.formats import variables_of
from tests.recordings import load, nhwc
from tests.released import state_dict
from ultrapixel_jax import sizes
from ultrapixel_jax.config import GuidanceConfig, LevelConfig, StageBConfig, StageCConfig
from ultrapixel_jax.diffusion.two_branch import ScaleInputs, StageCModel
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import StageC


def stage_c_config(meta: dict) -> StageCConfig:
    m = meta["stage_c"]
    rows = zip(m["c_hidden"], m["nhead"], m["blocks"][0], reversed(m["blocks"][1]), strict=True)
    return StageCConfig(
        levels=tuple(LevelConfig(*row) for row in rows),
        c_cond=m["c_cond"],
        c_clip_text=m["c_clip_text"],
        c_clip_text_pooled=m["c_clip_text_pooled"],
        c_clip_img=m["c_clip_img"],
    )


def guidance_config(meta: dict) -> GuidanceConfig:
    m = meta["inr"]
    return GuidanceConfig(
        channels=m["ind"],
        inr_channels=m["ch"],
        inr_width=m["f_dim"],
        inr_heads=m["n_head"],
        inr_head_dim=m["head_dim"],
        inr_groups=m["n_groups"],
    )


def stage_b_config(meta: dict) -> StageBConfig:
    m = meta["stage_b"]
    rows = zip(
        m["c_hidden"], m["nhead"], m["blocks"][0], reversed(m["blocks"][1]),
        m["block_repeat"][0], reversed(m["block_repeat"][1]), m["level_config"], strict=True,
    )  # fmt: skip
    levels = tuple(LevelConfig(c, max(h, 1), *rest) for c, h, *rest in rows)
    return StageBConfig(levels=levels, c_cond=m["c_cond"], c_clip=m["c_clip"])


def import_component(name: str, config: Any, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Variables from a released state dict, through recognition and the name table."""
    return jax.tree.map(jnp.asarray, variables_of(name, config, tensors))


def named(name: str, config: Any, first: int = 64) -> dict[str, Any]:
    return import_component(name, config, state_dict(name, config, first=first))


class Recorded(NamedTuple):
    """A recording of stage C with its model."""

    tensors: dict[str, np.ndarray]
    meta: dict
    model: StageCModel

    def nhwc(self, key: str) -> jax.Array:
        return jnp.asarray(nhwc(self.tensors[key]))


@functools.cache
def stage_c(name: str) -> Recorded:
    tensors, meta = load(name)
    config = stage_c_config(meta)
    model = StageCModel(StageC(config), named("stage_c", config))
    if "inr" in meta:
        g = guidance_config(meta)
        first = meta["grn_modules_before_agg_net"]
        model = model._replace(guidance=Guidance(g), guidance_variables=named("guidance", g, first))
    return Recorded(tensors, meta, model)


def scale_inputs(size: tuple[int, int], up_weight: float | None = None) -> ScaleInputs:
    """For an HR map of `size`; the guide weight of sampling where none is given."""
    weight = (
        sizes.up_guide_weight(*size, GuidanceConfig().up_guide_weights) if up_weight is None else up_weight
    )
    return ScaleInputs(jnp.float32(sizes.scale(*size)), jnp.float32(weight))
