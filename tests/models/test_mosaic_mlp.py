"""The channel MLP's kernels for Hopper GPUs, interpreted on CPUs, against the plain formula and float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode

from tests.models.both_products import in_float64, inputs, outputs
from ultrapixel_jax.models import blocks, mosaic_mlp, plain_mlp
from ultrapixel_jax.models.blocks import ResBlock
from ultrapixel_jax.target import traced_for

# Two tiles of rows a sample, four of hidden columns, and more steps of a sum than lie in shared memory.
TILES = mosaic_mlp.Tiles(rows=64, columns=64, depth=32, steps=2, part=32, band=2)
SIDE = (8, 16)
EXPAND = functools.partial(mosaic_mlp.gelu_of_product, tiles=TILES)
CONTRACT = functools.partial(mosaic_mlp.product_onto, tiles=TILES)


def test_both_products_in_float32():
    of = inputs(64, jnp.float32, SIDE)
    with force_gpu_interpret_mode():
        hidden, squares, out = outputs(of, EXPAND, CONTRACT)
    exact = in_float64(of)
    np.testing.assert_allclose(hidden, exact[0], atol=1e-5)
    np.testing.assert_allclose(squares, np.square(exact[0]).sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out, exact[1], atol=1e-5)


def test_both_products_in_bfloat16_are_no_further_from_float64():
    of = inputs(64, jnp.bfloat16, SIDE)
    exact = in_float64(of)
    plain = outputs(of, plain_mlp.plain_gelu_of_product, plain_mlp.plain_product_onto)
    with force_gpu_interpret_mode():
        own = outputs(of, EXPAND, CONTRACT)
    for n in (0, 1):
        error, of_plain = (float(np.abs(found[2 * n] - exact[n]).mean()) for found in (own, plain))
        assert 0 < error <= 1.01 * of_plain
    np.testing.assert_allclose(own[1], np.square(own[0]).sum((1, 2)), rtol=1e-5)  # of what is written


def test_a_res_block_with_them_and_its_gradient(monkeypatch: pytest.MonkeyPatch):
    x = inputs(64, jnp.float32, (8, 8))["x"]
    block: Any = ResBlock(64)
    variables = jax.tree.map(lambda v: v + 0.1 if v.ndim == 1 else v, block.init(jax.random.key(1), x))

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.square(block.apply(variables, x)).sum()

    expected = block.apply(variables, x), jax.grad(loss, (0, 1))(variables, x)
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return EXPAND(*args)

    monkeypatch.setattr(blocks, "mlp_kernels", lambda x, channels: "mosaic")
    monkeypatch.setattr(mosaic_mlp, "gelu_of_product", counted)
    monkeypatch.setattr(mosaic_mlp, "product_onto", CONTRACT)
    with force_gpu_interpret_mode():
        found = block.apply(variables, x)
    # No kernel runs for a gradient, which would need the interpreter here.
    gradient = jax.grad(loss, (0, 1))(variables, x)
    assert len(calls) == 2
    np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
    ("asked", "channels", "side", "dtype", "kernels"),
    [
        ("mosaic", 2048, (96, 96), jnp.bfloat16, 2),
        ("mosaic", 320, (512, 512), jnp.bfloat16, 2),
        ("", 2048, (96, 96), jnp.bfloat16, 0),
        ("mosaic", 2048, (96, 96), jnp.float32, 0),
        ("mosaic", 2048, (24, 24), jnp.bfloat16, 0),  # fewer pixels than channels
        ("mosaic", 2048, (95, 97), jnp.bfloat16, 0),  # no whole number of tiles
        ("mosaic", 96, (64, 64), jnp.bfloat16, 0),
    ],
)
def test_where_a_gpu_gets_them(
    asked: str, channels: int, side: tuple[int, int], dtype: Any, kernels: int, monkeypatch: Any
):
    """On request, lowered at full size for a GPU that is not there."""
    monkeypatch.setenv("ULTRAPIXEL_JAX_MLP", asked)
    block = ResBlock(channels, param_dtype=dtype)
    x = jax.ShapeDtypeStruct((2, *side, channels), dtype)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    with traced_for("cuda"):
        text = jax.jit(block.apply).trace(variables, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu_v2") == kernels
