"""The text encoder by itself, before stage C: captions to what is shared by the pictures they fit.

Where the released model's text encoder comes trained, one that stage C's noise prediction has to train
learns the words early and their order late or not at all: whether "left of" or "right of" stood between two
objects hardly changes that loss. Here it is most of what is left to learn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax import flops
from ultrapixel_jax.models import random_keys
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.resize import resize_antialiased
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import Batch, Losses, Shapes, Task, Variables, batch_size
from ultrapixel_jax.training.tasks.guidance import encoders

SEED = 0
"""Of the projection; another one would be another target."""
SIDE = 9
"""Of the square that latents are resized to before it: words mean the same in pictures of all shapes."""


@dataclasses.dataclass(frozen=True)
class TrainText(Task):
    """The pooled vector predicts a fixed random projection of the EffNet latent.

    A projection keeps what tells latents apart, and needs no network that would be thrown away later.
    """

    needs_images = False

    @property
    def trained(self) -> tuple[str, ...]:
        """The text encoder."""
        return ("clip_text",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The EffNet encoder where latents are not cached."""
        return tuple(name for name in encoders(self) if name == "effnet_encoder")

    def flops(self, shapes: Shapes) -> int:
        """Three times a forward pass."""
        return 3 * flops.clip_text_flops(self.config.model.clip_text, batch_size(shapes))

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """Squared error of the pooled vector."""
        config = self.config.model
        latent = encode.latent(batch, "latent", frozen, config, self.dtype)
        encoder = ClipText(config.clip_text, dtype=self.dtype)
        variables = {"params": params["clip_text"], **collections["clip_text"]}
        out: Any = encoder.apply(variables, batch["ids"], batch["mask"])
        pooled = out[1].astype(jnp.float32)
        return Losses(jnp.square(pooled - project(latent, pooled.shape[1])).mean(1))


def project(latent: Float[Array, "b h w c"], channels: int) -> Float[Array, "b p"]:
    """`channels` fixed random combinations of all values of a latent, each of unit variance if they are.

    Latents of other shapes than `SIDE`×`SIDE` are resized to that. The numbers are drawn in the program: as a
    constant they would be 3 MB of it, for each size of latents.
    """
    flat = resize_antialiased(latent, (SIDE, SIDE)).reshape(latent.shape[0], -1)
    matrix = jax.random.normal(random_keys.of_seed(SEED), (flat.shape[1], channels), jnp.float32)
    return flat @ matrix / np.float32(np.sqrt(flat.shape[1]))
