"""Convolutions against torch: values, and gradients in every input."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from torch.nn import functional

from tests.models.gradients import check, normal, with_gradients, with_torch_gradients
from tests.recordings import relative_error
from ultrapixel_jax.models import convolutions
from ultrapixel_jax.sharding import constrain, make_mesh, parameter_sharding


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

    found = with_gradients(lambda *args: convolutions.depthwise(*args, padding, stride), x, kernel, bias)
    check(found, with_torch_gradients(reference, x, kernel, bias))


def test_both_kernel_gradients_of_the_depthwise_convolution():
    """One is for CPUs, the other for the rest; both run here."""
    padded, cotangent = map(jnp.asarray, (normal(3, 8, 7, 5), normal(3, 6, 5, 5, seed=1)))
    by_sums = convolutions._kernel_gradient(padded, cotangent)
    by_products = convolutions._kernel_gradient_by_products(padded, cotangent)
    assert relative_error(by_products.reshape(by_sums.shape), by_sums) < 1e-5


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 1, 1)])
def test_transposed_convolution(size, stride, padding):
    x, kernel = normal(2, 5, 4, 6), normal(size, size, 6, 3, seed=1)

    def reference(x, kernel):
        y = functional.conv_transpose2d(
            x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), stride=stride, padding=padding
        )
        return y.permute(0, 2, 3, 1)

    found = with_gradients(lambda *args: convolutions._conv_transposed(*args, stride, padding), x, kernel)
    check(found, with_torch_gradients(reference, x, kernel))


@pytest.mark.parametrize("padding", ["zero", "edge"])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_on_divided_rows(padding, k):
    inputs = normal(2, 8, 6, 5), normal(k, k, 5, seed=1), normal(5, seed=2)

    def run():
        return with_gradients(lambda *args: convolutions.depthwise(*args, padding), *inputs)

    expected = run()
    with jax.set_mesh(make_mesh({"data": 2, "rows": 4})):
        check(run(), expected)
    with jax.set_mesh(make_mesh({"rows": 8})):  # one row each: too few for a kernel of five
        check(run(), expected)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("sizes", [{"rows": 2, "tensor": 2}, {"fsdp": 2, "rows": 2, "tensor": 2}], ids=str)
def test_full_convolution_where_rows_and_kernels_are_divided(size, stride, padding, sizes):
    """XLA's partitioner gives both values and gradients wrong there, so that taps are products."""
    x, kernel = normal(2, 8, 8, 4), normal(size, size, 4, 6, seed=1)

    def reference(x, kernel):
        y = functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), None, stride, padding)
        return y.permute(0, 2, 3, 1)

    conv = convolutions.Conv(6, size=size, stride=stride, padding=padding, use_bias=False)
    devices = jax.devices()[: math.prod(sizes.values())]
    mesh = make_mesh(sizes, devices)

    def divided(x, kernel):
        x = constrain(jnp.asarray(x), "batch", "height", "width", "channel")
        kernel = jax.lax.with_sharding_constraint(
            jnp.asarray(kernel), parameter_sharding("params/conv/kernel", kernel.shape, mesh)
        )
        return constrain(conv.apply({"params": {"kernel": kernel}}, x), "batch", "height", "width", "channel")

    with jax.set_mesh(mesh):
        found = with_gradients(jax.jit(divided), x, kernel)
    check(found, with_torch_gradients(reference, x, kernel))
