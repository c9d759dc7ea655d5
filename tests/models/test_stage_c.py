"""Stage C and its guidance against the recordings, and against plainly written formulas."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config as tiny
from tests import recorded_models
from tests.recordings import nhwc, relative_error
from tests.released import write
from ultrapixel_jax.checkpoints.named_weights import tensor
from ultrapixel_jax.checkpoints.weights import consistent
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig, LoraConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import begin, make_table
from ultrapixel_jax.layouts.lora.read import read_file
from ultrapixel_jax.models import components, lora
from ultrapixel_jax.models.embeddings import sinusoidal
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import PLACES, StageC

TOLERANCE = 1e-4


def conditioning(recorded):
    t = recorded.tensors
    inputs = (t["in.clip_text"], t["in.clip_text_pooled"][:, 0], t["in.clip_img"][:, 0])
    return jax.jit(lambda *a: recorded.model.stage_c.apply(recorded.model.variables, *a, method="condition"))(
        *inputs
    )


@pytest.fixture(scope="module")
def recorded():
    return recorded_models.stage_c("stage_c")


@pytest.fixture(scope="module")
def plain(recorded):
    run = jax.jit(lambda x, r, c, **k: recorded.model.denoise(x, r, c, **k))
    return run(recorded.nhwc("in.x_lr"), recorded.tensors["in.r"], conditioning(recorded))


def test_plain_pass(recorded, plain):
    assert relative_error(plain.epsilon, recorded.nhwc("out.plain")) < TOLERANCE


def test_inner_levels_that_are_reused_give_the_same_pass(recorded, plain):
    """ControlNets' maps keep their ResBlocks: those of inner levels, not numbers here, are left out."""
    outer, inner = recorded.model.stage_c.config.levels
    slots = range(outer.down_blocks, outer.down_blocks + inner.down_blocks + inner.up_blocks)
    maps = {slot: jnp.full_like(plain.deep, jnp.nan) for slot in slots}
    run = jax.jit(lambda x, r, c, deep: recorded.model.denoise(x, r, c, controls=maps, deep=deep))
    inputs = (recorded.nhwc("in.x_lr"), recorded.tensors["in.r"], conditioning(recorded))
    found = run(*inputs, plain.deep)
    assert relative_error(found.epsilon, plain.epsilon) < TOLERANCE
    assert set(found.features) == {"down_0", "up_1"}
    np.testing.assert_array_equal(found.deep, plain.deep)
    assert relative_error(run(*inputs, 0 * plain.deep).epsilon, plain.epsilon) > 0.01


@pytest.mark.parametrize("place", PLACES)
def test_guidance_maps(recorded, plain, place):
    expected = recorded.nhwc(f"out.guidance_{place.replace('_', '.')}")
    assert relative_error(plain.features[place], expected) < TOLERANCE


def test_sca_and_crp(recorded):
    t = recorded.tensors
    values = {"sca": t["in.sca"], "crp": t["in.crp"]}
    run = jax.jit(lambda x, r, c, v: recorded.model.denoise(x, r, c, conditions=v).epsilon)
    found = run(recorded.nhwc("in.x_lr"), t["in.r"], conditioning(recorded), values)
    assert relative_error(found, recorded.nhwc("out.sca_crp")) < TOLERANCE


def guided(recorded, features, x, r, scale):
    model = recorded.model

    @jax.jit
    def run(features, x, r, c, scale):
        prepared = model.prepare(features, (x.shape[1], x.shape[2]))
        return model.denoise(x, r, c, prepared, scale).epsilon

    return run(features, x, r, conditioning(recorded), scale)


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize(("kind", "up_weight"), [("hr_train", 1.0), ("hr_eval", None)])
def test_guided_pass(recorded, plain, i, kind, up_weight):
    x = recorded.nhwc(f"in.x_hr.{i}")
    scale = recorded_models.scale_inputs(x.shape[1:3], up_weight)
    found = guided(recorded, plain.features, x, recorded.tensors["in.r_hr"], scale)
    assert relative_error(found, recorded.nhwc(f"out.{kind}.{i}")) < TOLERANCE


