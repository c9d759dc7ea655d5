"""Stage C ControlNets: a control image or latent to one feature map per slot (§10).

Stage C resizes each map to the size of the slot's ResBlock and adds it, times a strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import ControlNetConfig
from ultrapixel_jax.models.convolutions import Conv
from ultrapixel_jax.models.efficientnet import EfficientNet
from ultrapixel_jax.models.layers import Dtype, LayerNorm, Linear, gelu

LEAK = 0.2
"""Slope of the leaky ReLUs for negative values."""


def with_backbone(variables: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a ControlNet with the weights and statistics of another network's backbone.

    Its first convolution sees RGB. A control of one channel gets the weights of red; one of more than three
    zeros for those beyond.
    """
    params = source["params"]["backbone"]
    stem = params["stem"]
    kernel = stem["conv"]["kernel"]
    wanted = variables["params"]["backbone"]["stem"]["conv"]["kernel"].shape[2]
    more = max(wanted - kernel.shape[2], 0)
    kernel = jnp.pad(kernel[:, :, :wanted], ((0, 0), (0, 0), (0, more), (0, 0)))
    params = {**params, "stem": {**stem, "conv": {**stem["conv"], "kernel": kernel}}}
    return {
        **variables,
        "params": {**variables["params"], "backbone": params},
        "batch_stats": {**variables["batch_stats"], "backbone": source["batch_stats"]["backbone"]},
    }


class ControlNet(nn.Module):
    """Backbone of the kind that the configuration names, then a projection for each slot."""

    config: ControlNetConfig
    param_dtype: Dtype = jnp.float32
    rematerialised: bool = False
    """Gradients keep the inputs of the backbone's blocks alone: 3.2 GiB, not 46, of a control of 4096²."""

    @nn.compact
    def __call__(
        self, control: Float[Array, "b hp wp c"], train: bool = False
    ) -> tuple[Float[Array, "b h w f"], ...]:
        """One map per entry of `config.slots`, in that order.

        `control` is, by kind: canny, edges in [0, 1] with 1 channel; inpainting, 4 channels;
        super_resolution, the small image's stage C latent with 16 channels. Maps are at 1/32 of an
        image's size, and at a latent's own.
        """
        config, dtype = self.config, self.param_dtype
        if control.shape[-1] != config.in_channels:
            raise ValueError(
                f"the control of {config.kind} has {config.in_channels} channels, not {control.shape[-1]}"
            )
        if config.kind == "super_resolution":
            x = Bottleneck(*config.bottleneck, config.projection, name="backbone", param_dtype=dtype)(control)
        else:
            # The released first convolution was replaced by one without padding.
            backbone = EfficientNet(config.backbone, 0, dtype, self.rematerialised, name="backbone")
            x = backbone(control, train)
        return tuple(
            Projection(config.projection, config.channels, name=f"projection_{i}", param_dtype=dtype)(x)
            for i in range(len(config.slots))
        )


class Projection(nn.Module):
    """Two linear layers over channels without bias, a leaky ReLU between them."""

    inner: int
    features: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Map the backbone's features to stage C's width."""
        x = Linear(self.inner, use_bias=False, name="linear_0", param_dtype=self.param_dtype)(x)
        x = nn.leaky_relu(x, LEAK)
        zeros = nn.initializers.zeros  # so that training starts from the network without a control
        return Linear(
            self.features, use_bias=False, kernel_init=zeros, name="linear_2", param_dtype=self.param_dtype
        )(x)


class Bottleneck(nn.Module):
    """Super-resolution's backbone, at the latent's own size. Submodules are numbered as released."""

    expanded: int
    width: int
    blocks: int
    features: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Expand, squeeze, run the residual blocks, map to the projections' width."""
        x = Linear(self.expanded, name="linear_0", param_dtype=self.param_dtype)(x)
        x = nn.leaky_relu(x, LEAK)
        x = Linear(self.width, name="linear_2", param_dtype=self.param_dtype)(x)
        for i in range(3, 3 + self.blocks):
            x = BottleneckBlock(name=f"block_{i}", param_dtype=self.param_dtype)(x)
        return Linear(self.features, name=f"linear_{3 + self.blocks}", param_dtype=self.param_dtype)(x)


class BottleneckBlock(nn.Module):
    """Twice layer norm → GELU → 3×3 convolution, and the input added."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The size and the width stay."""
        channels, y = x.shape[-1], x
        for n in (0, 3):
            y = gelu(LayerNorm(name=f"norm_{n}", param_dtype=self.param_dtype)(y))
            y = Conv(channels, name=f"conv_{n + 2}", param_dtype=self.param_dtype)(y)
        return x + y
