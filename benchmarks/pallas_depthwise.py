"""The depthwise convolution as a Pallas kernel for NVIDIA GPUs, to be measured against the shifted products.

A candidate: `benchmarks.layers` times it, nothing else uses it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from ultrapixel_jax.models import convolutions

COLUMNS, CHANNELS = 32, 64
"""Of the map that one program computes, in one row; powers of two, as Triton wants them."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], interpret: bool = False
) -> Float[Array, "b h w c"]:
    """Depthwise convolution of `x`, padded with zeros, accumulated in float32.

    Channels are a multiple of 64. `interpret` runs it without a GPU.
    """
    batch, height, width, channels = x.shape
    reach = kernel.shape[0] // 2
    columns = -(-width // COLUMNS) * COLUMNS
    padded = jnp.pad(x, [(0, 0), (reach, reach), (reach, columns - width + reach), (0, 0)])

    def program(x_ref: Any, kernel_ref: Any, out_ref: Any) -> None:
        row, start = pl.program_id(1), pl.program_id(2) * COLUMNS
        total = jnp.zeros((COLUMNS, CHANNELS), jnp.float32)
        for dy, dx in np.ndindex(kernel.shape[:2]):
            tile = x_ref[0, row + dy, pl.ds(start + dx, COLUMNS), :]
            total += tile.astype(jnp.float32) * kernel_ref[dy, dx, :][None].astype(jnp.float32)
        out_ref[0, 0] = total.astype(out_ref.dtype)

    out = pl.pallas_call(
        program,
        out_shape=jax.ShapeDtypeStruct((batch, height, columns, channels), x.dtype),
        grid=(batch, height, columns // COLUMNS, channels // CHANNELS),
        in_specs=[
            pl.BlockSpec((1, *padded.shape[1:3], CHANNELS), lambda b, y, x, c: (b, 0, 0, c)),
            pl.BlockSpec((*kernel.shape[:2], CHANNELS), lambda b, y, x, c: (0, 0, c)),
        ],
        out_specs=pl.BlockSpec((1, 1, COLUMNS, CHANNELS), lambda b, y, x, c: (b, y, x, c)),
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
    )(padded, kernel)
    return out[:, :, :width]


def _forward(x: Array, kernel: Array, interpret: bool) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, interpret), (x, kernel)


def _backward(interpret: bool, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    reach = kernel.shape[0] // 2
    padded = jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    in_kernel = convolutions._kernel_gradient(padded, cotangent).reshape(kernel.shape)
    return depthwise(cotangent, kernel[::-1, ::-1], interpret), in_kernel.astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)
