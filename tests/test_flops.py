"""The analytic counts against XLA's own count of each network, on configurations without loops."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ultrapixel_jax import flops
from ultrapixel_jax.config import (
    CascadeConfig,
    ClipTextConfig,
    GuidanceConfig,
    LevelConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
)
from ultrapixel_jax.models import blocks, components, guidance
from ultrapixel_jax.models.stage_c import PLACES

# Wide enough that what is not counted (norms, activations, softmax) stays small.
STAGE_C = StageCConfig(
    levels=(LevelConfig(256, 4, 1, 1), LevelConfig(320, 4, 2, 1)),
    c_cond=256,
    c_clip_text=128,
    c_clip_text_pooled=96,
    c_clip_img=64,
)
STAGE_B = StageBConfig(
    levels=(
        LevelConfig(160, 1, 1, 1, up_repeats=2, layers="CT"),
        LevelConfig(256, 4, 1, 2, up_repeats=3, layers="CTA"),
    ),
    c_cond=256,
    c_clip=96,
)
GUIDANCE = GuidanceConfig(channels=256, inr_channels=192, inr_width=128, inr_heads=4, inr_head_dim=32)
STAGE_A = StageAConfig(c_hidden=256, bottleneck_blocks=2)
CLIP = ClipTextConfig(vocab_size=64, width=256, layers=2, heads=4, mlp_width=1024, projection=128)


@pytest.fixture(autouse=True)
def _attention_without_loops(monkeypatch):
    """XLA counts the body of a loop once, so attention is written out."""

    def plain(q, k, v):
        logits = jnp.einsum("bnkd,bmkd->bknm", q, k)
        return jnp.einsum("bknm,bmkd->bnkd", jax.nn.softmax(logits, -1), v)

    monkeypatch.setattr(blocks, "attention", plain)
    monkeypatch.setattr(guidance, "attention", plain)


def counted(name, config, method, *inputs, static=()):
    """XLA's count of `method` on zeros of the shapes `inputs`."""
    module = components.build(name, config)
    variables = components.abstract(name, config)
    inputs = [jnp.zeros(x) if isinstance(x, tuple) else x for x in inputs]

    def run(variables, *inputs):
        return module.apply(variables, *inputs, *static, method=method)

    return jax.jit(run).lower(variables, *inputs).cost_analysis()["flops"]


def agrees(analytic: int, xla: float, most: float = 0.05) -> None:
    """XLA counts what is elementwise, hence more, and leaves out the taps of convolutions on padding."""
    assert 0.95 <= xla / analytic <= 1 + most, (analytic, xla)


@pytest.mark.parametrize("changes", [{}, {"switch_level": True}, {"patch_size": 2}])
def test_stage_c(changes):
    config = dataclasses.replace(STAGE_C, **changes)
    inputs = ((2, 5, 128), (2, 96), (2, 64))
    condition = counted("stage_c", config, "condition", *inputs)
    agrees(flops.stage_c_condition_flops(config, 2, text_tokens=5), condition)
    x = (2, 24, 16, 16)

    def both(module, x, r, *inputs):
        return module(x, r, module.condition(*inputs))

    whole = counted("stage_c", config, both, x, (2,), *inputs)
    agrees(flops.stage_c_flops(config, (24, 16), 2, text_tokens=5), whole - condition)


@pytest.mark.parametrize("size", [(32, 24), (28, 20)])
def test_stage_b(size):
    def both(module, x, r, pooled, effnet):
        return module(x, r, module.condition(pooled, effnet, size))

    inputs = ((2, 96), (2, 5, 4, 16))
    condition = counted("stage_b", STAGE_B, "condition", *inputs, static=(size,))
    agrees(flops.stage_b_condition_flops(STAGE_B, (5, 4), size, 2), condition, 0.25)  # narrow
    whole = counted("stage_b", STAGE_B, both, (2, *size, 4), (2,), *inputs)
    agrees(flops.stage_b_flops(STAGE_B, size, 2), whole - condition, 0.08)


@pytest.mark.parametrize("upsampler", ["inr", "bilinear_conv"])
def test_guidance(upsampler):
    config = dataclasses.replace(GUIDANCE, upsampler=upsampler)
    lr, hr = (8, 6), (32, 24)
    features = {place: jnp.zeros((2, *lr, 256)) for place in PLACES}
    prepare = counted("guidance", config, "prepare", features, static=(hr,))
    agrees(flops.guidance_prepare_flops(config, lr, hr, 2), prepare)

    def fuse(module, x, prepared, e_t, e_s):
        return [module.fuse(place, x, prepared, e_t, e_s) for place in PLACES]

    x = counted("guidance", config, fuse, (2, *hr, 256), (2, *hr, 64), (2, 64), (1, 64))
    agrees(flops.guidance_fuse_flops(config, hr, 2), x, 0.15)  # narrow: 512 products for each value


def test_stage_a():
    decode = counted("stage_a", STAGE_A, "decode", (2, 24, 16, 4))
    agrees(flops.stage_a_decode_flops(STAGE_A, (24, 16), 2), decode, 0.08)  # the outer block is 128 wide


def test_clip_text():
    ids = jnp.zeros((2, 77), jnp.int32)
    encode = counted("clip_text", CLIP, "__call__", ids, jnp.ones((2, 77), jnp.int32))
    agrees(flops.clip_text_flops(CLIP, 2), encode)


def test_whole_picture_is_the_sum_of_its_passes():
    c = CascadeConfig()
    parts = (c.stage_c, c.guidance, c.stage_b, c.stage_a, c.clip_text)
    out = flops.sampling_flops(*parts, hr=(96, 96), lr=(24, 24), latent_b=(1024, 1024))
    alone = flops.sampling_flops(c.stage_c, None, *parts[2:], hr=(96, 96), lr=(24, 24), latent_b=(1024, 1024))
    assert out["B"] == alone["B"] and out["A"] == alone["A"] and out["clip"] == alone["clip"]
    low = 20 * flops.stage_c_flops(c.stage_c, (24, 24), 2, text_tokens=77) + flops.guidance_prepare_flops(
        c.guidance, (24, 24), (96, 96)
    )
    assert out["C low"] - alone["C low"] == low
    # Guidance adds little to a step: four places out of 64 blocks.
    assert 1 < out["C high"] / alone["C high"] < 1.01
