"""Inception-v3 as FID uses it: the TensorFlow network of 2015, in the port that everybody compares with.

It is torchvision's Inception-v3 with three changes. Average pools of the branches leave the padding out; the
pool of the last block is a maximum; and there are 1008 classes. Batch norms always use their statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax.config import InceptionConfig
from ultrapixel_jax.models.layers import BatchNorm, Dtype, Linear, parameter, product

EPSILON = 1e-3
"""Of every batch norm."""
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""With it, random weights pass on pictures at about their own size through all layers."""

Spec = tuple[str, int, tuple[int, int]]
"""Name, width and kernel of a unit."""
ONE, THREE = (1, 1), (3, 3)


class Kernel(nn.Module):
    """A convolution without bias, with a kernel and a padding of two sides."""

    features: int
    size: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """Convolve."""
        kernel = parameter(self, "kernel", HE, (*self.size, x.shape[-1], self.features), self.param_dtype)
        return jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (self.stride,) * 2, [(p, p) for p in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=jnp.float32,
        ).astype(x.dtype)  # fmt: skip


class Unit(nn.Module):
    """Convolution → batch norm → ReLU."""

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """A 1×1 convolution is a linear layer."""
        dtype = self.param_dtype
        if self.size == (1, 1):
            x = Linear(self.features, use_bias=False, kernel_init=HE, name="conv", param_dtype=dtype)(x)
        else:
            x = Kernel(self.features, self.size, self.stride, self.padding, dtype, name="conv")(x)
        return nn.relu(BatchNorm(EPSILON, name="norm", param_dtype=dtype)(x))


class Classes(nn.Module):
    """The last layer; what is measured leaves its bias out."""

    classes: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        """Logits without the bias."""
        kernel = parameter(self, "kernel", HE, (x.shape[-1], self.classes), self.param_dtype)
        parameter(self, "bias", nn.initializers.zeros, (self.classes,), self.param_dtype)
        return product(x, kernel.astype(x.dtype))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Means of 3×3, at the border of those pixels that are there."""
    border: Any = (ONE, ONE)  # Flax says that it is a name
    height, width = (
        np.minimum(np.arange(n) + 2, n) - np.maximum(np.arange(n) - 1, 0) for n in x.shape[1:3]
    )  # how many there are; counted by the compiler, it takes seconds
    share = (9 / np.outer(height, width)).astype(np.float32)[None, :, :, None]
    return (nn.avg_pool(x, THREE, ONE, border) * share).astype(x.dtype)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maxima of 3×3."""
    border: Any = (ONE, ONE)
    return nn.max_pool(x, THREE, ONE, border)


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maxima of 3×3 at every second place, without padding."""
    return nn.max_pool(x, THREE, (2, 2))


class Block(nn.Module):
    """Branches side by side, each a chain of units."""

    divide: int
    param_dtype: Dtype = jnp.float32

    def chain(self, x: Array, *units: Spec, stride: int = 1) -> Array:
        """Units that keep the map's size; the last may have a stride, and then no padding."""
        for i, (name, features, size) in enumerate(units):
            strides = stride > 1 and i == len(units) - 1
            padding = (0, 0) if strides else (size[0] // 2, size[1] // 2)
            x = Unit(
                features // self.divide, size, stride if strides else 1, padding, self.param_dtype, name=name
            )(x)
        return x


class BlockA(Block):
    """Mixed_5b to 5d."""

    pooled: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Kernels of 1, 5 and twice 3, and the averages."""
        triple = ("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)
        return joined(
            self.chain(x, ("branch1x1", 64, ONE)),
            self.chain(x, ("branch5x5_1", 48, ONE), ("branch5x5_2", 64, (5, 5))),
            self.chain(x, *triple),
            self.chain(average_pool(x), ("branch_pool", self.pooled, ONE)),
        )


class BlockB(Block):
    """Mixed_6a: half the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Kernels of 3 and twice 3, and the maxima."""
        triple = ("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)
        return joined(
            self.chain(x, ("branch3x3", 384, THREE), stride=2), self.chain(x, *triple, stride=2), halved(x)
        )


class BlockC(Block):
    """Mixed_6b to 6e."""

    inner: int = 128

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Kernels of 1, of 7 and of twice 7 in two directions, and the averages."""
        row, column, inner = (1, 7), (7, 1), self.inner
        single = ("branch7x7_1", inner, ONE), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)
        double = (
            ("branch7x7dbl_1", inner, ONE), ("branch7x7dbl_2", inner, column), ("branch7x7dbl_3", inner, row),
            ("branch7x7dbl_4", inner, column), ("branch7x7dbl_5", 192, row),
        )  # fmt: skip
        return joined(
            self.chain(x, ("branch1x1", 192, ONE)),
            self.chain(x, *single),
            self.chain(x, *double),
            self.chain(average_pool(x), ("branch_pool", 192, ONE)),
        )


