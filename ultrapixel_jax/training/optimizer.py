"""Optimizer, learning-rate schedule and moving average (section 12), all from optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from ultrapixel_jax.training.config import OptimizerConfig

ENDS = ("embedding", "clf")
"""First and last layer of stages B and C."""


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate of update n of a run of `steps` updates; the first of w warm-up updates has 1/w of it."""
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    rest = max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": optax.linear_schedule(peak, final, rest),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    first = peak / config.warmup_steps
    warmup = optax.linear_schedule(first, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or Muon."""
    rate, decay = learning_rate(config, steps), config.weight_decay
    if config.algorithm == "muon":
        b1, b2 = config.betas
        algorithm = optax.contrib.muon(
            rate, weight_decay=decay, adam_b1=b1, adam_b2=b2, adam_weight_decay=decay, eps=config.epsilon,
            consistent_rms=0.2, muon_weight_dimension_numbers=hidden_matrices,
        )  # fmt: skip
    else:
        algorithm = optax.adamw(rate, *config.betas, eps=config.epsilon, weight_decay=decay)
    if not config.clip_norm:
        return algorithm
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), algorithm)


def hidden_matrices(params: Any) -> Any:
    """What Muon takes as a matrix, and None for what it leaves to AdamW, in the structure of `params`.

    Matrices are the kernels of linear layers, also where those of several blocks are stacked, but for the
    first and the last layer of a UNet (Jordan, "Muon", 2024).
    """

    def matrix(path: Any, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = [getattr(key, "key", "") for key in path]
        stacked = int("rest" in names)
        if names[-1:] != ["kernel"] or jnp.ndim(x) != 2 + stacked or names[-2] in ENDS:
            return None
        return optax.contrib.MuonDimensionNumbers(stacked, stacked + 1)

    return jax.tree_util.tree_map_with_path(matrix, params)


def update_ema(ema: Any, params: Any, updates: Array, decay: float) -> Any:
    """`ema ← d·ema + (1 − d)·params`, with d = min(decay, (1 + n)/(10 + n)) after n `updates`."""
    n = updates.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
