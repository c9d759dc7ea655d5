"""Optimizer (of optax's parts), learning-rate schedule and moving average (section 12)."""

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


def learning_rate(config: OptimizerConfig, steps: int, n: int) -> float:
    """Rate of update `n` of a run of `steps` updates, the first of which is 0.

    The first of w warm-up updates has 1/w of the peak. The step is given each rate, so that its program is
    the same for runs of every rate and length.
    """
    peak, final = config.learning_rate, config.final_fraction
    if n < config.warmup_steps:
        return peak * (n + 1) / config.warmup_steps
    done = min((n - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return peak * (final + (1 - final) * left[config.schedule])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then AdamW or Muon; `update` takes the `rate`, too."""
    (b1, b2), epsilon = config.betas, config.epsilon

    def at_rate(direction: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        return optax.chain(direction, optax.add_decayed_weights(config.weight_decay), scale_by_rate())

    if config.algorithm == "muon":
        parts: dict[Any, Any] = {
            "muon": at_rate(scale_by_muon(epsilon)),
            "adam": at_rate(optax.scale_by_adam(b1, b2, epsilon, nesterov=True)),
        }
        algorithm = optax.partition(parts, _labels)
    else:
        algorithm = at_rate(optax.scale_by_adam(b1, b2, epsilon))
    if not config.clip_norm:
        return algorithm
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), algorithm)


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Updates times minus the `rate` of each call; its state counts, as those of optax's schedules do."""

    def update(updates: Any, state: Any, params: Any = None, *, rate: Any, **others: Any) -> tuple[Any, Any]:
        del params, others
        updates = jax.tree.map(lambda x: jnp.asarray(-rate, x.dtype) * x, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    def init(params: Any) -> Any:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


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
