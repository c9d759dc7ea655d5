"""Rates, updates and the moving average, by hand in float64."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ultrapixel_jax.training.config import OptimizerConfig
from ultrapixel_jax.training.optimizer import learning_rate, make_optimizer, update_ema

PEAK, FINAL, STEPS = 0.02, 0.1, 12


def rate_of(schedule: str, warmup: int, n: int) -> float:
    """The rate of update `n`, the first of which is 0."""
    if n < warmup:
        return PEAK * (n + 1) / warmup
    done = min((n - warmup) / (STEPS - warmup), 1)
    if schedule == "constant":
        return PEAK
    if schedule == "linear":
        return PEAK * (1 - (1 - FINAL) * done)
    return PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_rates(schedule: Any, warmup: int) -> None:
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_steps=warmup, final_fraction=FINAL)
    found = [learning_rate(config, STEPS, n) for n in range(STEPS + 3)]
    np.testing.assert_allclose(found, [rate_of(schedule, warmup, n) for n in range(STEPS + 3)], rtol=1e-5)


def draw(seed: int, scale: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": scale * random.standard_normal((3, 2)), "b": scale * random.standard_normal(4)}


@pytest.mark.parametrize("clip", [0.7, 0.0])
def test_adamw_with_decay_clipping_and_warm_up(clip: float) -> None:
    """Loshchilov and Hutter (2019), algorithm 2: the decay is no part of the gradient."""
    (b1, b2), epsilon, decay = (0.8, 0.95), 0.03, 0.3
    config = OptimizerConfig(
        learning_rate=PEAK, schedule="cosine", warmup_steps=3, final_fraction=FINAL, weight_decay=decay,
        betas=(b1, b2), epsilon=epsilon, clip_norm=clip,
    )  # fmt: skip
    optimizer = make_optimizer(config)
    expected = draw(0, 1.0)
    params: Any = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), expected)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    m, v = ({name: np.zeros_like(x) for name, x in expected.items()} for _ in range(2))
    for n in range(6):
        # Norms of about 0.3 and 3: some are clipped, some are not.
        gradients = draw(n + 1, (0.1, 1.0)[n % 2])
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
        changes, state = update(given, state, params, rate=learning_rate(config, STEPS, n))
        params = optax.apply_updates(params, changes)

        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert (norm > 0.7) == bool(n % 2)
        factor = min(1, clip / norm) if clip else 1
        for name, g in gradients.items():
            m[name] = b1 * m[name] + (1 - b1) * factor * g
            v[name] = b2 * v[name] + (1 - b2) * (factor * g) ** 2
            mean, square = m[name] / (1 - b1 ** (n + 1)), v[name] / (1 - b2 ** (n + 1))
            direction = mean / (np.sqrt(square) + epsilon) + decay * expected[name]
            expected[name] = expected[name] - rate_of("cosine", 3, n) * direction
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-6)


def test_muon_is_clipped_as_adamw_is() -> None:
    """Muon itself is not changed by a gradient's length, but its neighbour's moments are."""
    config = OptimizerConfig(algorithm="muon", clip_norm=0.5, epsilon=0.1, weight_decay=0.0)
    unclipped = OptimizerConfig(algorithm="muon", clip_norm=0.0, epsilon=0.1, weight_decay=0.0)
    params = {"bias": jnp.ones(3)}
    gradient = {"bias": jnp.asarray([3.0, 0.0, -4.0])}
    changes = []
    for config_, given in ((config, gradient), (unclipped, {"bias": gradient["bias"] * 0.1})):
        optimizer = make_optimizer(config_)
        changes.append(optimizer.update(given, optimizer.init(params), params, rate=PEAK)[0]["bias"])
    np.testing.assert_allclose(changes[0], changes[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("updates", "kept"), [(0, 0.1), (1, 2 / 11), (80, 0.9), (90, 0.91), (170, 171 / 180), (10**6, 0.97)]
)
def test_the_average_is_short_at_first(updates: int, kept: float) -> None:
    found = update_ema({"x": jnp.float32(2)}, {"x": jnp.float32(7)}, jnp.int32(updates), 0.97)
    np.testing.assert_allclose(found["x"], kept * 2 + (1 - kept) * 7, rtol=1e-6)
