"""EfficientNetV2's `features`, the backbone of the EffNet encoder and of two ControlNets.

As in torchvision (§9): batch norm with eps 1e-3, SiLU, squeeze-excitation with a
quarter of the block's *input* channels. Stochastic depth is left out, also where the backbone is trained.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import EfficientNetConfig, EfficientNetStage
from ultrapixel_jax.models.convolutions import Conv, DepthwiseConv
from ultrapixel_jax.models.layers import BatchNorm, Dtype, Linear

EPSILON = 1e-3
"""Of every batch norm in the backbone."""


class ConvNorm(nn.Module):
    """Convolution without bias → batch norm → SiLU if `activate`.

    `size` 1 is a matrix product over channels. `padding` counts for full convolutions; the others keep
    the size up to their stride.
    """

    features: int
    size: int = 1
    stride: int = 1
    padding: int = 1
    depthwise: bool = False
    activate: bool = True
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 f"]:
        """Convolve, normalise (by the batch when `train`), activate."""
        options = {"use_bias": False, "param_dtype": self.param_dtype, "name": "conv"}
        if self.depthwise:
            x = DepthwiseConv(size=self.size, stride=self.stride, **options)(x)
        elif self.size == 1:
            x = Linear(self.features, **options)(x)
        else:
            x = Conv(self.features, self.size, self.stride, self.padding, **options)(x)
        x = BatchNorm(EPSILON, name="norm", param_dtype=self.param_dtype)(x, train)
        return nn.silu(x) if self.activate else x


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from the channels' means."""

    squeezed: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`x·sigmoid(fc2(SiLU(fc1(mean(x)))))`; the mean in float32."""
        y = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
        y = nn.silu(Linear(self.squeezed, name="fc1", param_dtype=self.param_dtype)(y))
        y = Linear(x.shape[-1], name="fc2", param_dtype=self.param_dtype)(y)
        return x * jax.nn.sigmoid(y)


class Block(nn.Module):
    """Fused-MBConv or MBConv; residual where stride and width allow."""

    stage: EfficientNetStage
    stride: int = 1
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 f"]:
        """Expand, filter, project."""
        stage, stride, dtype = self.stage, self.stride, self.param_dtype
        channels = x.shape[-1]
        inner = channels * stage.expand
        if stage.kind == "fused" and stage.expand == 1:
            y = ConvNorm(stage.channels, 3, stride, name="fused", param_dtype=dtype)(x, train)
        elif stage.kind == "fused":
            y = ConvNorm(inner, 3, stride, name="fused", param_dtype=dtype)(x, train)
            y = ConvNorm(stage.channels, activate=False, name="project", param_dtype=dtype)(y, train)
        else:
            y = ConvNorm(inner, name="expand", param_dtype=dtype)(x, train)
            y = ConvNorm(inner, 3, stride, depthwise=True, name="depthwise", param_dtype=dtype)(y, train)
            y = SqueezeExcitation(max(1, channels // 4), name="squeeze", param_dtype=dtype)(y)
            y = ConvNorm(stage.channels, activate=False, name="project", param_dtype=dtype)(y, train)
        return x + y if stride == 1 and channels == stage.channels else y


class EfficientNet(nn.Module):
    """Stem, stages and the last 1×1 convolution; 32:1.

    `stem_padding` is 1 in torchvision; the ControlNets' replaced first convolution has 0. Stages are
    numbered from 1, as in the released files.
    """

    config: EfficientNetConfig
    stem_padding: int = 1
    param_dtype: Dtype = jnp.float32
    rematerialised: bool = False
    """Gradients keep the blocks' inputs alone."""

    @nn.compact
    def __call__(self, x: Float[Array, "b hp wp c"], train: bool = False) -> Float[Array, "b h w f"]:
        """Any number of input channels."""
        config, dtype = self.config, self.param_dtype
        x = ConvNorm(config.stem, 3, 2, self.stem_padding, name="stem", param_dtype=dtype)(x, train)
        block = nn.remat(Block, static_argnums=(2,)) if self.rematerialised else Block
        for s, stage in enumerate(config.stages, start=1):
            for n in range(stage.blocks):
                stride = stage.stride if n == 0 else 1
                x = block(stage, stride, name=f"stage_{s}_block_{n}", param_dtype=dtype)(x, train)
        return ConvNorm(config.head, name="head", param_dtype=dtype)(x, train)
