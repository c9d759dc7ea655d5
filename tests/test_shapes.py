"""Shapes are still checked where others of the same function have passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Float, PyTree, TypeCheckError, UInt8

from tests.shapes import of_arrays, once, takes_arrays


@of_arrays(typechecker=once)
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


Plane = UInt8[np.ndarray, "h w"]


def test_functions_without_arrays_are_left_as_they_are() -> None:
    def plain(x: int, y: Mapping[str, tuple[int, ...]]) -> str | None: ...
    def within(x: Mapping[str, list[Plane] | None]) -> None: ...
    def called(x: Callable[[Plane], int]) -> None: ...
    def bare(x: list[np.ndarray]) -> None: ...
    def tree(x: PyTree[Float[Array, "a b"]]) -> None: ...
    def given() -> tuple[Plane, ...]: ...
    def unknown(x: NotThere) -> None: ...  # noqa: F821

    assert not takes_arrays(plain)
    assert all(map(takes_arrays, (within, called, bare, tree, given, unknown)))
    assert of_arrays(plain, typechecker=once) is plain
    assert of_arrays(within, typechecker=once) is not within
    assert jaxtyping.jaxtyped is of_arrays


def test_networks_are_checked() -> None:
    """By what `--jaxtyping-packages` does when the package is imported."""
    from ultrapixel_jax.layouts import rows
    from ultrapixel_jax.models.layers import Linear

    assert hasattr(Linear.__call__, "__wrapped__")
    assert not hasattr(rows.Row.match_source, "__wrapped__")
