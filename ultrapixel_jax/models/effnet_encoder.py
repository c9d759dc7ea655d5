"""The encoder from pixels to stage C's latent, 32:1 (§9). Used in training."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import EffnetEncoderConfig
from ultrapixel_jax.models.efficientnet import EfficientNet
from ultrapixel_jax.models.layers import BatchNorm, Dtype, Linear

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalize(image: Float[Array, "b hp wp 3"]) -> Float[Array, "b hp wp 3"]:
    """RGB in [0, 1] to zero mean and unit variance over ImageNet, channel by channel."""
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32)[None, None, None]
    std = jnp.asarray(IMAGENET_STD, jnp.float32)[None, None, None]
    return ((image.astype(jnp.float32) - mean) / std).astype(image.dtype)


class EffnetEncoder(nn.Module):
    """EfficientNetV2 → 1×1 convolution → batch norm without affine parameters."""

    config: EffnetEncoderConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b hp wp 3"], train: bool = False) -> Float[Array, "b h w c"]:
        """RGB in [0, 1] (normalised in here) to the latent; sides are divided by 32, rounding up."""
        dtype = self.param_dtype
        x = imagenet_normalize(image)
        x = EfficientNet(self.config.backbone, name="backbone", param_dtype=dtype)(x, train)
        x = Linear(self.config.c_latent, use_bias=False, name="mapper", param_dtype=dtype)(x)
        return BatchNorm(1e-5, affine=False, name="mapper_norm", param_dtype=dtype)(x, train)
