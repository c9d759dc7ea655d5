"""Pictures in the place of words: CLIP's image vectors, for stage C."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.models.clip_vision import ClipVision
from ultrapixel_jax.sampling.stages.base import Setup, Stage


class ImagePromptEncoder(Stage):
    """CLIP's image tower."""

    networks = ("clip_vision",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        self.image_size = config.clip_vision.image_size
        compute, tower = setup.dtype, ClipVision(config.clip_vision, setup.dtype)

        def encode(v: Any, images: Any, weights: Any) -> Any:
            b, n = weights.shape
            flat = images.reshape(b * n, *images.shape[2:]).astype(compute)
            vectors: Any = tower.apply(v["clip_vision"], flat)
            vectors = vectors.reshape(b, n, -1).astype(jnp.float32) * weights[..., None]
            # One alone has no axis of its own, so that stage C takes it as it takes the zeros without any.
            vectors = vectors[:, 0] if n == 1 else vectors
            return jnp.concatenate([vectors, jnp.zeros_like(vectors)])

        self._encode = setup.program("encode_image_prompt", encode, batched=[1, 2])

    def __call__(
        self, images: Float[np.ndarray, "b n s s 3"], weights: Float[np.ndarray, "b n"]
    ) -> Float[Array, "b2 *n p"]:
        """Vectors of `n` images each (`clip_vision.preprocess`) times their weights.

        The second half, the unconditional one, is zeros.
        """
        return self._encode(self.variables, images, weights)
