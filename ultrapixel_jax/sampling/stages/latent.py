"""Pictures to stage C's latents, to start from or to keep a part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.sampling.stages.base import Setup, Stage


class LatentEncoder(Stage):
    """The EffNet encoder."""

    networks = ("effnet_encoder",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        compute, encoder = setup.dtype, EffnetEncoder(config.effnet_encoder, setup.dtype)

        def encode(v: Any, images: Any) -> Any:
            pixels = (images.astype(jnp.float32) / 255).astype(compute)
            latent: Any = encoder.apply(v["effnet_encoder"], pixels)
            return latent.astype(jnp.float32)

        self._encode = setup.program("encode_picture", encode, batched=[1], wide_maps=True)

    def __call__(self, images: UInt8[np.ndarray, "b hp wp 3"]) -> Float[Array, "b h w c"]:
        """Latents of RGB pictures: 32 pixels for each position on a side."""
        return self._encode(self.variables, images)
