"""The layers that every network is made of; all of them channels last.

Axis letters, here and in every module: b batch, h w height and width of a map, H W of the HR map,
n tokens, c channels, k heads, d width of a head.

Weights may be float32 or bfloat16. Products accumulate in float32, and norms, statistics and
embeddings are computed in float32, whatever the dtype of the weights.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.int8 import Int8
from ultrapixel_jax.sharding import one_device
from ultrapixel_jax.target import platform

Dtype = Any
NARROW = 64
"""Columns up to which CPUs transpose a float32 matrix by a product."""
PALLAS_TILE = 64
"""What divides the widths of maps that `pallas_mlp` and `mosaic_mlp` take."""
MOSAIC_ROWS = 128
"""What divides the pixels of maps that `mosaic_mlp` takes."""
SLICES = 8
"""Parts of a map that CPUs add up at once; of more, or shorter ones, XLA makes a single sum again."""
MANY_PIXELS = 512
"""Pixels of a map from which on it is added up so."""


def parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], dtype: Dtype
) -> Any:
    """`module.param(name, init, shape, dtype)`, sooner where there is a value.

    Flax traces the initialiser to check a value's shape: 0.16 of the 0.56 s of tracing the demo's stage C.

    Raises:
        UserError: the value is missing or has another shape.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if value.shape == shape:
            return value
        problem = f"has shape {value.shape}, expected {shape}"
    elif module.is_initializing():
        return module.param(name, init, shape, dtype)
    else:
        problem = "is missing"
    path = "/".join(("params", *module.path, name))
    raise UserError(f"the weights do not fit the network: {path} {problem}; convert or train them again")


class Linear(nn.Module):
    """`x @ kernel + bias` over the last axis: linear layers and 1×1 convolutions.

    The product accumulates in float32 (on CPUs also 2.5 times faster in bfloat16 than without) and is
    rounded once, to the dtype of `x`; on GPUs before the bias is added, too. Where the variables hold `down`
    and `up` for the layer in a collection `lora`, their low-rank change is added before that
    (`models.lora.branches`).
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def weights(self, x: Float[Array, "*b c"]) -> tuple[Float[Array, "c f"], Float[Array, " f"] | None]:
        """(kernel, bias) that `x` meets, for who computes the product elsewhere."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, (self.features,), self.param_dtype)
        if isinstance(kernel, Int8):
            kernel = kernel.kernel_for(x)
        return kernel, bias

    def __call__(
        self, x: Float[Array, "*b c"], affine: tuple[Float[Array, "b c"], Float[Array, " c"]] | None = None
    ) -> Float[Array, "*b f"]:
        """Map the last axis to `features`, of `x·factor + shift` where `affine` has these two."""
        kernel, bias = self.weights(x)
        change = None
        if self.has_variable("lora", "down"):
            change = (self.get_variable("lora", "down"), self.get_variable("lora", "up"))
        if affine is not None and change is None and enters_kernels(x, self.features):
            return apply_after_affine(x, *affine, kernel, bias)
        return apply_linear(x if affine is None else scale_channels(x, *affine), kernel, bias, change)


