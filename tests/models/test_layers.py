"""The layers with gradients of their own against torch: values, and gradients in every input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch.nn import functional

from tests.models.gradients import check, normal, with_gradients, with_torch_gradients
from tests.recordings import relative_error
from ultrapixel_jax.compilation.options import compiler_options
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import layers
from ultrapixel_jax.models.attention import attention
from ultrapixel_jax.sharding import make_mesh


def test_product():
    x, kernel = normal(2, 3, 4, 16), normal(16, 8, seed=1)
    expected = with_torch_gradients(lambda x, kernel: x @ kernel, x, kernel)
    check(with_gradients(layers.product, x, kernel), expected)
    half = [np.asarray(jnp.asarray(v, jnp.bfloat16)) for v in (x, kernel)]
    found = with_gradients(layers.product, *half)
    assert [v.dtype.name for v in found] == ["float32", "bfloat16", "bfloat16"]
    check(found, expected, 0.02)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        (
            {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(2)},
            r"params/kernel has shape \(4, 3\), expected \(4, 2\)",
        ),
        ({"kernel": jnp.zeros((4, 2))}, "params/bias is missing"),
    ],
)
def test_weights_of_another_network_are_refused(params, problem):
    with pytest.raises(UserError, match=problem):
        jax.jit(layers.Linear(2).apply)({"params": params}, jnp.ones((1, 4)))


def test_gelu():
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    check(with_gradients(layers.gelu, x), with_torch_gradients(functional.gelu, x), 1e-6)


def test_layer_norm():
    x = 3 + normal(4, 5, 16)
    expected = with_torch_gradients(lambda x: functional.layer_norm(x, (16,), eps=1e-6), x)
    check(with_gradients(layers.layer_norm, x), expected)


@pytest.mark.parametrize("side", [(5, 7), (23, 29)], ids=["few pixels", "many pixels, eight and three over"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sum_of_squares(side, dtype):
    x = jnp.asarray(normal(2, *side, 6) / np.sqrt(np.prod(side)), dtype)
    expected = with_torch_gradients(lambda x: (x**2).sum((1, 2)), np.array(x, np.float32))
    check(with_gradients(layers.sum_of_squares, x), expected, 1e-6 if dtype == "float32" else 0.005)
    np.testing.assert_allclose(layers.sum_of_squares(x), expected[0], rtol=1e-6)


def test_sum_of_squares_of_a_map_on_many_devices_and_of_unknown_size():
    x = normal(2, 24, 32, 6)
    expected = np.square(x.astype(np.float64)).sum((1, 2))
    with jax.set_mesh(make_mesh({"data": 2, "rows": 4})):
        np.testing.assert_allclose(jax.jit(layers.sum_of_squares)(x), expected, rtol=1e-6)
    shape = jax.export.symbolic_shape("b, h, w, 6")
    exported = jax.export.export(jax.jit(layers.sum_of_squares))(jax.ShapeDtypeStruct(shape, jnp.float32))
    np.testing.assert_allclose(exported.call(x), expected, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.01)])
def test_compiler_options_change_nothing_but_the_rounding(dtype, tolerance):
    options = compiler_options(dtype, wide_maps=True)
    assert options is not None
    x, kernel = (jnp.asarray(v, dtype) for v in (normal(300, 200), normal(200, 100, seed=1)))
    lowered = jax.jit(lambda x, kernel: layers.layer_norm(layers.product(x, kernel))).lower(x, kernel)
    special, default = lowered.compile(options), lowered.compile()
    assert special.as_text() != default.as_text()
    assert relative_error(special(x, kernel), default(x, kernel)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.02)])
def test_attention_on_divided_rows(dtype, tolerance):
    inputs = normal(2, 48, 2, 8), normal(2, 57, 2, 8, seed=1), normal(2, 57, 2, 8, seed=2)
    expected = with_gradients(attention, *inputs)

    def in_dtype(*args):
        return attention(*(jnp.asarray(x, dtype) for x in args)).astype(jnp.float32)

    with jax.set_mesh(make_mesh({"data": 2, "rows": 4})):
        check(with_gradients(in_dtype, *inputs), expected, tolerance)
