"""Convolutions: depthwise, full and transposed, with gradients that are fast on CPUs too."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax.models.layers import Dtype, dot, dot_of_rows, parameter, per_channel
from ultrapixel_jax.sharding import by_rows, divides_rows_and_kernels, rows_mesh


class DepthwiseConv(nn.Module):
    """Depthwise 3×3 convolution as nine shifted multiply-adds.

    XLA's grouped convolution is 16 to 360 times slower than that on CPUs. Accumulates in float32.
    `padding` is "zero" or "edge" (replicate).
    """

    padding: str = "zero"
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolve every channel with its own kernel; at stride 1 the size stays."""
        channels, k = x.shape[-1], self.size
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=())
        kernel = parameter(self, "kernel", init, (k, k, channels), self.param_dtype).astype(jnp.float32)
        bias = None
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (channels,), self.param_dtype)
        return depthwise(x, kernel, bias, self.padding, self.stride)


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c"],
    bias: Float[Array, " c"] | None,
    padding: str = "zero",
    stride: int = 1,
) -> Float[Array, "b h2 w2 c"]:
    """Depthwise convolution of `x`, padded by half the kernel, accumulated in float32.

    Output side: ceil(input / stride). Only the outputs that a stride keeps are computed.
    """
    reach, kernel = kernel.shape[0] // 2, kernel.astype(jnp.float32)
    _, height, width, _ = x.shape
    mesh = rows_mesh(height)
    if stride == 1 and mesh is not None and height // mesh.shape["rows"] >= reach:
        of_rows = functools.partial(_depthwise_of_rows, padding=padding)
        total = by_rows(of_rows, mesh, takes=("rows", "whole"))(x, kernel)
    else:
        padded = _pad(x, reach, reach, padding)
        sides = -(-height // stride), -(-width // stride)
        total = _depthwise(padded, kernel) if stride == 1 else _taps(padded, kernel, sides, stride)
    if bias is not None:
        total = total + per_channel(bias, 4)
    return total.astype(x.dtype)


def _depthwise_of_rows(x: Array, kernel: Array, padding: str) -> Array:
    """The same on one device's rows, at stride 1: a single exchange of border rows with its neighbours.

    The compiler alone would exchange them for each tap.
    """
    reach = kernel.shape[0] // 2
    count, index = jax.lax.axis_size("rows"), jax.lax.axis_index("rows")
    above = jax.lax.ppermute(x[:, -reach:], "rows", [(i, i + 1) for i in range(count - 1)])
    below = jax.lax.ppermute(x[:, :reach], "rows", [(i + 1, i) for i in range(count - 1)])
    if padding == "edge":  # the outermost devices have received zeros
        above = jnp.where(index == 0, x[:, :1], above)
        below = jnp.where(index == count - 1, x[:, -1:], below)
    return _depthwise(_pad(jnp.concatenate([above, x, below], axis=1), 0, reach, padding), kernel)


def _pad(x: Array, rows: int, columns: int, padding: str) -> Array:
    """`x` with `rows` above and below and `columns` on both sides, of zeros or of its edges."""
    edge = padding == "edge"
    sides = [(0, 0), (rows, rows), (columns, columns), (0, 0)]
    padded = jnp.pad(x, sides, mode="edge" if edge else "constant")
    # Else every tap is fused with a padding of its own, slower by ten times on CPUs.
    return jax.lax.optimization_barrier(padded) if edge else padded


def _taps(padded: Array, kernel: Array, size: tuple[Any, Any], stride: int = 1) -> Array:
    """Sum over the kernel's taps of shifted maps times their weights, in float32.

    `size` is that of the output; its sides may be symbols (`jax.export`).
    """
    b, _, _, c = padded.shape
    h, w = size
    total = jnp.zeros((b, h, w, c), jnp.float32)
    for dy, dx in np.ndindex(kernel.shape[:2]):
        last = (b, dy + (h - 1) * stride + 1, dx + (w - 1) * stride + 1, c)
        shifted = jax.lax.slice(padded, (0, dy, dx, 0), last, (1, stride, stride, 1))
        total = total + shifted.astype(jnp.float32) * per_channel(kernel[dy, dx], 4)
    return total


@jax.custom_vjp
def _depthwise(padded: Array, kernel: Array) -> Array:
    """Depthwise convolution without padding, in float32; its gradient in `x` is one too."""
    k = kernel.shape[0]
    return _taps(padded, kernel, (padded.shape[1] - k + 1, padded.shape[2] - k + 1))


def _depthwise_forward(padded: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(padded, kernel), (padded, kernel)


def _depthwise_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    padded, kernel = saved
    border = [(0, 0), *[(kernel.shape[0] - 1,) * 2] * 2, (0, 0)]
    change = _taps(jnp.pad(cotangent, border), kernel[::-1, ::-1], (padded.shape[1], padded.shape[2]))
    in_kernel = jax.lax.platform_dependent(
        padded, cotangent, cpu=_kernel_gradient_by_products, default=_kernel_gradient
    )
    return change.astype(padded.dtype), in_kernel.reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _kernel_gradient(padded: Array, cotangent: Array) -> Array:
    """Gradient in the kernel, (taps, channels)."""
    _, h, w, _ = cotangent.shape
    places = np.ndindex(padded.shape[1] - h + 1, padded.shape[2] - w + 1)
    return jnp.stack(
        [(padded[:, y : y + h, x : x + w].astype(jnp.float32) * cotangent).sum((0, 1, 2)) for y, x in places]
    )


def _kernel_gradient_by_products(padded: Array, cotangent: Array) -> Array:
    """The same, summed by products with ones: XLA's sums over leading axes are slow on CPUs."""
    _, h, w, c = cotangent.shape
    ones = jnp.ones((1, h * w), jnp.float32)

    def one(inputs: tuple[Array, Array]) -> Array:
        padded, cotangent = inputs
        places = np.ndindex(padded.shape[0] - h + 1, padded.shape[1] - w + 1)
        return jnp.concatenate(
            [
                jnp.matmul(
                    ones, (padded[y : y + h, x : x + w].astype(jnp.float32) * cotangent).reshape(h * w, c)
                )
                for y, x in places
            ]
        )

    return jax.lax.map(one, (padded, cotangent)).sum(0)


class Conv(nn.Module):
    """A full convolution (kh, kw, in, out), for the few that are neither 1×1 nor depthwise."""

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    use_bias: bool = True
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """Convolve with `padding` zeros on every side."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.xavier_uniform(), shape, self.param_dtype)
        convolve = _by_products if divides_rows_and_kernels() else _by_convolution
        y = convolve(x, kernel.astype(x.dtype), self.stride, self.padding)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y = y + per_channel(bias, y.ndim)
        return y.astype(x.dtype)


def _by_convolution(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _by_products(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The same, tap by tap.

    Where rows of the map and channels of the kernel are both divided, XLA's partitioner (jax 0.10) gives
    convolutions wrong values, and gradients that are a whole number of times too large.
    """
    size = kernel.shape[0]
    x = jnp.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    h, w = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    return sum(
        dot(x[:, dy : dy + h : stride, dx : dx + w : stride], kernel[dy, dx], 3, 0)
        for dy, dx in np.ndindex(size, size)
    )  # pyright: ignore[reportReturnType]


class ConvTransposed(nn.Module):
    """torch's ConvTranspose2d: every input pixel paints `size`² outputs, `stride` apart.

    The kernel is (kh, kw, in, out) with torch's order of taps, so the forward pass flips it.
    """

    features: int
    size: int = 2
    stride: int = 2
    padding: int = 0
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """Output side: (input − 1)·stride − 2·padding + size."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.xavier_uniform(), shape, self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        y: Any = _conv_transposed(x, kernel.astype(x.dtype), self.stride, self.padding)
        return (y + per_channel(bias, 4)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_transposed(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """In float32. Its gradient is a sum of products, where JAX's takes CPUs nine times as long."""
    border = kernel.shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), [(border, border)] * 2, lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _conv_transposed_forward(
    x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
    return _conv_transposed(x, kernel, stride, padding), (x, kernel)


def _conv_transposed_backward(
    stride: int, padding: int, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    b, h, w, _ = x.shape
    k = kernel.shape[0]
    cotangent = jnp.pad(cotangent.astype(x.dtype), [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    in_x, in_kernel = jnp.zeros(x.shape, jnp.float32), []
    for dy, dx in np.ndindex(k, k):
        last = (b, dy + (h - 1) * stride + 1, dx + (w - 1) * stride + 1, cotangent.shape[3])
        painted = jax.lax.slice(cotangent, (0, dy, dx, 0), last, (1, stride, stride, 1))
        in_x = in_x + dot(painted, kernel[dy, dx], 3, 1)
        in_kernel.append(dot_of_rows(x, painted))
    return in_x.astype(x.dtype), jnp.stack(in_kernel).reshape(kernel.shape).astype(kernel.dtype)


_conv_transposed.defvjp(_conv_transposed_forward, _conv_transposed_backward)