def mirrored(init: nn.initializers.Initializer, axis: int) -> nn.initializers.Initializer:
    """`init` with the second half along `axis` of opposite sign: looks-linear initialisation.

    Of an MLP whose first kernel is so along its outputs and the second along its inputs, pairs of hidden
    units add up to gelu(x) - gelu(-x) = x: it starts as a linear map, which passes on noise unharmed
    (Balduzzi et al., "The shattered gradients problem", 2017).
    """

    def make(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        half = jnp.split(init(key, shape, dtype), 2, axis)[0]
        return jnp.concatenate([half, -half], axis)

    return make


def apply_linear(
    x: Float[Array, "*b c"],
    kernel: Float[Array, "c f"],
    bias: Float[Array, " f"] | None,
    change: tuple[Float[Array, "r c"], Float[Array, "f r"]] | None = None,
) -> Float[Array, "*b f"]:
    """`x @ kernel + bias`, accumulated in float32, in the dtype of `x`; `change` is that of `low_rank`."""
    y = product(x, kernel.astype(x.dtype), leaves_as(x.dtype))
    if change is not None:
        y = y + low_rank(x, *change)
    if bias is not None:
        y = y + per_channel(bias, y.ndim)
    return y.astype(x.dtype)


def low_rank(
    x: Float[Array, "*b c"], down: Float[Array, "r c"], up: Float[Array, "f r"]
) -> Float[Array, "*b f"]:
    """`(x @ downᵀ) @ upᵀ / r` in float32: what adding `(up @ down)ᵀ / r` to a kernel would add.

    In a kernel of bfloat16 that sum would be lost to rounding, and its gradient is as large as the kernel.
    """
    inner = product(x, down.T.astype(x.dtype)).astype(x.dtype)
    return product(inner, up.T.astype(x.dtype)) * (1 / down.shape[0])


def leaves_as(dtype: Dtype) -> Dtype:
    """The dtype in which a product of `dtype` is written: on GPUs its own, rounded once behind the sums.

    There float32 would be written to memory and read again, twice the bytes, before a bias is added.
    """
    return dtype if platform() == "gpu" else jnp.float32


def product(
    x: Float[Array, "*b c"], kernel: Float[Array, "c f"], leaves: Dtype | None = None
) -> Float[Array, "*b f"]:
    """`x @ kernel` of two arrays of one dtype, accumulated in float32, and returned in it or in `leaves`.

    Its gradient is a pair of such products: the cotangent is rounded to the dtype of `x` first. JAX's own
    gradient would multiply float32 by bfloat16, at the rate of float32: a quarter of the speed on CPUs.
    """
    y: Any = _product(x, kernel, leaves or jnp.float32)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, leaves: Dtype) -> Array:
    return dot(x, kernel, x.ndim - 1, 0, leaves)


def _product_forward(x: Array, kernel: Array, leaves: Dtype) -> tuple[Array, tuple[Array, Array]]:
    return dot(x, kernel, x.ndim - 1, 0, leaves), (x, kernel)


