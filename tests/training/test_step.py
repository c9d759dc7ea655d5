"""Whole steps of a linear model against the formulas in float64, and the random numbers that steps draw."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.test_loss import bucket_of
from tests.training.steps import config_of
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import DiffusionTraining, OptimizerConfig, StageCTask
from ultrapixel_jax.training.optimizer import make_optimizer, scale_by_rate
from ultrapixel_jax.training.step import BANDS, interleaved, make_step
from ultrapixel_jax.training.tasks.base import Losses, Task, keys_of, uniform

RATE, DECAY = 0.05, 0.15
SAMPLES = 6


@dataclasses.dataclass(frozen=True)
class Line(Task):
    """`(x·w − y)²`, with a logSNR from the batch."""

    trained = ("line",)
    frozen = ()

    def loss(self, params: Any, collections: Any, frozen: Any, batch: Any) -> Losses:
        del collections, frozen
        error = batch["x"] @ params["line"]["w"] - batch["y"]
        return Losses(jnp.square(error), batch["logsnr"], metrics={"error": error.mean()})


@dataclasses.dataclass(frozen=True)
class Draws(Line):
    """The loss is what is drawn."""

    def loss(self, params: Any, collections: Any, frozen: Any, batch: Any) -> Losses:
        del params, collections, frozen
        drawn = uniform(keys_of(batch, 0))
        return Losses(drawn, metrics={"spread": drawn.std()})


def run_of(kind: type[Task], weight: Any, accumulate: int = 1, seed: int = 0) -> tuple[Any, Any]:
    """The state before the first step, and the step, whose optimizer is gradient descent."""
    config = config_of(
        StageCTask(diffusion=DiffusionTraining(loss_weight=weight)), batch_size=SAMPLES,
        optimizer=OptimizerConfig(accumulate=accumulate, ema_decay=DECAY), seed=seed,
    )  # fmt: skip
    descent = scale_by_rate()
    params = {"line": {"params": {"w": np.asarray([0.5, -1.0, 2.0], np.float32)}}}
    state = states.create(params, descent, config.seed, True)
    return state, jax.jit(make_step(kind(config), descent))


def batch_of(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    # Twice in one bucket and at the edges of two bands.
    logsnr = np.array([-11.0, -2.0, 0.03, 0.04, 4.0, 7.5])
    batch = {
        "x": random.standard_normal((SAMPLES, 3)),
        "y": random.standard_normal(SAMPLES),
        "logsnr": logsnr,
    }
    return {name: x.astype(np.float32) for name, x in batch.items()}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("weight", ["p2", "adaptive"])
def test_steps_are_the_formulas(weight: str, accumulate: int) -> None:
    state, step = run_of(Line, weight, accumulate)
    w = np.array([0.5, -1.0, 2.0])
    average, running = w.copy(), np.ones(300)
    for n in range(4):
        batch = batch_of(n)
        x, y, logsnr = (batch[name].astype(np.float64) for name in ("x", "y", "logsnr"))
        buckets = [bucket_of(value) for value in logsnr]
        factor = 1 / (1 + np.exp(logsnr)) if weight == "p2" else 1 / running[buckets]
        error = x @ w - y
        losses = error**2
        gradient = 2 * (factor * error) @ x / SAMPLES
        rate = RATE / (1 + n)
        w = w - rate * gradient
        kept = min(DECAY, (1 + n) / (10 + n))
        average = kept * average + (1 - kept) * w
        for bucket in set(buckets):
            mean = losses[[b == bucket for b in buckets]].mean()
            running[bucket] = 0.99 * running[bucket] + 0.01 * mean

        state, metrics = step(state, {}, np.float32(rate), batch)
        found = {name: np.asarray(value) for name, value in metrics.items()}
        # Bands are closed below; the first takes what is smaller, too.
        members = [
            (logsnr >= (low if i else -np.inf)) & (logsnr < high)
            for i, (low, high) in enumerate(itertools.pairwise(BANDS))
        ]
        expected = {
            "loss": losses.mean(),
            "objective": (factor * losses).mean(),
            "error": error.mean(),
            "gradient_norm": np.linalg.norm(gradient),
            "update_norm": rate * np.linalg.norm(gradient),
            "parameter_norm": np.linalg.norm(w),
            "learning_rate": rate,
            "band_loss": [losses[inside].sum() for inside in members],
            "band_count": [inside.sum() for inside in members],
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(state.params["line"]["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.ema["line"]["w"], average, rtol=1e-5)
        np.testing.assert_allclose(state.adaptive.losses, running, rtol=1e-5)
        assert state.step == n + 1


def test_runs_of_every_rate_and_length_share_one_program() -> None:
    """Another rate, schedule or number of steps compiles nothing anew."""

    def text(steps: int, **rates: Any) -> str:
        optimizer = OptimizerConfig(**rates)
        config = config_of(StageCTask(), batch_size=SAMPLES, optimizer=optimizer, steps=steps)
        params = {"line": {"params": {"w": np.zeros(3, np.float32)}}}
        adamw = make_optimizer(optimizer)
        state = states.create(params, adamw, config.seed, True)
        step = jax.jit(make_step(Line(config), adamw))
        return step.lower(state, {}, np.float32(optimizer.learning_rate), batch_of(0)).as_text()

    changed = {"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 7, "final_fraction": 0.1}
    assert text(10) == text(5000, **changed)
    assert text(10) != text(10, weight_decay=0.5)


def drawn(accumulate: int = 1, seed: int = 0) -> list[float]:
    """Means of the numbers of three steps."""
    state, step = run_of(Draws, "p2", accumulate, seed)
    found = []
    for n in range(3):
        state, metrics = step(state, {}, np.float32(RATE), batch_of(n))
        assert metrics["spread"] > 0.01
        found.append(float(metrics["loss"]))
    return found


def test_every_step_sample_and_seed_draws_its_own() -> None:
    first, other = drawn(), drawn(seed=1)
    assert len({*first, *other}) == 6
    np.testing.assert_allclose(drawn(accumulate=2), first, rtol=1e-6)


def test_parts_are_interleaved() -> None:
    """Devices hold consecutive samples: each has some of every part."""
    found = interleaved({"x": jnp.arange(12).reshape(6, 2)}, 3)["x"]
    np.testing.assert_array_equal(found[..., 0] // 2, [[0, 3], [1, 4], [2, 5]])
