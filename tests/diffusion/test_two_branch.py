"""The two-branch loop against its recording, noise for noise."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_models
from tests.models.filled import SMALL, filled
from tests.recordings import load, nhwc, relative_error
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import begin, guidance_step, guide, make_table, step
from ultrapixel_jax.diffusion.two_branch import Prompts
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import StageC

compiled = functools.partial(jax.jit, compiler_options=UNOPTIMISED)
STEPS = 4
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run():
    """The recording's two passes as functions, with what they share."""
    recorded = recorded_models.stage_c("sample_two_branch")
    t = recorded.tensors
    table = make_table(DiffusionConfig(steps=STEPS))
    # One unit in the last place of r shows as 5e-4, so the recorded one is fed.
    r = np.array(table.r)
    r[:STEPS] = load("diffusion")[0]["out.noise_cond.shift1"][[40, 30, 20, 10]]
    np.testing.assert_allclose(r, table.r, atol=1e-6)
    table = jax.tree.map(jnp.asarray, table._replace(r=r))
    prompts = Prompts(
        *(
            jnp.concatenate([t[f"in.cond.{k}"], t[f"in.uncond.{k}"]])
            for k in ("clip_text", "clip_text_pooled", "clip_img")
        )
    )
    prompts = prompts._replace(pooled=prompts.pooled[:, 0], image=prompts.image[:, 0])
    fresh = {
        k: jnp.stack([jnp.asarray(nhwc(t[f"in.noise_{k}.{i}"])) for i in range(STEPS)]) for k in ("lr", "hr")
    }
    starts = {k: jnp.asarray(nhwc(t[f"in.init_{k}"])) for k in ("lr", "hr")}
    return recorded.model, recorded, table, prompts, fresh, starts


def test_recording(run):
    model, recorded, table, prompts, fresh, starts = run
    size = starts["hr"].shape[1:3]
    scale = recorded_models.scale_inputs(size)
    assert guidance_step(STEPS, 0.05) == STEPS - 1

    @compiled
    def low(x):
        c = model.condition(prompts)
        return two_branch.lr_steps(
            model, begin(x), two_branch.Carried(two_branch.empty_features(model, x)), c, table, STEPS - 1, 0,
            STEPS, lambda i: fresh["lr"][i],
        )  # fmt: skip

    lr, carried = low(starts["lr"])
    features = carried.features
    assert relative_error(lr.x, recorded.nhwc("out.x_lr")) < TOLERANCE

    @compiled
    def high(x, features, start, stop):
        prepared = model.prepare(features, size)
        return two_branch.hr_steps(
            model, x, model.condition(prompts), prepared, scale, table, start, stop, lambda i: fresh["hr"][i]
        )[0]

    x = begin(starts["hr"])
    for i in range(STEPS):
        before, x = x, high(x, features, i, i + 1)
        assert relative_error(x.x, recorded.nhwc(f"out.x.{i}")) < TOLERANCE, i
    assert high._cache_size() == 1

    @compiled
    def last_x0(x, features):
        prepared = jax.tree.map(lambda g: jnp.concatenate([g, g]), model.prepare(features, size))
        r = jnp.full((2,), table.r[STEPS - 1])
        out = model.denoise(jnp.concatenate([x, x]), r, model.condition(prompts), prepared, scale)
        epsilon = guide(out.epsilon, table.cfg, table.rescale)
        return step(begin(x), epsilon, table, jnp.int32(STEPS - 1), jnp.zeros_like(x)).x0

    assert relative_error(last_x0(before.x, features), recorded.nhwc("out.x0_last")) < TOLERANCE
    assert relative_error(x.x0, recorded.nhwc("out.x0_last")) < TOLERANCE


def test_whole_sampler_and_the_synchronized_one(run):
    model, recorded, table, prompts, fresh, starts = run
    scale = recorded_models.scale_inputs(starts["hr"].shape[1:3])

    def sample(model):
        return compiled(
            lambda lr, hr: two_branch.sample(
                model, prompts, lr, hr, scale, table, STEPS, STEPS - 1,
                lambda i: fresh["lr"][i], lambda i: fresh["hr"][i],
            )
        )(starts["lr"], starts["hr"])  # fmt: skip

    x_lr, x_hr = sample(model)
    assert relative_error(x_lr, recorded.nhwc("out.x_lr")) < TOLERANCE
    assert relative_error(x_hr, recorded.nhwc(f"out.x.{STEPS - 1}")) < TOLERANCE

    config = dataclasses.replace(model.guidance.config, timestep="synchronized")
    both = sample(model._replace(guidance=type(model.guidance)(config)))
    # The LR pass is the same; the HR pass has seen the features of the LR step of the same t.
    assert relative_error(both[0], x_lr) < TOLERANCE
    conditioning = compiled(model.condition)(prompts)

    @compiled
    def step_of_both(lr, hr, i):
        r = jnp.full((2,), table.r[i])
        out = model.denoise(jnp.concatenate([lr, lr]), r, conditioning)
        conditional = {place: g[:1] for place, g in out.features.items()}
        prepared = model.prepare(conditional, hr.shape[1:3])
        twice = {place: jnp.concatenate([g, g]) for place, g in prepared.items()}
        guided = model.denoise(jnp.concatenate([hr, hr]), r, conditioning, twice, scale)
        return [
            step(begin(x), guide(epsilon, table.cfg, table.rescale), table, i, fresh[k][i]).x
            for k, x, epsilon in (("lr", lr, out.epsilon), ("hr", hr, guided.epsilon))
        ]

    lr, hr = starts["lr"], starts["hr"]
    for i in range(STEPS):
        lr, hr = step_of_both(lr, hr, i)
    assert relative_error(both[1], hr) < TOLERANCE
    assert relative_error(x_hr, hr) > 0.01


