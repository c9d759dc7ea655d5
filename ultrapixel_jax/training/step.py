"""One update: gradients of a task's loss, accumulated, clipped, applied and averaged. Pure; to be jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ultrapixel_jax.diffusion.loss import AdaptiveState, adaptive_update, adaptive_weight, p2_weight
from ultrapixel_jax.models import random_keys
from ultrapixel_jax.training.optimizer import update_ema
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.tasks.base import Batch, Losses, Task

BANDS = (-10.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 10.0)
"""Edges of the bands of logSNR whose losses are logged; the outer bands take what lies beyond."""

Metrics = dict[str, Any]
Step = Callable[[TrainState, Mapping[str, Any], Any, Batch], tuple[TrainState, Metrics]]


def make_step(task: Task, optimizer: optax.GradientTransformation) -> Step:
    """The function from state, frozen variables, learning rate and batch to the next state and its metrics.

    Metrics: `loss` (unweighted mean), `objective` (weighted), `gradient_norm` (before clipping),
    `parameter_norm`, `update_norm`, `learning_rate`, what the task adds, and for diffusion `band_loss`
    and `band_count`, sums over each of the bands.
    """
    config = task.config.optimizer
    optimizer = optax.with_extra_args_support(optimizer)
    diffusion = task.diffusion

    def objective(
        params: Any, collections: Any, frozen: Any, batch: Batch, adaptive: AdaptiveState
    ) -> tuple[Array, Losses]:
        out = task.loss(params, collections, frozen, batch)
        weight = jnp.ones_like(out.loss)
        if diffusion is not None and out.logsnr is not None:
            if diffusion.loss_weight == "p2":
                weight = p2_weight(out.logsnr)
            elif diffusion.loss_weight == "adaptive":
                weight = adaptive_weight(adaptive, out.logsnr)
        return (jax.lax.stop_gradient(weight) * out.loss).mean(), out

    gradient = jax.value_and_grad(objective, has_aux=True)

    def step(
        state: TrainState, frozen: Mapping[str, Any], rate: Float[Array, ""], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        size = jax.tree.leaves(dict(batch))[0].shape[0]
        key = jax.random.fold_in(random_keys.of_data(state.key), state.step)
        batch = {**batch, "key": jax.random.key_data(jax.random.split(key, size))}

        def part(carry: tuple[Any, Any], micro: Batch) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
            total, collections = carry
            (value, out), grads = gradient(state.params, collections, frozen, micro, state.adaptive)
            total = jax.tree.map(lambda t, g: t + g / config.accumulate, total, grads)
            collections = {
                name: {**kinds, **out.collections.get(name, {})} for name, kinds in collections.items()
            }
            return (total, collections), (value, out.loss, out.logsnr, out.metrics)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (zeros, state.collections)
        if config.accumulate == 1:
            (grads, collections), outs = part(carry, batch)
            value, losses, logsnr, extra = outs
        else:
            (grads, collections), outs = jax.lax.scan(part, carry, interleaved(batch, config.accumulate))
            value, losses, logsnr, extra = outs
            value, extra = value.mean(), jax.tree.map(jnp.mean, extra)
            losses, logsnr = jax.tree.map(jnp.ravel, (losses, logsnr))

        updates, moments = optimizer.update(grads, state.optimizer, state.params, rate=rate)
        params: Any = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema_decay:
            ema = update_ema(state.ema, params, state.step, config.ema_decay)
        metrics = {
            "loss": losses.mean(),
            "objective": value,
            "gradient_norm": optax.tree.norm(grads),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": jnp.asarray(rate, jnp.float32),
            **extra,
        }
        adaptive = state.adaptive
        if logsnr is not None:
            adaptive = adaptive_update(adaptive, logsnr, losses)
            metrics |= band_sums(logsnr, losses)
        return (
            TrainState(state.step + 1, params, collections, ema, moments, adaptive, state.key),
            metrics,
        )

    return step


def interleaved(batch: Batch, parts: int) -> dict[str, Array]:
    """The batch in `parts` parts, (parts, b / parts, …).

    Part i takes every `parts`-th sample, so that each device has its share of every part and nothing
    moves between devices.
    """

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return {name: cut(x) for name, x in batch.items()}


def band_sums(
    logsnr: Float[Array, " b"], losses: Float[Array, " b"], weights: Float[Array, " b"] | float = 1.0
) -> Metrics:
    """Sum of the losses and number of samples in each band of logSNR, of samples with `weights`."""
    band = jnp.searchsorted(jnp.asarray(np.asarray(BANDS[1:-1], np.float32)), logsnr, side="right")
    zeros = jnp.zeros(len(BANDS) - 1, jnp.float32)
    return {"band_loss": zeros.at[band].add(weights * losses), "band_count": zeros.at[band].add(weights)}


def band_name(low: float, high: float) -> str:
    """Of the loss in a band of logSNR; of characters that TensorBoard keeps in its tags."""
    return f"loss_logsnr/{low:g}_{high:g}"
