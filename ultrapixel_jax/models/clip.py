"""A whole CLIP: how well a text describes an image, for CLIP score and PickScore."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ultrapixel_jax.config import ClipConfig
from ultrapixel_jax.models.clip_layer import quick_gelu
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.clip_vision import ClipVision
from ultrapixel_jax.models.layers import Dtype, gelu

ACTIVATIONS: dict[str, Any] = {"gelu": gelu, "quick_gelu": quick_gelu}


class Clip(nn.Module):
    """Both towers, and the logarithm of the scale that cosines are multiplied by."""

    config: ClipConfig
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Named as in the checkpoint: `text`, `vision`, `logit_scale`."""
        config, dtype = self.config, self.param_dtype
        activation = ACTIVATIONS[config.activation]
        self.text = ClipText(config.text, dtype, dtype, activation)
        self.vision = ClipVision(config.vision, dtype, activation)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), (), jnp.float32
        )

    def __call__(
        self,
        image: Float[Array, "b s s 3"],
        ids: Int[Array, "t n"],
        mask: Int[Array, "t n"] | Bool[Array, "t n"],
    ) -> Float[Array, "b t"]:
        """Logits: the scale times the cosine of every image with every text."""
        cosines = self.encode_image(image) @ self.encode_text(ids, mask).T
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * cosines

    def encode_image(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b p"]:
        """Vectors of length 1 of images from `clip_vision.preprocess`, in float32."""
        return unit(self.vision(image.astype(self.param_dtype)))

    def encode_text(
        self, ids: Int[Array, "t n"], mask: Int[Array, "t n"] | Bool[Array, "t n"]
    ) -> Float[Array, "t p"]:
        """Vectors of length 1 of padded prompts, in float32."""
        return unit(self.text(ids, mask)[1])


def unit(x: Float[Array, "b p"]) -> Float[Array, "b p"]:
    """`x` over its length, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))
