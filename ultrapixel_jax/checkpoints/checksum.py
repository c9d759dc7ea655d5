"""A checksum of arrays that is computed where they lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


@jax.jit
def checksum(tree: Any) -> UInt32[Array, ""]:
    """A number in which each bit of each array counts; the same on every mesh."""
    total = jnp.zeros((), jnp.uint32)
    for i, x in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        place, stride = jnp.zeros_like(words), 1
        for axis, size in enumerate(words.shape):
            iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            place, stride = place + iota * np.uint32(stride % 2**32), stride * size
        # Odd weights, so that any one word changes the sum. Integers add up to the same in any order.
        total += np.uint32(2 * i + 1) * jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
    return total
