"""A checksum of arrays that is computed where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

BY_COMPONENT = ("params", "ema", "collections")
"""Fields of a run's state that hold a tree for each trained component."""


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


def checksums(state: Mapping[str, Any]) -> dict[str, int]:
    """Checksums of a run's state, by field; by `field/component` where it is divided by component."""
    return {name: int(checksum(value)) for name, value in _parts(state).items()}


def check_sums(state: Mapping[str, Any], expected: Mapping[str, int]) -> None:
    """Compare what was restored of a run's state with the `checksums` that were saved beside it.

    Raises:
        ValueError: its bits are not those that were saved.
    """
    for name, value in {**state, **_parts(state)}.items():  # earlier runs have sums of whole fields
        if name in expected and int(checksum(value)) != expected[name]:
            raise ValueError(f"{name} are not the numbers that were saved")


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for field, value in state.items():
        if field in BY_COMPONENT:
            parts |= {f"{field}/{name}": tree for name, tree in value.items()}
        else:
            parts[field] = value
    return parts
