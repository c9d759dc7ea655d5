"""One step of DDPM and DDIM, guidance with rescaling, and noise that belongs to its picture."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ultrapixel_jax.config import MAX_STEPS, DiffusionConfig, SamplerName
from ultrapixel_jax.diffusion.sampler import (
    Segment,
    State,
    as_arrays,
    begin,
    guidance_step,
    guide,
    image_keys,
    in_turn,
    initial_noise,
    make_table,
    noise,
    run_steps,
    segments,
    step,
)
from ultrapixel_jax.diffusion.schedule import logsnr

SHAPE = (5, 4, 3)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_step_is_the_formula(eta):
    config = DiffusionConfig(steps=7, eta=eta, shift=1.5)
    table = as_arrays(make_table(config))
    var = 1 / (1 + np.exp(-logsnr(np.linspace(1, 0, 8), "cosine", 1.5).astype(np.float64)))
    rng = np.random.default_rng(0)
    x, epsilon, fresh = (rng.standard_normal((2, *SHAPE)) for _ in range(3))
    for i in range(7):
        a, b = np.sqrt(var[i]), np.sqrt(1 - var[i])
        a1, b1 = np.sqrt(var[i + 1]), np.sqrt(1 - var[i + 1])
        x0 = (x - b * epsilon) / a
        sigma = eta * np.sqrt(b1**2 / b**2) * np.sqrt(1 - a**2 / a1**2)
        expected = a1 * x0 + np.sqrt(b1**2 - sigma**2) * epsilon + sigma * fresh
        given = [jnp.asarray(v, jnp.float32) for v in (x, epsilon, fresh)]
        found = step(State(given[0], given[1]), given[1], table, jnp.int32(i), given[2])
        np.testing.assert_allclose(found.x0, x0, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.x, expected, rtol=1e-4, atol=2e-3)


def test_networks_are_given_the_t_of_the_cosine_schedule():
    table = make_table(DiffusionConfig(steps=5))
    np.testing.assert_allclose(table.r[1:5], [0.8, 0.6, 0.4, 0.2], atol=1e-5)


def test_ddim_reaches_x0_from_the_true_noise():
    """With the noise that made x, every deterministic step stays on the way to x₀."""
    x0 = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    epsilon = jax.random.normal(jax.random.key(1), (1, *SHAPE))
    table = make_table(DiffusionConfig(steps=5, sampler="ddim", cfg=1.0, cfg_rescale=0.0))
    x = table.a[0] * x0 + table.b[0] * epsilon

    def denoise(x, r, i, carry):
        return jnp.concatenate([epsilon, epsilon]), carry

    out, _ = run_steps(denoise, begin(x), (), table, 0, 5, lambda i: jnp.zeros_like(x))
    a, b = np.sqrt(1 - 1e-4), np.sqrt(1e-4)
    np.testing.assert_allclose(out.x, a * x0 + b * epsilon, atol=2e-4)


def test_pieces_of_a_loop_and_run_time_settings():
    x = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    keys = jnp.asarray(image_keys([3], 0))

    @jax.jit
    def run(state, table, start, stop):
        def denoise(x, r, i, carry):
            return jnp.sin(x) + r[:, None, None, None], carry + 1

        fresh = lambda i: noise(keys, i + 1, SHAPE)  # noqa: E731
        return run_steps(denoise, state, jnp.int32(0), table, start, stop, fresh)

    x = begin(x)
    for sampler in get_args(SamplerName):
        table = make_table(DiffusionConfig(steps=6, sampler=sampler))
        whole, count = run(x, table, 0, 6)
        first, _ = run(x, table, 0, 2)
        second, _ = run(first, table, 2, 6)
        jax.tree.map(np.testing.assert_array_equal, whole, second)
        assert count == 6
    for config in (
        DiffusionConfig(steps=MAX_STEPS, cfg=9.0),
        DiffusionConfig(steps=3, shift=3.0, sampler="ddim", schedule="linear", cfg_rescale=0.0),
        DiffusionConfig(steps=1, eta=0.5, schedule="rectified_flow"),
    ):
        run(x, make_table(config), 0, config.steps)
    assert run._cache_size() == 1


def scalings(config: DiffusionConfig) -> tuple[np.ndarray, np.ndarray]:
    """a and b of every t, in float64."""
    level = logsnr(np.linspace(1, 0, config.steps + 1), config.schedule, config.shift).astype(np.float64)
    return np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))


@pytest.mark.parametrize("schedule", ["cosine", "stable_diffusion"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_second_order_samplers_are_those_of_diffusers(sampler, schedule):
    """With as many steps as make diffusers take the last one at first order, too."""
    config = DiffusionConfig(steps=9, sampler=sampler, schedule=schedule, shift=1.7)
    table, (a, b) = as_arrays(make_table(config)), scalings(config)
    theirs = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++" if sampler == "dpmpp_2m" else "sde-dpmsolver++", solver_order=2
    )
    theirs.set_timesteps(config.steps)
    theirs.sigmas = torch.tensor(b / a)
    rng = np.random.default_rng(1)
    x, fresh = rng.standard_normal(SHAPE), rng.standard_normal((config.steps, *SHAPE))
    state, other = begin(jnp.asarray(x, jnp.float32)[None]), torch.tensor(x)
    for i, t in enumerate(theirs.timesteps):
        epsilon = np.tanh(other.numpy()) + 0.3 * np.cos(3 * i + other.numpy())
        state = step(state, jnp.asarray(epsilon, jnp.float32)[None], table, jnp.int32(i),
                     jnp.asarray(fresh[i], jnp.float32)[None])  # fmt: skip
        other = theirs.step(
            torch.tensor(epsilon), t, other, variance_noise=torch.tensor(fresh[i])
        ).prev_sample
        np.testing.assert_allclose(state.x[0], other.numpy(), rtol=2e-4, atol=2e-4 * float(other.abs().max()))


def test_orders_of_convergence_on_gaussian_data():
    """The best prediction of noise in Gaussian data is linear, and the ODE's solution is known."""
    spread = jnp.array([0.2, 1.0, 3.0]).reshape(1, 1, 1, 3)

    @jax.jit
    def end(x, table, steps):
        def denoise(x, r, i, carry):
            return table.b[i] * x / ((table.a[i] * spread) ** 2 + table.b[i] ** 2), carry

        fresh = lambda i: jnp.zeros_like(x)  # noqa: E731
        return run_steps(denoise, begin(x), (), table, 0, steps, fresh, unconditional=False)[0].x

    def error(sampler: SamplerName, steps: int) -> float:
        config = DiffusionConfig(steps=steps, sampler=sampler, schedule="linear")
        a, b = scalings(config)
        first, last = (np.sqrt((a[i] * np.asarray(spread)) ** 2 + b[i] ** 2) for i in (0, -1))
        x = end(jnp.asarray(first, jnp.float32), as_arrays(make_table(config)), steps)
        return float(np.abs(x / last - 1).max())

    def order(sampler: SamplerName) -> float:
        return float(np.log2(error(sampler, 40) / error(sampler, 80)))

    assert 0.8 < order("ddim") < 1.2
    assert 1.7 < order("dpmpp_2m") < 2.6
    assert error("dpmpp_2m", 20) < error("ddim", 80)


