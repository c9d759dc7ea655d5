"""Optimizer, learning-rate schedule and moving average (section 12), all from optax."""

from __future__ import annotations

import math
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
        parts: dict[Any, Any] = {
            "muon": optax.chain(
                scale_by_muon(config.epsilon),
                optax.add_decayed_weights(decay),
                optax.scale_by_learning_rate(rate),
            ),
            "adam": optax.adamw(rate, b1, b2, eps=config.epsilon, weight_decay=decay, nesterov=True),
        }
        algorithm = optax.partition(parts, _labels)
    else:
        algorithm = optax.adamw(rate, *config.betas, eps=config.epsilon, weight_decay=decay)
    if not config.clip_norm:
        return algorithm
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), algorithm)


def scale_by_muon(epsilon: float) -> optax.GradientTransformation:
    """Orthogonalised momentum, scaled to the root mean square of AdamW's updates.

    That of optax, given all matrices of a shape as one array: a UNet has some hundred matrices of few
    shapes, and each takes fifteen products, which are fifteen of a program for each shape instead.
    """

    def dimensions(groups: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), groups)

    inner = optax.contrib.scale_by_muon(eps=epsilon, weight_dimension_numbers=dimensions)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        moments = state._replace(mu=_by_shape(state.mu))
        result: Any = inner.update(_by_shape(updates), moments)
        groups, moments = result
        groups = {shape: x * (0.2 * math.sqrt(max(shape))) for shape, x in groups.items()}
        return _apart(groups, updates), moments._replace(mu=_apart(moments.mu, updates))

    return optax.GradientTransformation(inner.init, update)


def _by_shape(tree: Any) -> dict[tuple[int, int], Array]:
    """The matrices in the leaves of `tree`, by shape: (number, rows, columns)."""
    groups: dict[Any, list[Array]] = {}
    for x in jax.tree.leaves(tree):
        groups.setdefault(x.shape[-2:], []).append(x.reshape(-1, *x.shape[-2:]))
    return {shape: jnp.concatenate(parts) for shape, parts in groups.items()}


def _apart(groups: dict[tuple[int, int], Array], like: Any) -> Any:
    """What `_by_shape` put together, in the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    taken = dict.fromkeys(groups, 0)
    out = []
    for x in leaves:
        shape = x.shape[-2:]
        first, count = taken[shape], math.prod(x.shape[:-2])
        out.append(groups[shape][first : first + count].reshape(x.shape))
        taken[shape] += count
    return jax.tree.unflatten(structure, out)


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda *x: "muon" if is_hidden_matrix(*x) else "adam", params)


def is_hidden_matrix(path: Any, x: Any) -> bool:
    """Whether Muon takes a parameter as a matrix, or as some of one shape; it leaves others to AdamW.

    Matrices are the kernels of linear layers, also where those of several blocks are stacked, but for the
    first and the last layer of a UNet (Jordan, "Muon", 2024).
    """
    names = [getattr(key, "key", "") for key in path]
    return names[-1:] == ["kernel"] and jnp.ndim(x) == 2 + ("rest" in names) and names[-2] not in ENDS


def update_ema(ema: Any, params: Any, updates: Array, decay: float) -> Any:
    """`ema ← d·ema + (1 − d)·params`, with d = min(decay, (1 + n)/(10 + n)) after n `updates`."""
    n = updates.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
