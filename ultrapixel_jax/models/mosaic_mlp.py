"""The channel MLP's two products as Pallas kernels for NVIDIA's Hopper GPUs, on Pallas' Mosaic GPU backend.

What `pallas_mlp` is on its Triton backend, which jax 0.12 deprecates: what stands behind a product's sums is
computed before they are written. Off unless asked for (`layers.mlp_kernels`); no GPU has timed it yet.

A program computes a tile of one sample's product with one warpgroup, as `jax.experimental`'s
`hopper_matmul_mgpu` does with several, and two programs share a multiprocessor: while one of them is behind
its sums, where by counts of instructions GELU takes a third of the product's time, the other keeps the matrix
units busy. A program of several warpgroups would also have to share out Mosaic's scratch memory for sums over
rows, of which there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jaxtyping import Array, Float

from ultrapixel_jax.models.layers import MOSAIC_ROWS, PALLAS_TILE
from ultrapixel_jax.models.plain_mlp import (
    gelu_by_erf,
    plain_gelu_of_product,
    plain_product_onto,
    with_factor,
    with_gradient_of,
)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes of what a program has at once."""

    rows: int = MOSAIC_ROWS
    """Pixels; a multiple of 64, as the matrix unit has them."""
    columns: int = 128
    """Channels that come out, at most; multiples of 64, beside which Mosaic GPU finds no layout."""
    depth: int = PALLAS_TILE
    """Channels that are summed in one step."""
    steps: int = 3
    """Steps whose operands are in shared memory, loading or loaded: with them two programs just fit."""
    part: int = 32
    """Columns at a time behind the sums."""
    band: int = 16
    """Tiles of rows that are computed side by side, so that the cache holds what they share."""


TILES = Tiles()