def test_the_interval_of_guidance_by_brute_force():
    cases = [(20, 1.0, 0.2, 0.8), (7, 1.0, 0.0, 0.5), (10, 0.45, 0.6, 1.0), (9, 1.0, 0.0, 1.0),
             (4, 1.0, 0.8, 0.9), (10, 1.0, 0.3, 0.7)]  # fmt: skip
    for steps, start, first, until in cases:
        config = DiffusionConfig(steps=steps, cfg_from=first, cfg_until=until)
        count = max(1, round(steps * start))
        found = [s.unconditional for s in segments(config, start) for _ in range(s.first, s.stop)]
        done = [1 - start + start * i / count for i in range(count)]
        assert found == [first <= d + 1e-9 and d < until - 1e-9 for d in done], config
        assert segments(config, start)[-1].stop == count
    assert segments(DiffusionConfig(steps=5, cfg=1.0)) == (Segment(0, 5, unconditional=False),)
    # Steps of another kind start anew, with what is kept and with the step before.
    table = make_table(DiffusionConfig(steps=10, cfg_from=0.3, cfg_until=0.8, reuse=2, sampler="dpmpp_2m"))
    np.testing.assert_array_equal(table.anew[:10], [1, 0, 1, 1, 0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(table.momentum[:10] > 0, [0, 1, 1, 0, 1, 1, 1, 1, 0, 0])


def test_guidance_is_the_formula_for_each_image_alone():
    rng = np.random.default_rng(0)
    epsilon = rng.standard_normal((6, *SHAPE)) * np.arange(1, 7)[:, None, None, None]
    cfg, rescale = jnp.float32(4.0), jnp.float32(0.7)
    found = guide(jnp.asarray(epsilon, jnp.float32), cfg, rescale)
    for i in range(3):
        conditional, unconditional = epsilon[i], epsilon[3 + i]
        guided = unconditional + 4 * (conditional - unconditional)
        expected = 0.7 * guided * conditional.std(ddof=1) / (guided.std(ddof=1) + 1e-9) + 0.3 * guided
        np.testing.assert_allclose(found[i], expected, rtol=2e-5, atol=1e-5)
        alone = guide(jnp.asarray(epsilon[[i, 3 + i]], jnp.float32), cfg, rescale)
        np.testing.assert_allclose(alone[0], found[i], rtol=1e-6, atol=1e-6)


def test_halves_in_turn_give_what_both_give_at_once():
    x = jax.random.normal(jax.random.key(0), (6, *SHAPE))
    beside = {"a": jnp.arange(6.0), "none": None}

    def function(x, beside):
        assert x.shape[0] in (3, 6) and beside["none"] is None
        return {"x": x * 2 + beside["a"][:, None, None, None], "sum": x.sum((1, 2, 3))}

    found, expected = in_turn(function, x, beside), function(x, beside)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_noise_depends_on_seed_stream_and_step_only():
    both = noise(jnp.asarray(image_keys([7, 8], 1)), 3, SHAPE)
    turned = noise(jnp.asarray(image_keys([8, 7], 1)), 3, SHAPE)
    np.testing.assert_array_equal(both, turned[::-1])
    others = [
        noise(jnp.asarray(image_keys([7], 0)), 3, SHAPE),
        noise(jnp.asarray(image_keys([7], 1)), 4, SHAPE),
        initial_noise(jnp.asarray(image_keys([7], 1)), SHAPE),
    ]
    others.append(noise(jnp.asarray(image_keys([7 + 2**32], 1)), 3, SHAPE))
    for other in others:
        assert not np.allclose(other[0], both[0])
    np.testing.assert_array_equal(others[2], noise(jnp.asarray(image_keys([7], 1)), 0, SHAPE))
    large = noise(jnp.asarray(image_keys([2**32 - 1], 0)), 1, (64, 64, 16))
    assert abs(float(large.mean())) < 0.02 and abs(float(large.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("steps", "timestep", "expected"),
    [(20, 0.05, 19), (10, 0.05, 9), (40, 0.05, 38), (100, 0.05, 95), (1, 0.05, 0), (20, 0.5, 10)],
)
def test_guidance_comes_from_the_nearest_step(steps, timestep, expected):
    assert guidance_step(steps, timestep) == expected
    t = np.linspace(1, 0, steps + 1)[:-1]
    assert abs(t[expected] - timestep) <= np.abs(t - timestep).min() + 1e-6