class BlockD(Block):
    """Mixed_7a: half the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Kernels of 3, of 7 in two directions and 3, and the maxima."""
        seven = (
            ("branch7x7x3_1", 192, ONE), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, THREE),
        )  # fmt: skip
        return joined(
            self.chain(x, ("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE), stride=2),
            self.chain(x, *seven, stride=2),
            halved(x),
        )


class BlockE(Block):
    """Mixed_7b and 7c, which pool differently."""

    pool: Callable[[Array], Array] = average_pool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Kernels of 1, of 3 and of twice 3, the last in two directions side by side, and what is pooled."""
        row, column = (1, 3), (3, 1)
        single = self.chain(x, ("branch3x3_1", 384, ONE))
        double = self.chain(x, ("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE))
        return joined(
            self.chain(x, ("branch1x1", 320, ONE)),
            self.chain(single, ("branch3x3_2a", 384, row)),
            self.chain(single, ("branch3x3_2b", 384, column)),
            self.chain(double, ("branch3x3dbl_3a", 384, row)),
            self.chain(double, ("branch3x3dbl_3b", 384, column)),
            self.chain(self.pool(x), ("branch_pool", 192, ONE)),
        )


def joined(*branches: Array) -> Array:
    """Maps of several branches as one."""
    return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
    """Pictures to what FID compares (the mean of the last map) and to logits without bias."""

    config: InceptionConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b s s 3"]) -> tuple[Float[Array, "b f"], Float[Array, "b k"]]:
        """Pictures of `config.image_size`, scaled to −1…1, to features and logits, both float32."""
        d, dtype = self.config.divide, self.param_dtype
        x = x.astype(dtype)
        x = Unit(32 // d, THREE, 2, (0, 0), dtype, name="conv2d_1a_3x3")(x)
        x = Unit(32 // d, THREE, 1, (0, 0), dtype, name="conv2d_2a_3x3")(x)
        x = halved(Unit(64 // d, THREE, 1, ONE, dtype, name="conv2d_2b_3x3")(x))
        x = Unit(80 // d, ONE, param_dtype=dtype, name="conv2d_3b_1x1")(x)
        x = halved(Unit(192 // d, THREE, 1, (0, 0), dtype, name="conv2d_4a_3x3")(x))
        for name, pooled in (("mixed_5b", 32), ("mixed_5c", 64), ("mixed_5d", 64)):
            x = BlockA(d, dtype, pooled, name=name)(x)
        x = BlockB(d, dtype, name="mixed_6a")(x)
        for name, inner in (("mixed_6b", 128), ("mixed_6c", 160), ("mixed_6d", 160), ("mixed_6e", 192)):
            x = BlockC(d, dtype, inner, name=name)(x)
        x = BlockD(d, dtype, name="mixed_7a")(x)
        x = BlockE(d, dtype, name="mixed_7b")(x)
        x = BlockE(d, dtype, max_pool, name="mixed_7c")(x)
        features = x.astype(jnp.float32).mean((1, 2))
        return features, Classes(self.config.classes, dtype, name="fc")(features)
