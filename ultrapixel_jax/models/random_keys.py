"""Random keys of one generator, whatever jax's default is, so that a seed means the same everywhere."""

from __future__ import annotations

import jax
from jaxtyping import Array, Key, UInt32

GENERATOR = "threefry2x32"


def of_seed(seed: int) -> Key[Array, ""]:
    """A key of `seed`."""
    return jax.random.key(seed, impl=GENERATOR)


def of_data(data: UInt32[Array, "*b 2"]) -> Key[Array, "*b"]:
    """The keys that are kept as `data`."""
    return jax.random.wrap_key_data(data, impl=GENERATOR)
