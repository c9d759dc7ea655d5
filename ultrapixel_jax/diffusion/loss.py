"""The training objective (paper eq. 5; §5): noise that is drawn, added, predicted, and weighted by logSNR.

Weights are P2, or the adaptive one that divides by a running mean of the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax.diffusion import schedule

BUCKETS = 300
LOGSNR_RANGE = (-10.0, 10.0)
WEIGHT_RANGE = (1e-7, 1e7)
MOMENTUM = 0.99


def draw_t(uniform: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The t of training samples, from numbers in [0, 1): `clip(1 − U + 0.001, 0.001, 1)`."""
    return jnp.clip(1 - uniform + 0.001, 0.001, 1.0)


def diffuse(
    x0: Float[Array, "b h w c"], epsilon: Float[Array, "b h w c"], logsnr: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """`x_t = a·x₀ + b·ε`, float32."""
    a, b = (v[:, None, None, None] for v in schedule.scalings(logsnr, xp=jnp))
    return a * x0.astype(jnp.float32) + b * epsilon.astype(jnp.float32)


def epsilon_loss(predicted: Float[Array, "b h w c"], epsilon: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean squared error of each sample, float32."""
    return jnp.square(predicted.astype(jnp.float32) - epsilon.astype(jnp.float32)).mean((1, 2, 3))


def p2_weight(logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`1/(1 + exp(logSNR))`."""
    return 1 / (1 + jnp.exp(logsnr))


class AdaptiveState(NamedTuple):
    """Running mean of the loss in each bucket of logSNR."""

    losses: Float[Array, " buckets"]


def adaptive_init(buckets: int = BUCKETS) -> AdaptiveState:
    """All buckets at 1."""
    return AdaptiveState(jnp.ones(buckets, jnp.float32))


def _bucket(state: AdaptiveState, logsnr: Float[Array, " b"]) -> Array:
    edges = jnp.asarray(np.linspace(*LOGSNR_RANGE, len(state.losses) - 1), jnp.float32)
    return jnp.searchsorted(edges, logsnr, side="left")


def adaptive_weight(state: AdaptiveState, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """`1/bucket_loss`, clipped to 1e-7 to 1e7, before this batch's update."""
    return jnp.clip(1 / state.losses[_bucket(state, logsnr)], *WEIGHT_RANGE)


def adaptive_update(
    state: AdaptiveState, logsnr: Float[Array, " b"], loss: Float[Array, " b"]
) -> AdaptiveState:
    """`bucket ← 0.99·bucket + 0.01·loss` for the buckets that were hit.

    Samples that share a bucket are averaged; the released implementation keeps one of them.
    """
    bucket, none = _bucket(state, logsnr), jnp.zeros_like(state.losses)
    hits = none.at[bucket].add(1.0)
    mean = none.at[bucket].add(loss) / jnp.maximum(hits, 1)
    updated = MOMENTUM * state.losses + (1 - MOMENTUM) * mean
    return AdaptiveState(jnp.where(hits > 0, updated, state.losses))
