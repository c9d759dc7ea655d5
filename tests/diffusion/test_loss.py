"""The training objective against the formulas of the specification, written out with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrapixel_jax.diffusion import loss
from ultrapixel_jax.diffusion.schedule import logsnr as logsnr_of


def test_t_is_uniform_but_never_zero() -> None:
    u = np.linspace(0, 1, 1001, endpoint=False, dtype=np.float32)
    t = np.asarray(loss.draw_t(jnp.asarray(u)))
    np.testing.assert_allclose(t, np.clip(1 - u + 0.001, 0.001, 1), rtol=1e-6)
    assert t.min() >= 0.001 and t.max() == 1


def test_diffusing_keeps_unit_variance_and_has_the_snr() -> None:
    random = np.random.default_rng(0)
    x0, epsilon = random.standard_normal((2, 3, 64, 64, 4)).astype(np.float32)
    logsnr = np.array([-3.0, 0.5, 4.0], np.float32)
    noised = np.asarray(loss.diffuse(jnp.asarray(x0), jnp.asarray(epsilon), jnp.asarray(logsnr)))
    for row, value in enumerate(logsnr):
        a2 = 1 / (1 + np.exp(-value))
        np.testing.assert_allclose(
            noised[row], np.sqrt(a2) * x0[row] + np.sqrt(1 - a2) * epsilon[row], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(a2 / (1 - a2), np.exp(value), rtol=1e-4)


def test_loss_of_bfloat16_is_taken_in_float32() -> None:
    random = np.random.default_rng(0)
    predicted, epsilon = random.standard_normal((2, 2, 5, 6, 3)).astype(np.float32)
    rounded = jnp.asarray(predicted, jnp.bfloat16)
    found = loss.epsilon_loss(rounded, jnp.asarray(epsilon))
    expected = ((np.asarray(rounded, np.float32) - epsilon) ** 2).mean((1, 2, 3))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def bucket_of(value: float) -> int:
    """torch.bucketize(value, linspace(-10, 10, 299)): the first edge that is not smaller."""
    edges = np.linspace(-10, 10, 299).astype(np.float32)
    return next((i for i, edge in enumerate(edges) if np.float32(value) <= edge), 299)


@pytest.mark.parametrize("value", [-30.0, -10.0, -9.99, 0.0, 0.01, 9.999, 10.0, 10.001, 30.0])
def test_buckets_at_their_edges(value: float) -> None:
    state = loss.adaptive_init()
    updated = loss.adaptive_update(state, jnp.asarray([value], jnp.float32), jnp.asarray([3.0]))
    changed = np.flatnonzero(np.asarray(updated.losses) != 1)
    assert changed.tolist() == [bucket_of(value)]
    np.testing.assert_allclose(updated.losses[changed[0]], 0.99 + 0.01 * 3, rtol=1e-6)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Without subnormal ones, which CPUs take for 0 here."""
    return st.floats(low, high, width=32, allow_subnormal=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(numbers(-15, 15), numbers(0, 9)), min_size=8, max_size=8))
def test_running_means_and_weights(samples: list[tuple[float, float]]) -> None:
    logsnr = jnp.asarray([s for s, _ in samples], jnp.float32)
    losses = jnp.asarray([v for _, v in samples], jnp.float32)
    start = loss.AdaptiveState(jnp.linspace(0.5, 2, loss.BUCKETS))
    expected = np.asarray(start.losses).copy()
    hit: dict[int, list[float]] = {}
    for s, v in samples:
        hit.setdefault(bucket_of(s), []).append(v)
    np.testing.assert_allclose(
        loss.adaptive_weight(start, logsnr), [1 / expected[bucket_of(s)] for s, _ in samples], rtol=1e-5
    )
    for bucket, values in hit.items():
        expected[bucket] = 0.99 * expected[bucket] + 0.01 * np.mean(values)
    updated = loss.adaptive_update(start, logsnr, losses)
    np.testing.assert_allclose(updated.losses, expected, rtol=1e-5)


def test_fewer_buckets_share_their_means() -> None:
    """-10 to 10 in eight parts of 2.5, and one for what lies at or below -10 and one above 10."""
    state = loss.adaptive_update(
        loss.adaptive_init(10), jnp.asarray([0.1, 2.4, -11.0]), jnp.asarray([3.0, 5, 2])
    )
    np.testing.assert_allclose(state.losses, [1.01, *[1] * 4, 1.03, *[1] * 4], rtol=1e-6)
    found = loss.adaptive_weight(state, jnp.asarray([1.0, -20.0, 20.0]))
    np.testing.assert_allclose(found, [1 / 1.03, 1 / 1.01, 1], rtol=1e-6)


def test_weights_are_clipped() -> None:
    state = loss.AdaptiveState(jnp.zeros(loss.BUCKETS).at[0].set(1e9))
    found = loss.adaptive_weight(state, jnp.asarray([-20.0, 5.0]))
    np.testing.assert_allclose(found, [1e-7, 1e7], rtol=1e-5)


def test_p2_weight() -> None:
    logsnr = np.linspace(-12, 12, 49).astype(np.float32)
    np.testing.assert_allclose(loss.p2_weight(jnp.asarray(logsnr)), 1 / (1 + np.exp(logsnr)), rtol=1e-5)


def test_every_t_has_a_finite_loss_weight() -> None:
    t = loss.draw_t(jnp.linspace(0, 1, 4096, endpoint=False))
    for name in ("cosine", "cosine2", "linear", "rectified_flow", "sqrt", "edm", "stable_diffusion"):
        values = jax.vmap(lambda t, name=name: logsnr_of(t, name, 1.0, xp=jnp))(t)
        assert np.isfinite(loss.p2_weight(values)).all(), name
        assert np.isfinite(loss.adaptive_weight(loss.adaptive_init(), values)).all(), name
