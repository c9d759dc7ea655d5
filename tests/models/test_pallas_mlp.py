"""The channel MLP's Pallas kernels, interpreted on the CPU, against the plain formula and float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.models.both_products import in_float64, inputs, outputs
from ultrapixel_jax.models import blocks, pallas_mlp, plain_mlp
from ultrapixel_jax.models.blocks import ResBlock
from ultrapixel_jax.target import traced_for

EXPAND = functools.partial(pallas_mlp.gelu_of_product, interpret=True)
CONTRACT = functools.partial(pallas_mlp.product_onto, interpret=True)


def test_the_error_function():
    x = np.linspace(-6, 6, 100_001, dtype=np.float32)
    expected = scipy.special.erf(x.astype(np.float64))
    assert np.abs(plain_mlp.erf(jnp.asarray(x)) - expected).max() < 4e-7


@pytest.mark.parametrize("channels", [64, 128, 320])  # the last divides into tiles of 64 columns alone
def test_both_products_in_float32(channels: int):
    of = inputs(channels, jnp.float32)  # 143 pixels are no whole number of tiles
    hidden, squares, out = outputs(of, EXPAND, CONTRACT)
    exact = in_float64(of)
    np.testing.assert_allclose(hidden, exact[0], atol=1e-5)
    np.testing.assert_allclose(squares, np.square(exact[0]).sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out, exact[1], atol=1e-5)


def test_both_products_in_bfloat16_are_no_further_from_float64():
    of = inputs(128, jnp.bfloat16)
    exact = in_float64(of)
    plain = outputs(of, plain_mlp.plain_gelu_of_product, plain_mlp.plain_product_onto)
    own = outputs(of, EXPAND, CONTRACT)

    def error(found: tuple[np.ndarray, ...], n: int) -> float:
        return float(np.abs(found[2 * n] - exact[n]).mean())

    for n in (0, 1):
        assert error(own, n) <= 1.01 * error(plain, n)
    np.testing.assert_allclose(own[1], np.square(own[0]).sum((1, 2)), rtol=1e-5)  # of what is written


def test_gradients_are_those_of_the_plain_formula():
    of = inputs(64, jnp.float32)

    def loss(of: dict[str, jax.Array], expand: Any, contract: Any) -> jax.Array:
        hidden, squares = expand(of["x"], of["kernel"], of["bias"])
        factor = of["factor"] + 1e-3 * squares
        out = contract(of["x"], hidden, factor, of["shift"], of["second"], of["last"])
        return jnp.square(out).sum()

    plain = jax.grad(loss)(of, plain_mlp.plain_gelu_of_product, plain_mlp.plain_product_onto)
    own = jax.grad(loss)(of, EXPAND, CONTRACT)
    for name, expected in plain.items():
        np.testing.assert_allclose(own[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("skip", [None, 64])
def test_a_res_block_with_them(skip: int | None, monkeypatch: pytest.MonkeyPatch):
    of = inputs(64, jnp.float32)
    x = of["x"]
    block: Any = ResBlock(64)
    joined = None if skip is None else 0.5 * x[..., :skip]
    variables = block.init(jax.random.key(1), x, joined)
    moved = jax.tree.map(
        lambda v: v + 0.1 * jnp.sin(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape), variables
    )
    expected = block.apply(moved, x, joined)
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return EXPAND(*args)

    monkeypatch.setattr(blocks, "mlp_kernels", lambda x, channels: "pallas")
    monkeypatch.setattr(pallas_mlp, "gelu_of_product", counted)
    monkeypatch.setattr(pallas_mlp, "product_onto", CONTRACT)
    np.testing.assert_allclose(block.apply(moved, x, joined), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("asked", "channels", "side", "dtype", "kernels"),
    [
        ("pallas", 2048, 96, jnp.bfloat16, 2),
        ("xla", 2048, 96, jnp.bfloat16, 0),
        ("pallas", 2048, 96, jnp.float32, 0),
        ("pallas", 2048, 24, jnp.bfloat16, 0),  # fewer pixels than channels
        ("pallas", 320, 512, jnp.bfloat16, 2),
        ("pallas", 100, 512, jnp.bfloat16, 0),
    ],
)
def test_where_a_gpu_gets_them(
    asked: str, channels: int, side: int, dtype: Any, kernels: int, monkeypatch: pytest.MonkeyPatch
):
    """On request, for full-size maps, lowered for a GPU that is not there."""
    monkeypatch.setenv("ULTRAPIXEL_JAX_MLP", asked)
    block = ResBlock(channels, param_dtype=dtype)
    x = jax.ShapeDtypeStruct((2, side, side, channels), dtype)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    with traced_for("cuda"):
        traced = jax.jit(block.apply).trace(variables, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("product_with_epilogue") >= kernels
    assert ("product_with_epilogue" in text) == bool(kernels)
