"""CLIP's image tower: images to one vector each (§9)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from ultrapixel_jax.config import ClipVisionConfig
from ultrapixel_jax.models.clip_layer import Activation, ClipLayer, quick_gelu
from ultrapixel_jax.models.convolutions import Conv
from ultrapixel_jax.models.layers import Dtype, LayerNorm, Linear, parameter

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipVision(nn.Module):
    """A vision transformer with a class token, whose state becomes the image vector."""

    config: ClipVisionConfig
    param_dtype: Dtype = jnp.float32
    activation: Activation = quick_gelu

    @nn.compact
    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b p"]:
        """Images from `preprocess` to `image_embeds`."""
        config, dtype = self.config, self.param_dtype
        if image.shape[1] != config.image_size:
            raise ValueError(f"images are {config.image_size} pixels a side here, not {image.shape[1]}")
        patch, width = config.patch_size, config.width
        x = Conv(width, patch, patch, 0, use_bias=False, name="patch_embedding", param_dtype=dtype)(image)
        x = x.reshape(x.shape[0], -1, width)

        init = nn.initializers.normal(0.02)
        first = parameter(self, "class_embedding", init, (width,), dtype)
        positions = parameter(self, "position_embedding", init, (x.shape[1] + 1, width), dtype)
        first = jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([first, x], axis=1) + positions[None].astype(x.dtype)

        x = LayerNorm(name="pre_norm", param_dtype=dtype)(x)
        for i in range(config.layers):
            layer = ClipLayer(
                config.heads, config.mlp_width, self.activation, name=f"layer_{i}", param_dtype=dtype
            )
            x = layer(x)
        x = LayerNorm(name="post_norm", param_dtype=dtype)(x[:, 0])
        return Linear(config.projection, use_bias=False, name="visual_projection", param_dtype=dtype)(x)


def preprocess(images: Sequence[Image.Image], size: int = 224) -> np.ndarray:
    """Pictures to the tower's input, on the host: float32 (b, size, size, 3).

    The shorter side is resized to `size` (bicubic), the centre cropped, and RGB normalised.
    """
    out = np.empty((len(images), size, size, 3), np.float32)
    for i, image in enumerate(images):
        short = min(image.size)
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        out[i] = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
    return (out - np.asarray(CLIP_MEAN, np.float32)) / np.asarray(CLIP_STD, np.float32)