@pytest.mark.parametrize(("i", "weight"), [(0, 0.3), (1, 0.5), (2, 0.7)])
def test_guide_weights_on_both_sides_of_72_and_96_squared(i, weight):
    recorded = recorded_models.stage_c("stage_c_guide_weight")
    r = recorded.tensors["in.r"]
    features = jax.jit(lambda x, r, c: recorded.model.denoise(x, r, c).features)(
        recorded.nhwc("in.x_lr"), r, conditioning(recorded)
    )
    x = recorded.nhwc(f"in.x_hr.{i}")
    scale = recorded_models.scale_inputs(x.shape[1:3])
    assert float(scale.up_weight) == np.float32(weight)
    found = guided(recorded, features, x, r, scale)[:, ::4, ::4]  # what the recording keeps
    assert relative_error(found, recorded.nhwc(f"out.hr_eval.{i}")) < TOLERANCE


def test_controlnet_maps():
    """A sampler's step has the recorded noise, which is taken out of it by hand; maps at strength 1."""
    recorded = recorded_models.stage_c("stage_c_controlnet")
    x, c = recorded.nhwc("in.x_lr")[:1], conditioning(recorded)
    table = make_table(DiffusionConfig(steps=2, cfg=1.0, cfg_rescale=0.0, sampler="ddim"))
    table = table._replace(r=np.full_like(table.r, recorded.tensors["in.r"][0]))
    table = jax.tree.map(jnp.asarray, table)
    maps = {slot: recorded.nhwc(f"in.cnet.{slot}")[:1] / 4 for slot in recorded.meta["slots"]}
    half = two_branch.Control(maps, jnp.full(1, 2.0), jnp.array([0]), jnp.array([1]))  # of two that add up

    @jax.jit
    def step(i, controls):
        carried = two_branch.Carried(two_branch.empty_features(recorded.model, x))
        fresh, steering = lambda _: jnp.zeros_like(x), two_branch.Steering(controls)
        state, _ = two_branch.lr_steps(
            recorded.model, begin(x), carried, c, table, 0, i, i + 1, fresh, steering
        )
        after = state.x
        a, b, a1, d = table.a[i], table.b[i], table.a_next[i], table.direction[i]
        return (after - a1 / a * x) / (d - a1 * b / a)

    wanted = recorded.nhwc("out.plain")[:1]
    assert relative_error(step(0, (half, half)), wanted) < TOLERANCE
    assert relative_error(step(1, (half, half)), wanted) > 100 * TOLERANCE  # after its last step


def test_lora(tmp_path: Path):
    recorded = recorded_models.stage_c("stage_c_lora")
    model = recorded.model
    config = LoraConfig(model.stage_c.config, rank=recorded.meta["rank"])
    file = {}
    # The file's numbers stand for the modules that the recording names.
    order = recorded.meta["order"]
    for i, name in enumerate(order):
        out = 3 if "in_proj" in name else 1
        for way, shape in (("down", (4, 64)), ("up", (out * 64, 4))):
            file[f"module.{i}.lora_{way}"] = tensor(f"module.{i}.lora_{way}", shape)
    write(tmp_path / "lora_cat.safetensors", file)
    parts = consistent({"stage_c": model.stage_c.config}, CascadeConfig())
    model_of_it = dataclasses.replace(CascadeConfig(guidance=None), **parts)
    changes = read_file(tmp_path / "lora_cat.safetensors", model_of_it).changes["stage_c"]
    x, r, c = recorded.nhwc("in.x"), recorded.tensors["in.r"], conditioning(recorded)
    run = jax.jit(lambda v, x, r, c: model._replace(variables=v).denoise(x, r, c).epsilon)
    assert relative_error(run(model.variables, x, r, c), recorded.nhwc("out.base")) < TOLERANCE
    merged = lora.merge(model.variables, [(changes, 1.0)])
    again = recorded._replace(model=model._replace(variables=merged))
    assert relative_error(run(merged, x, r, conditioning(again)), recorded.nhwc("out.lora")) < TOLERANCE
    fresh = lora.changes(lora.init(jax.random.key(0), config)["params"])
    untouched = lora.merge(model.variables, [(fresh, 1.0)])
    jax.tree.map(np.testing.assert_array_equal, untouched, dict(model.variables))