def test_the_hr_pass_has_its_own_weight():
    """With a weight of 1 the unconditional half counts for nothing, in that pass alone."""
    steps, random = 2, np.random.default_rng(0)
    c, g = SMALL.stage_c, SMALL.guidance
    variables = (jax.tree.map(jnp.asarray, filled(*x)) for x in (("stage_c", c), ("guidance", g)))
    model = two_branch.StageCModel(StageC(c), next(variables), Guidance(g), next(variables))
    table = jax.tree.map(jnp.asarray, make_table(DiffusionConfig(steps=steps)))

    def values(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    prompts = Prompts(values(2, 5, c.c_clip_text), values(2, c.c_clip_text_pooled), values(2, c.c_clip_img))
    starts = {"lr": values(1, 4, 4, c.c_latent), "hr": values(1, 6, 8, c.c_latent)}
    fresh = {k: values(steps, *x.shape) for k, x in starts.items()}
    scale = recorded_models.scale_inputs(starts["hr"].shape[1:3])
    config = dataclasses.replace(model.guidance.config, timestep="synchronized")
    synchronized = model._replace(guidance=type(model.guidance)(config))

    @compiled
    def high(x, prompts, features, cfg, cfg_hr):
        weights = table._replace(cfg=jnp.float32(cfg), cfg_hr=jnp.float32(cfg_hr))
        conditioning = model.condition(prompts)
        prepared = model.prepare(features, x.shape[1:3]) if features else {}
        return two_branch.hr_steps(
            model, begin(x), conditioning, prepared, scale, weights, 0, steps, lambda i: fresh["hr"][i]
        )[0].x

    @compiled
    def both(prompts, cfg, cfg_hr):
        weights = table._replace(cfg=jnp.float32(cfg), cfg_hr=jnp.float32(cfg_hr))
        lr, hr = two_branch.synchronized_steps(
            synchronized, begin(starts["lr"]), begin(starts["hr"]), synchronized.condition(prompts), scale,
            (weights, weights), 0, steps, lambda i: fresh["lr"][i], lambda i: fresh["hr"][i],
        )  # fmt: skip
        return lr.x, hr.x

    other = jax.tree.map(lambda x: x.at[1].set(-x[1] + 0.1), prompts)  # another negative prompt
    features = two_branch.empty_features(model, starts["lr"])
    x = starts["hr"]
    assert relative_error(high(x, other, features, 4, 1), high(x, prompts, features, 4, 1)) < TOLERANCE
    assert relative_error(high(x, other, features, 1, 4), high(x, prompts, features, 1, 4)) > 0.01

    @compiled
    def without(x, prompts, features):
        conditioning = model.condition(jax.tree.map(lambda v: v[:1], prompts))
        return two_branch.hr_steps(
            model, begin(x), conditioning, model.prepare(features, x.shape[1:3]), scale, table, 0, steps,
            lambda i: fresh["hr"][i], unconditional=False,
        )[0].x  # fmt: skip

    assert relative_error(without(x, prompts, features), high(x, prompts, features, 4, 1)) < TOLERANCE
    assert relative_error(high(x, prompts, features, 1, 4), high(x, prompts, features, 7, 4)) < TOLERANCE
    # Without guidance it is a pass like the LR one.
    assert relative_error(high(x, other, {}, 1, 4), high(x, prompts, {}, 1, 4)) < TOLERANCE
    assert relative_error(both(prompts, 4, 1)[0], both(prompts, 4, 4)[0]) < TOLERANCE
    assert relative_error(both(prompts, 4, 1)[1], both(prompts, 4, 4)[1]) > 0.01
    first, second = both(prompts, 1, 1), both(other, 1, 1)
    assert relative_error(second[0], first[0]) < TOLERANCE > relative_error(second[1], first[1])
    assert relative_error(both(prompts, 1, 4)[0], first[0]) < TOLERANCE


def test_the_weights_of_a_table():
    assert make_table(DiffusionConfig(cfg=3.0)).cfg_hr == 3
    table = make_table(DiffusionConfig(cfg=3.0, cfg_hr=0.0))
    assert (table.cfg, table.cfg_hr) == (3, 0)
