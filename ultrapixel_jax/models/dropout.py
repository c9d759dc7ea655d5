"""Dropout by sample: each has a random key of its own, so that neither mesh nor accumulation enters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def dropout(x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None) -> Float[Array, "b ..."]:
    """Each value is zero with probability `rate`, and else 1/(1 − rate) of what it was; all as they are
    without `keys`.
    """
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, np.float32(1 - rate), x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def keys_for(keys: Key[Array, " b"] | None, place: int | Int[Array, ""]) -> Key[Array, " b"] | None:
    """The samples' keys at a place in the network, others than at every other place."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