@with_gradient_of(plain_gelu_of_product)
def gelu_of_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "c f"], bias: Float[Array, " f"], tiles: Tiles = TILES
) -> tuple[Float[Array, "b h w f"], Float[Array, "b f"]]:
    """`gelu(x @ kernel + bias)` in the dtype of `x`, and the sums of its squares over each map in float32.

    The product is not rounded in between. Pixels and channels divide into tiles.
    """
    b, h, w, c = x.shape
    f = kernel.shape[1]
    hidden, squares = _call(
        _first, (x.reshape(b, h * w, c), kernel.astype(x.dtype), bias.astype(jnp.float32)), tiles,
        out=jax.ShapeDtypeStruct((b, h * w, f), x.dtype),
        squares=jax.ShapeDtypeStruct((b, h * w // tiles.rows, f), jnp.float32),
    )  # fmt: skip
    return hidden.reshape(b, h, w, f), squares.sum(1)


@with_gradient_of(plain_product_onto)
def product_onto(
    x: Float[Array, "b h w c"],
    hidden: Float[Array, "b h w f"],
    factor: Float[Array, "b f"],
    shift: Float[Array, " f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, " c"],
    tiles: Tiles = TILES,
) -> Float[Array, "b h w c"]:
    """`x + (hidden·factor + shift) @ kernel + bias`, rounded once.

    The factor enters a kernel for each sample. Pixels and channels divide into tiles.
    """
    b, h, w, c = x.shape
    kernels, constant = with_factor(kernel, factor, shift, bias)
    given = (hidden.reshape(b, h * w, -1), kernels.astype(x.dtype), constant, x.reshape(b, h * w, c))
    return _call(_second, given, tiles, out=jax.ShapeDtypeStruct((b, h * w, c), x.dtype))[0].reshape(x.shape)


def _first(tiles: Tiles, refs: Any, held: Any) -> None:
    """One tile of the hidden units, and the sums of its columns' squares: a row of `squares`."""
    x, kernel, bias, hidden, squares = refs
    sample, row, column, rows, columns = _tile(hidden, tiles)
    gpu.copy_gmem_to_smem(bias.at[columns], held["vector"], held["of_vector"])
    sums = _sums(x.at[sample, rows], kernel.at[:, columns], tiles)
    gpu.barrier_wait(held["of_vector"])
    for start in range(0, sums.shape[1], tiles.part):
        part = slice(start, start + tiles.part)
        y = sums[:, part] + _in_rows(held["vector"][part], tiles.rows)
        y = gelu_by_erf(y).astype(hidden.dtype)
        gpu.wait_smem_to_gmem(0, wait_read_only=True)  # what the part before has left there
        _write(y, held["out"], hidden.at[sample, rows], column + start, tiles)
        y32 = y.astype(jnp.float32)  # GRN sums what it is to scale: rounded values
        held["squares"][part] = (y32 * y32).sum(0)
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(held["squares"], squares.at[sample, row, columns])
    gpu.wait_smem_to_gmem(0)


def _second(tiles: Tiles, refs: Any, held: Any) -> None:
    """One tile of the block's result."""
    hidden, kernels, constant, x, out = refs
    sample, _, column, rows, columns = _tile(out, tiles)

    def fetch(start: int) -> None:
        """What is added to the columns from `start`, to where the result will lie."""
        source = x.at[sample, rows, pl.ds(column + start, tiles.part)]
        gpu.copy_gmem_to_smem(source, held["out"], held["of_x"])

    gpu.copy_gmem_to_smem(constant.at[columns], held["vector"], held["of_vector"])
    fetch(0)
    sums = _sums(hidden.at[sample, rows], kernels.at[sample, :, columns], tiles)
    gpu.barrier_wait(held["of_vector"])
    for start in range(0, sums.shape[1], tiles.part):
        part = slice(start, start + tiles.part)
        gpu.barrier_wait(held["of_x"])
        y = sums[:, part] + _in_rows(held["vector"][part], tiles.rows)
        y = (y + held["out"][...].astype(jnp.float32)).astype(out.dtype)
        _write(y, held["out"], out.at[sample, rows], column + start, tiles)
        gpu.wait_smem_to_gmem(0, wait_read_only=True)
        if start + tiles.part < sums.shape[1]:
            fetch(start + tiles.part)
    gpu.wait_smem_to_gmem(0)


def _call(
    program: Callable[..., None],
    given: tuple[Array, ...],
    tiles: Tiles,
    *,
    out: jax.ShapeDtypeStruct,
    squares: jax.ShapeDtypeStruct | None = None,
) -> Any:
    """Run `program` for each tile of `out`; gives that and, where there is its shape, `squares`."""
    b, pixels, features = out.shape
    width = _width(features, tiles)
    held = {
        "vector": gpu.SMEM((width,), jnp.float32),
        "of_vector": gpu.Barrier(),
        "out": gpu.SMEM((tiles.rows, tiles.part), out.dtype, transforms=_layout(tiles.part, out.dtype)),
        **({"of_x": gpu.Barrier()} if squares is None else {"squares": gpu.SMEM((width,), jnp.float32)}),
    }

    def product_with_epilogue(*refs: Any) -> None:  # profiles and programs' texts have its name
        program(tiles, refs[:-1], refs[-1])

    return gpu.kernel(
        product_with_epilogue, out_type=[out] if squares is None else [out, squares], scratch_types=[held],
        grid=(b, pixels // tiles.rows * (features // width)), grid_names=("sample", "tile"),
        compiler_params=gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup),
    )(*given)  # fmt: skip


def _width(features: int, tiles: Tiles) -> int:
    """Columns of a tile where `features` come out: as many as divide them."""
    return math.gcd(features, tiles.columns)


def _tile(out: Any, tiles: Tiles) -> tuple[Any, ...]:
    """(sample, number of the tile's rows, its first column, its rows, its columns) of this program."""
    _, pixels, features = out.shape
    width = _width(features, tiles)
    across = pixels // tiles.rows, features // width
    row, number = gpu.planar_snake(jax.lax.axis_index("tile"), across, 0, min(tiles.band, across[0]))
    column = number * width
    rows, columns = pl.ds(row * tiles.rows, tiles.rows), pl.ds(column, width)
    return jax.lax.axis_index("sample"), row, column, rows, columns


def _layout(columns: int, dtype: Any) -> tuple[Any, ...]:
    """How a tile lies in shared memory, as the matrix unit and the copies want it."""
    size = jnp.dtype(dtype).itemsize
    swizzle = gpu.find_swizzle(8 * size * columns)
    return gpu.TilingTransform((8, swizzle // size)), gpu.SwizzleTransform(swizzle)


def _sums(x: Any, kernel: Any, tiles: Tiles) -> Array:
    """`x @ kernel` of a tile's rows and columns, in float32 and in registers."""
    (rows, depth), width = x.shape, kernel.shape[1]

    def block(shape: tuple[int, int], place: Callable[[Any], tuple[Any, Any]]) -> Any:
        layout = _layout(shape[1], x.dtype)
        # Released a step late: the product that reads it is still running when the next one is asked for.
        return gpu.BlockSpec(shape, place, transforms=layout, memory_space=gpu.SMEM, delay_release=1)

    def step(_: Any, x: Any, kernel: Any, sums: Any) -> Any:
        gpu.wgmma(sums, x, kernel)
        gpu.wgmma_wait(1)

    def run(sums: Any) -> Array:
        specs = [block((rows, tiles.depth), lambda k: (0, k)), block((tiles.depth, width), lambda k: (k, 0))]
        gpu.emit_pipeline(
            functools.partial(step, sums=sums), grid=(depth // tiles.depth,), in_specs=specs,
            max_concurrent_steps=tiles.steps,
        )(x, kernel)  # fmt: skip
        return sums[...]

    return pl.run_scoped(run, gpu.ACC((rows, width), jnp.float32))


def _in_rows(vector: Array, rows: int) -> Array:
    return jax.lax.broadcast_in_dim(vector, (rows, len(vector)), (1,))


def _write(y: Array, held: Any, out: Any, column: Any, tiles: Tiles) -> None:
    """Columns from `column` of the tile, by way of shared memory."""
    held[...] = y
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(held, out.at[:, pl.ds(column, tiles.part)])
