"""The channel MLP's two products as Pallas kernels for NVIDIA GPUs, with what follows each in its epilogue.

XLA writes the hidden units, reads and writes them again for GELU, and adds bias and map in a pass of their
own; here hidden units are written once, after GELU, beside the sums of their squares that GRN needs, and the
second product adds to the map. Off unless asked for (`layers.mlp_kernels`): bytes are fewer, but no GPU
has timed these kernels beside its library's products (`python -m benchmarks.layers mlp`). They are on Pallas'
Triton backend, which jax 0.12 deprecates; `mosaic_mlp` is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from ultrapixel_jax.models.layers import PALLAS_TILE
from ultrapixel_jax.models.plain_mlp import (
    gelu_by_erf,
    plain_gelu_of_product,
    plain_product_onto,
    with_factor,
    with_gradient_of,
)

ROWS, COLUMNS, DEPTH = 128, 128, PALLAS_TILE
"""Of the result that one program computes, and of what it multiplies at a time."""


@with_gradient_of(plain_gelu_of_product)
def gelu_of_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "c f"], bias: Float[Array, " f"], interpret: bool = False
) -> tuple[Float[Array, "b h w f"], Float[Array, "b f"]]:
    """`gelu(x @ kernel + bias)` in the dtype of `x`, and the sums of its squares over each map in float32.

    The product is not rounded in between. `interpret` runs it without a GPU.
    """
    b, h, w, _ = x.shape
    features = kernel.shape[1]

    def epilogue(total: Array, rows: Array, bias_ref: Any, out_ref: Any, squares_ref: Any) -> None:
        hidden = gelu_by_erf(total + bias_ref[:].astype(jnp.float32)[None]).astype(out_ref.dtype)
        triton.store(out_ref, hidden, mask=rows)
        squares_ref[:] = jnp.where(rows, jnp.square(hidden.astype(jnp.float32)), 0.0).sum(0)

    tiles, columns = pl.cdiv(h * w, ROWS), _columns(features)
    hidden, squares = _product(
        epilogue,
        x.reshape(b, h * w, -1),
        kernel.astype(x.dtype)[None],
        (bias, pl.BlockSpec((columns,), lambda b, i, j: (j,))),
        (jax.ShapeDtypeStruct((b, h * w, features), x.dtype), _tile(columns)),
        (
            jax.ShapeDtypeStruct((b, tiles, features), jnp.float32),
            pl.BlockSpec((None, None, columns), lambda b, i, j: (b, i, j)),
        ),
        interpret=interpret,
    )
    return hidden.reshape(b, h, w, features), squares.sum(1)


@with_gradient_of(plain_product_onto)
def product_onto(
    x: Float[Array, "b h w c"],
    hidden: Float[Array, "b h w f"],
    factor: Float[Array, "b f"],
    shift: Float[Array, " f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, " c"],
    interpret: bool = False,
) -> Float[Array, "b h w c"]:
    """`x + (hidden·factor + shift) @ kernel + bias`, rounded once.

    The factor enters a kernel for each sample. `interpret` runs it without a GPU.
    """
    b, h, w, channels = x.shape
    kernels, constant = with_factor(kernel, factor, shift, bias)
    columns = _columns(channels)

    def epilogue(total: Array, rows: Array, constant_ref: Any, x_ref: Any, out_ref: Any) -> None:
        onto = triton.load(x_ref, mask=rows, other=0).astype(jnp.float32)
        triton.store(out_ref, (onto + total + constant_ref[:][None]).astype(out_ref.dtype), mask=rows)

    out = _product(
        epilogue,
        hidden.reshape(b, h * w, -1),
        kernels.astype(x.dtype),
        (constant, pl.BlockSpec((columns,), lambda b, i, j: (j,))),
        (x.reshape(b, h * w, channels), _tile(columns)),
        (jax.ShapeDtypeStruct((b, h * w, channels), x.dtype), _tile(columns)),
        interpret=interpret,
    )[0]
    return out.reshape(x.shape)


def _columns(features: int) -> int:
    return math.gcd(features, COLUMNS)


def _tile(columns: int) -> pl.BlockSpec:
    """Of a map of pixels and channels."""
    return pl.BlockSpec((None, ROWS, columns), lambda b, i, j: (b, i, j))


def _product(
    epilogue: Callable[..., None],
    x: Float[Array, "b n c"],
    kernel: Float[Array, "#b c f"],
    *rest: tuple[Any, pl.BlockSpec],
    interpret: bool,
) -> Sequence[Array]:
    """`x @ kernel` in float32, a tile at a time, each handed to `epilogue` with its valid rows and `rest`.

    Args:
        epilogue: takes the tile, which of its rows are in `x` (rows, 1), and references to `rest`.
        x: a matrix of each sample.
        kernel: one for each sample, or one for all.
        rest: (array, its tiles) of what the epilogue reads, then (shape, its tiles) of what it writes.
        interpret: run it without a GPU.
    """
    b, n, depth = x.shape
    features = kernel.shape[2]
    own = int(kernel.shape[0] > 1)
    given = [pair for pair in rest if not isinstance(pair[0], jax.ShapeDtypeStruct)]
    made = [pair for pair in rest if isinstance(pair[0], jax.ShapeDtypeStruct)]

    def program(x_ref: Any, kernel_ref: Any, *refs: Any) -> None:
        rows = (pl.program_id(1) * ROWS + jnp.arange(ROWS) < n)[:, None]

        def part(k: Any, total: Array) -> Array:
            at = pl.ds(k * DEPTH, DEPTH)
            left = triton.load(x_ref.at[:, at], mask=rows, other=0)
            return total + triton.dot(left, kernel_ref[at, :], precision=precision)

        start = jnp.zeros((ROWS, _columns(features)), jnp.float32)
        epilogue(jax.lax.fori_loop(0, depth // DEPTH, part, start), rows, *refs)

    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return pl.pallas_call(
        program,
        out_shape=[shape for shape, _ in made],
        grid=(b, pl.cdiv(n, ROWS), features // _columns(features)),
        in_specs=[
            pl.BlockSpec((None, ROWS, depth), lambda b, i, j: (b, i, 0)),
            pl.BlockSpec((None, depth, _columns(features)), lambda b, i, j: (own * b, 0, j)),
            *(tiles for _, tiles in given),
        ],
        out_specs=[tiles for _, tiles in made],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="product_with_epilogue",
    )(x, kernel, *(array for array, _ in given))
