"""Kernels in eight bits: a whole number from −127 to 127 for each weight, a scale for each output channel.

Only weights are; products are in the compute dtype, of kernels that are made from them where they are used,
one at a time. Half the memory of bfloat16, and as many operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import Int8 as Integer

NETWORKS = ("stage_c", "stage_b")
"""Networks whose kernels may be: nearly all weights of a model are theirs."""
SMALLEST = 128
"""Inputs and outputs that a kernel must have at least: smaller ones are few, and among them those of the
first and last layer and of the noise level, which every value passes."""
LARGEST = 127


class Int8(NamedTuple):
    """One kernel."""

    values: Integer[Array, "c f"]
    scale: Float[Array, " f"]
    """float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the kernel."""
        return self.values.shape

    def kernel(self, dtype: Any) -> Float[Array, "c f"]:
        """The kernel that it stands for."""
        return (self.values.astype(jnp.float32) * self.scale[None]).astype(dtype)

    def kernel_for(self, x: Float[Array, "*b c"]) -> Float[Array, "c f"]:
        """The kernel in the dtype of what it is multiplied with, made when that is there and not before.

        Compilers would make the kernels of all layers first, or before a loop, and keep them: CPUs' drops its
        barriers before it decides on the order. So a zero that is made of `x` is added.
        """
        zero = (0.0 * x.reshape(-1)[0].astype(jnp.float32)).astype(jnp.int8)
        return Int8(self.values + zero.reshape(1, 1), self.scale).kernel(x.dtype)


def rounded(kernel: Float[Array, "c f"]) -> Int8:
    """`kernel`, each value off by half of 1/127 of its output channel's largest at most."""
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=0) / LARGEST
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[None])
    return Int8(values.astype(jnp.int8), scale)


def quantised(variables: dict[str, Any]) -> dict[str, Any]:
    """`variables` of one network, the kernels of its linear layers in eight bits."""
    make = jax.jit(rounded)

    def of(path: Any, leaf: Any) -> Any:
        chosen = path[-1].key == "kernel" and leaf.ndim == 2 and min(leaf.shape) >= SMALLEST
        return make(leaf) if chosen else leaf

    return jax.tree_util.tree_map_with_path(of, variables)