def _product_backward(leaves: Dtype, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    cotangent = cotangent.astype(x.dtype)
    return (
        dot(cotangent, kernel, cotangent.ndim - 1, 1, leaves).astype(x.dtype),
        dot_of_rows(x, cotangent).astype(kernel.dtype),
    )


_product.defvjp(_product_forward, _product_backward)


def dot(
    a: Array,
    b: Array,
    axes_a: int | tuple[int, ...],
    axes_b: int | tuple[int, ...],
    leaves: Dtype | None = None,
) -> Array:
    """Product of `a` and `b`, summed over the given axes in float32, and returned in it or in `leaves`."""
    over_a = (axes_a,) if isinstance(axes_a, int) else axes_a
    over_b = (axes_b,) if isinstance(axes_b, int) else axes_b
    return jax.lax.dot_general(
        a, b, ((over_a, over_b), ((), ())), preferred_element_type=leaves or jnp.float32
    )


@jax.custom_vjp
def sum_of_squares(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Of each channel over its map, in float32.

    On CPUs XLA goes through a column number by number, fifteen times as long as it takes to add up slices.
    """
    b, h, w, c = x.shape
    if platform() != "cpu" or not one_device() or not isinstance(h * w, int) or h * w < MANY_PIXELS:
        return jnp.square(x.astype(jnp.float32)).sum((1, 2))
    flat, size = x.reshape(b, h * w, c), h * w // SLICES
    slices = [flat[:, i * size : (i + 1) * size] for i in range(SLICES)]
    sums = functools.reduce(jnp.add, (jnp.square(part.astype(jnp.float32)) for part in slices))
    rest = jnp.square(flat[:, SLICES * size :].astype(jnp.float32))
    return jax.lax.optimization_barrier(sums).sum(1) + rest.sum(1)


sum_of_squares.defvjp(  # that of slices would be put together from as many padded maps
    lambda x: (sum_of_squares(jnp.asarray(x)), x),
    lambda x, cotangent: ((2 * cotangent[:, None, None] * x.astype(jnp.float32)).astype(x.dtype),),
)


def scale_channels(
    x: Float[Array, "b h w c"], factor: Float[Array, "b c"], shift: Float[Array, " c"]
) -> Float[Array, "b h w c"]:
    """`x·factor + shift`, a factor for each sample and channel; in float32 and rounded once."""
    return (x.astype(jnp.float32) * factor[:, None, None] + per_channel(shift, 4)).astype(x.dtype)


def enters_kernels(x: Array, features: int) -> bool:
    """Whether a factor of each channel of `x` moves fewer bytes in a kernel for each sample than in `x`.

    On GPUs, for maps of more pixels than `features`. Elsewhere batched products are slow, or the factor is
    fused with them.
    """
    if platform() != "gpu" or not one_device() or not all(isinstance(side, int) for side in x.shape):
        return False
    return math.prod(x.shape[1:-1]) > features


def mlp_kernels(x: Array, channels: int) -> str:
    """Whose the channel MLP of `x`, with `channels` behind it, is: `pallas`, `mosaic`, or "" for XLA's.

    `pallas_mlp`'s or `mosaic_mlp`'s, as the environment says by `ULTRAPIXEL_JAX_MLP`, where GRN's factor
    enters the second kernel, in bfloat16, at widths that their tiles divide; `mosaic_mlp`'s only on a Hopper
    GPU, and where rows of tiles divide the map.
    """
    asked = os.environ.get("ULTRAPIXEL_JAX_MLP", "")
    if asked not in ("pallas", "mosaic") or x.dtype != jnp.bfloat16 or not enters_kernels(x, channels):
        return ""
    if x.shape[-1] % PALLAS_TILE or channels % PALLAS_TILE:
        return ""
    if asked == "mosaic":
        # A GPU that is not there says nothing of itself.
        kind = getattr(jax.local_devices()[0], "compute_capability", "9.0")
        if math.prod(x.shape[1:-1]) % MOSAIC_ROWS or not kind.startswith("9."):
            return ""
    return asked


@jax.custom_vjp
def apply_after_affine(
    x: Float[Array, "b h w c"],
    factor: Float[Array, "b c"],
    shift: Float[Array, " c"],
    kernel: Float[Array, "c f"],
    bias: Float[Array, " f"] | None,
) -> Float[Array, "b h w f"]:
    """`(x·factor + shift) @ kernel + bias`, where the map is read by the product alone.

    The factor enters a kernel for each sample, and the shift the bias. Where there are gradients it is the
    plain formula: those of such kernels would take as much memory as the kernels of all samples.
    """
    kernel32 = kernel.astype(jnp.float32)
    kernels = (factor[:, :, None] * kernel32[None]).astype(x.dtype)
    axes = (((3,), (1,)), ((0,), (0,)))
    y = jax.lax.dot_general(x, kernels, axes, preferred_element_type=leaves_as(x.dtype))
    constant = (shift.astype(jnp.float32)[:, None] * kernel32).sum(0)
    if bias is not None:
        constant = constant + bias.astype(jnp.float32)
    return (y + per_channel(constant, 4)).astype(x.dtype)


def _plain_after_affine(x: Array, factor: Array, shift: Array, kernel: Array, bias: Array | None) -> Array:
    return apply_linear(scale_channels(x, factor, shift), kernel, bias)


apply_after_affine.defvjp(
    lambda *args: jax.vjp(_plain_after_affine, *args), lambda pull, cotangent: pull(cotangent)
)


def dot_of_rows(x: Float[Array, "*b c"], y: Float[Array, "*b f"]) -> Float[Array, "c f"]:
    """`xᵀ @ y`, summed over all leading axes, in float32."""
    return jax.lax.platform_dependent(x, y, cpu=_dot_of_rows_on_cpus, default=_dot_of_rows)


def _dot_of_rows(x: Array, y: Array) -> Array:
    rows = tuple(range(x.ndim - 1))
    return dot(x, y, rows, rows)


def _dot_of_rows_on_cpus(x: Array, y: Array) -> Array:
    """XLA sums over the rows of both up to seven times slower there than over columns of the first.

    So the narrower one is transposed, by a product with the identity: a mere transpose XLA would merge with
    the product that follows, and be slow again. In float32 that product takes longer than it saves, unless
    it is narrow.
    """
    if x.shape[-1] > y.shape[-1]:
        # Without the barrier XLA would have the product write its result transposed.
        return jax.lax.optimization_barrier(_dot_of_rows_on_cpus(y, x)).T
    if x.dtype != jnp.bfloat16 and x.shape[-1] > NARROW:
        return _dot_of_rows(x, y)
    turned = dot(jnp.eye(x.shape[-1], dtype=x.dtype), x, 1, x.ndim - 1).astype(x.dtype)
    return dot(turned, y, tuple(range(1, y.ndim)), tuple(range(y.ndim - 1)))


def per_channel(vector: Float[Array, " c"], ndim: int) -> Float[Array, "*ones c"]:
    """`vector` in float32 with leading axes of 1, to combine with `ndim` axes channels last.

    Explicit because the tests let implicit rank promotion raise.
    """
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def layer_norm(x: Float[Array, "*b c"], epsilon: float = 1e-6) -> Float[Array, "*b c"]:
    """Normalise over channels without affine parameters; statistics in float32."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with affine parameters `scale` and `bias`; statistics in float32."""

    epsilon: float = 1e-5
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Normalise over the last axis."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        y = layer_norm(x.astype(jnp.float32), self.epsilon)
        return (y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The exact GELU, x·(1 + erf(x/√2))/2 as in torch, in float32 and rounded once.

    `jax.nn.gelu` takes erfc, which costs CPUs several times as much.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


def pixel_unshuffle(x: Float[Array, "b hp wp c"], factor: int) -> Float[Array, "b h w cpp"]:
    """Pack `factor`² pixels into channels, ordered (c, dy, dx) as torch does."""
    if factor == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // factor, w // factor, c * factor**2)


def pixel_shuffle(x: Float[Array, "b h w cpp"], factor: int) -> Float[Array, "b hp wp c"]:
    """Inverse of `pixel_unshuffle`."""
    if factor == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * factor, w * factor, c // factor**2)


class BatchNorm(nn.Module):
    """Batch norm: running statistics in `batch_stats`, updated when `train`; computed in float32.

    `momentum` is the share of the new batch's statistics (torch's convention); the variance that is
    stored is the unbiased one.
    """

    epsilon: float = 1e-5
    affine: bool = True
    momentum: float = 0.1
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], train: bool = False) -> Float[Array, "*b c"]:
        """Normalise by the running statistics, or by the batch's when `train`."""
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x32 = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            use_mean, use_var = x32.mean(axes), x32.var(axes)
            if not self.is_initializing():
                count = math.prod(x.shape[:-1])
                unbiased = use_var * (count / max(count - 1, 1))
                mean.value = (1 - self.momentum) * mean.value + self.momentum * use_mean
                var.value = (1 - self.momentum) * var.value + self.momentum * unbiased
        else:
            use_mean, use_var = mean.value, var.value
        inverse = jax.lax.rsqrt(use_var.astype(jnp.float32) + self.epsilon)
        y = (x32 - per_channel(use_mean, x.ndim)) * per_channel(inverse, x.ndim)
        if self.affine:
            scale = parameter(self, "scale", nn.initializers.ones, (channels,), self.param_dtype)
            bias = parameter(self, "bias", nn.initializers.zeros, (channels,), self.param_dtype)
            y = y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)
        return y.astype(x.dtype)
