"""Shapes are still checked where others of the same function have passed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests.shapes import once


@jaxtyped(typechecker=once)
def product(x: Float[Array, "a b"], y: Float[Array, "b c"], scale: float = 1.0) -> Float[Array, "a c"]:
    return x @ y * scale if scale else x


def test_what_is_wrong_is_found_after_what_is_right() -> None:
    one, other = jnp.zeros((2, 3)), jnp.zeros((3, 4))
    for _ in range(3):
        product(one, other)
        product(other, jnp.zeros((4, 3)), scale=2.0)
        for bad in ((one, one), (one, jnp.zeros((3, 4), int)), (one, np.zeros((3, 4))), (one, other, "2")):
            with pytest.raises(TypeCheckError):
                product(*bad)
        with pytest.raises(TypeCheckError, match="return"):
            product(one, other, 0.0)  # whose result has another shape
    assert product(one, jnp.zeros((3, 3)), 0.0) is one