def test_prepared_guidance_equals_the_formula_written_out(recorded, plain):
    """§4, steps 6 to 10, without splitting the first linear layer."""
    x = recorded.nhwc("in.x_hr.0")
    size = x.shape[1:3]
    model, place = recorded.model, "up_0"
    net = recorded.model.guidance_variables["params"][place]
    features = jax.random.normal(jax.random.key(1), (2, *size, 64))
    e_t = sinusoidal(jnp.asarray(recorded.tensors["in.r_hr"]))
    s = math.sqrt(math.log(size[0] * size[1]) / math.log(24 * 24))
    e_s = sinusoidal(jnp.array([s], jnp.float32))

    def linear(p, y):
        return np.asarray(y, np.float64) @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"])

    def halves(p, e):
        a, b = np.split(linear(p, e)[:, None, None], 2, axis=-1)
        return a, b

    u = model.guidance.apply(
        model.guidance_variables, plain.features[place], size,
        method=lambda m, g, size: m.up_0.upsample(g, size),
    )  # fmt: skip
    y = linear(net["fuse_in"], np.concatenate([u, features], -1))
    y = linear(net["fuse_out"], y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2))))
    a, b = halves(net["mapp_t"], e_t)
    y = y * (1 + a) + b
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    a, b = halves(net["hr_norm"]["mapper"], e_s)
    expected = np.asarray(features) + 0.3 * (y * (1 + a) + b + y)

    prepared = model.prepare(plain.features, size)
    found = model.guidance.apply(
        model.guidance_variables, place, features, prepared[place], e_t, e_s, 0.3, method="fuse"
    )
    assert relative_error(found, expected) < TOLERANCE


def test_ablations_change_the_parameters():
    def paths(**changes):
        g = dataclasses.replace(tiny.guidance, **changes)
        variables = components.abstract("guidance", g)
        assert set(variables["params"]) == set(PLACES)
        return {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(variables)}

    full = paths()
    bilinear = paths(upsampler="bilinear_conv")
    assert any("'conv'" in p for p in bilinear) and not any("wtokens" in p for p in bilinear)
    without = paths(scale_aware_norm=False)
    assert not any("hr_norm" in p for p in without)
    assert set(without) == {p for p in full if "hr_norm" not in p}
    narrow = paths(inr_channels=16, inr_width=16, inr_heads=2)
    assert set(narrow) == set(full) and narrow != full


def test_switch_level_halves_the_inner_map():
    c = dataclasses.replace(tiny.stage_c, switch_level=True)
    module = StageC(c)
    variables = components.abstract("stage_c", c)

    def run(v):
        inputs = (jnp.zeros((1, 3, 48)), jnp.zeros((1, 48)), jnp.zeros((1, 40)))
        conditioning = module.apply(v, *inputs, method="condition")
        return module.apply(v, jnp.zeros((1, 8, 12, 16)), jnp.zeros(1), conditioning)

    out = jax.eval_shape(run, variables)
    assert out.epsilon.shape == (1, 8, 12, 16)
    assert [out.features[p].shape[1:3] for p in PLACES] == [(8, 12), (4, 6), (4, 6), (8, 12)]


def test_bfloat16_stays_close_to_float32(recorded, plain):
    model = recorded.model
    half = model._replace(
        stage_c=StageC(model.stage_c.config, jnp.bfloat16),
        guidance=Guidance(model.guidance.config, jnp.bfloat16),
        variables=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.variables),
        guidance_variables=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.guidance_variables),
        dtype=jnp.bfloat16,
    )
    c = jax.tree.map(lambda x: x.astype(jnp.bfloat16), conditioning(recorded))
    out = half.denoise(recorded.nhwc("in.x_lr"), jnp.asarray(recorded.tensors["in.r"]), c)
    assert out.epsilon.dtype == jnp.bfloat16
    assert relative_error(out.epsilon, nhwc(recorded.tensors["out.plain"])) < 0.05
    x = recorded.nhwc("in.x_hr.0")
    scale = recorded_models.scale_inputs(x.shape[1:3], 1.0)
    prepared = half.prepare(out.features, x.shape[1:3])
    guided = half.denoise(x, jnp.asarray(recorded.tensors["in.r_hr"]), c, prepared, scale)
    assert guided.epsilon.dtype == jnp.bfloat16
    assert relative_error(guided.epsilon, recorded.nhwc("out.hr_train.0")) < 0.05
