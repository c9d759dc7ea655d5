"""The layers with gradients of their own against torch: values, and gradients in every input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.recordings import relative_error
from ultrapixel_jax.compilation.options import compiler_options
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import layers
from ultrapixel_jax.models.attention import attention
from ultrapixel_jax.sharding import make_mesh


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(function, *inputs):
    """Value, and gradients in all inputs of a sum in which every output counts differently."""

    def loss(*args):
        out = function(*args)
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(loss, tuple(range(len(inputs))), has_aux=True))(*map(jnp.asarray, inputs))
    return [out, *grads]


def with_torch_gradients(function, *inputs):
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    out = function(*tensors)
    torch.sin(out).sum().backward()
    return [x.numpy() for x in (out.detach(), *(t.grad for t in tensors))]


def check(found, expected, tolerance=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize(
    ("padding", "stride", "k"),
    [("zero", 1, 3), ("edge", 1, 3), ("zero", 2, 3), ("zero", 1, 5), ("zero", 2, 5)],
)
def test_depthwise(padding, stride, k):
    x, kernel, bias = normal(2, 7, 6, 5), normal(k, k, 5, seed=1), normal(5, seed=2)

    def reference(x, kernel, bias):
        x = functional.pad(
            x.permute(0, 3, 1, 2), [k // 2] * 4, "replicate" if padding == "edge" else "constant"
        )
        y = functional.conv2d(x, kernel.permute(2, 0, 1)[:, None], bias, stride, groups=5)
        return y.permute(0, 2, 3, 1)

    found = with_gradients(lambda *args: layers.depthwise(*args, padding, stride), x, kernel, bias)
    check(found, with_torch_gradients(reference, x, kernel, bias))


def test_both_kernel_gradients_of_the_depthwise_convolution():
    """One is for CPUs, the other for the rest; both run here."""
    padded, cotangent = map(jnp.asarray, (normal(3, 8, 7, 5), normal(3, 6, 5, 5, seed=1)))
    by_sums = layers._kernel_gradient(padded, cotangent)
    by_products = layers._kernel_gradient_by_products(padded, cotangent)
    assert relative_error(by_products.reshape(by_sums.shape), by_sums) < 1e-5


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 1, 1)])
def test_transposed_convolution(size, stride, padding):
    x, kernel = normal(2, 5, 4, 6), normal(size, size, 6, 3, seed=1)

    def reference(x, kernel):
        y = functional.conv_transpose2d(
            x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), stride=stride, padding=padding
        )
        return y.permute(0, 2, 3, 1)

    found = with_gradients(lambda *args: layers._conv_transposed(*args, stride, padding), x, kernel)
    check(found, with_torch_gradients(reference, x, kernel))


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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.01)])
def test_compiler_options_change_nothing_but_the_rounding(dtype, tolerance):
    options = compiler_options(dtype, True)
    assert options is not None
    x, kernel = (jnp.asarray(v, dtype) for v in (normal(300, 200), normal(200, 100, seed=1)))
    lowered = jax.jit(lambda x, kernel: layers.layer_norm(layers.product(x, kernel))).lower(x, kernel)
    special, default = lowered.compile(options), lowered.compile()
    assert special.as_text() != default.as_text()
    assert relative_error(special(x, kernel), default(x, kernel)) < tolerance


@pytest.mark.parametrize("padding", ["zero", "edge"])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_on_divided_rows(padding, k):
    inputs = normal(2, 8, 6, 5), normal(k, k, 5, seed=1), normal(5, seed=2)

    def run():
        return with_gradients(lambda *args: layers.depthwise(*args, padding), *inputs)

    expected = run()
    with jax.set_mesh(make_mesh({"data": 2, "rows": 4})):
        check(run(), expected)
    with jax.set_mesh(make_mesh({"rows": 8})):  # one row each: too few for a kernel of five
        check(run(), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.02)])
def test_attention_on_divided_rows(dtype, tolerance):
    inputs = normal(2, 48, 2, 8), normal(2, 57, 2, 8, seed=1), normal(2, 57, 2, 8, seed=2)
    expected = with_gradients(attention, *inputs)

    def in_dtype(*args):
        return attention(*(jnp.asarray(x, dtype) for x in args)).astype(jnp.float32)

    with jax.set_mesh(make_mesh({"data": 2, "rows": 4})):
        check(with_gradients(in_dtype, *inputs), expected, tolerance)
