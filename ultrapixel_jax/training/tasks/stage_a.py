"""Stage A by reconstruction, with codebook and commitment losses (§12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax import flops
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.training.config import StageATask
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import (
    Batch,
    Losses,
    Shapes,
    Task,
    Variables,
    batch_size,
    keys_of,
    uniform,
)

PLACE, QUANTIZE = range(2)
"""Streams of a sample's random numbers."""


@dataclasses.dataclass(frozen=True)
class TrainStageA(Task):
    """The autoencoder between pixels and stage B's latent."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Stage A."""
        return ("stage_a",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def flops(self, shapes: Shapes) -> int:
        """Three times a forward pass of the decoder; the encoder is a small part of it."""
        task = self.config.task
        assert isinstance(task, StageATask)
        _, h, w, _ = shapes["image"]
        side = task.crop if task.crop and task.crop <= min(h, w) else 0
        size = (side // 4, side // 4) if side else (h // 4, w // 4)
        return 3 * flops.stage_a_decode_flops(self.config.model.stage_a, size, batch_size(shapes))

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """Squared error of the reconstruction, plus the quantizer's loss."""
        del frozen
        task = self.config.task
        assert isinstance(task, StageATask)
        image = random_crop(encode.pixels(batch["image"]), task.crop, batch)
        use = uniform(keys_of(batch, QUANTIZE)) < task.quantize_probability

        def reconstruct(module: StageA, image: Array) -> tuple[Array, Array]:
            latent = module.encode(image, train=self.training)
            quantized, _, quantizer = module.quantize(latent)
            straight = latent + jax.lax.stop_gradient(quantized - latent)
            return module.decode(jnp.where(use[:, None, None, None], straight, latent)), quantizer

        variables = {"params": params["stage_a"], **collections["stage_a"]}
        (out, quantizer), changed = StageA(self.config.model.stage_a).apply(
            variables, image, method=reconstruct, mutable=["batch_stats"]
        )
        error = jnp.square(out - image).mean((1, 2, 3))
        return Losses(
            error + task.quantizer_weight * quantizer,
            collections={"stage_a": changed},
            metrics={"reconstruction": error.mean(), "quantizer": quantizer},
        )


def random_crop(image: Float[Array, "b h w 3"], side: int, batch: Batch) -> Float[Array, "b h2 w2 3"]:
    """A square of each image at a place of its own; images that are smaller stay as they are."""
    height, width = image.shape[1:3]
    if not side or side > min(height, width):
        return image
    keys = keys_of(batch, PLACE)

    def one(key: Array, image: Array) -> Array:
        place = jax.random.uniform(key, (2,), jnp.float32)
        limits = np.array([height - side + 1, width - side + 1], np.float32)
        y, x = jnp.floor(place * limits).astype(jnp.int32)
        return jax.lax.dynamic_slice(image, (y, x, jnp.int32(0)), (side, side, 3))

    return jax.vmap(one)(keys, image)
