"""Schedules, scalings, noise level and loss weights against the recording, in numpy and in jax."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.recordings import load
from ultrapixel_jax.diffusion.loss import adaptive_init, adaptive_update, adaptive_weight, p2_weight
from ultrapixel_jax.diffusion.schedule import logsnr, noise_level, scalings

SHIFTS = (0.5, 1.0, 2.0)
OTHERS = ("cosine2", "edm", "linear", "rectified_flow", "sqrt", "stable_diffusion")


@pytest.fixture(scope="module")
def recorded():
    return load("diffusion")[0]


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_cosine_schedule(recorded, shift, xp):
    name = f"shift{shift:g}"
    level = logsnr(recorded["in.t"], "cosine", shift, xp)
    np.testing.assert_allclose(level, recorded[f"out.logsnr.{name}"], atol=3e-5)
    a, b = scalings(level, xp)
    np.testing.assert_allclose(a, recorded[f"out.a.{name}"], atol=1e-6)
    np.testing.assert_allclose(b, recorded[f"out.b.{name}"], atol=2e-6)
    # acos near 1 turns one unit in the last place into 2e-6
    np.testing.assert_allclose(noise_level(level, xp), recorded[f"out.noise_cond.{name}"], atol=2e-6)
    np.testing.assert_allclose(p2_weight(jnp.asarray(level)), recorded[f"out.p2.{name}"], atol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("schedule", OTHERS)
def test_other_schedules(recorded, schedule, xp):
    found = logsnr(recorded["in.t_mid"], schedule, 1.0, xp)
    np.testing.assert_allclose(found, recorded[f"out.schedule.{schedule}"], atol=1e-5)


def test_shifted_schedules_stay_in_the_unshifted_range():
    t = np.linspace(0, 1, 101, dtype=np.float32)
    plain = logsnr(t)
    assert (np.diff(plain) <= 0).all()
    for shift in (0.1, 10.0):
        shifted = logsnr(t, shift=shift)
        assert shifted.min() >= plain.min() and shifted.max() <= plain.max()
        middle = slice(40, 60)
        np.testing.assert_allclose(shifted[middle] - plain[middle], 2 * np.log(1 / shift), atol=1e-5)


def test_adaptive_weights_over_six_updates(recorded):
    state = adaptive_init()
    for i in range(6):
        level = jnp.asarray(recorded["in.adaptive.logsnr"][i])
        weight = adaptive_weight(state, level)
        np.testing.assert_allclose(weight, recorded[f"out.adaptive.weight.{i}"], rtol=1e-6)
        state = adaptive_update(state, level, jnp.asarray(recorded["in.adaptive.loss"][i]))
    np.testing.assert_allclose(state.losses, recorded["out.adaptive.bucket_losses"], rtol=1e-6)


def test_samples_that_share_a_bucket_are_averaged():
    level = jnp.array([0.0, 0.0, 5.0])
    state = adaptive_update(adaptive_init(), level, jnp.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(
        1 / adaptive_weight(state, level), [0.99 + 0.02, 0.99 + 0.02, 0.99 + 0.05], rtol=1e-6
    )
    assert (state.losses != 1).sum() == 2
