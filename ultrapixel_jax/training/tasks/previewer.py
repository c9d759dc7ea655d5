"""The previewer: RGB at 8× the latent's size from the EffNet encoder's latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.resize import resize_antialiased
from ultrapixel_jax.training.config import PreviewerTask
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import Batch, Losses, Task, Variables, keys_of, normal

NOISE = 0
"""Stream of a sample's random numbers."""


@dataclasses.dataclass(frozen=True)
class TrainPreviewer(Task):
    """A small decoder, by reconstruction."""

    @property
    def _encoder(self) -> tuple[str, ...]:
        task = self.config.task
        assert isinstance(task, PreviewerTask)
        return ("effnet_encoder",) if task.train_encoder else ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The previewer, and the encoder if asked."""
        return ("previewer", *self._encoder)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The encoder whose latents it decodes, if it is not trained."""
        return () if self._encoder else ("effnet_encoder",)

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """Squared error against the image at that size, and what outliers of the latent cost."""
        task = self.config.task
        assert isinstance(task, PreviewerTask)
        image, changed = encode.pixels(batch["image"]), {}
        variables = {name: {"params": params[name], **collections[name]} for name in self.trained}
        latent: Any = None
        outliers: Any = 0.0
        if self._encoder:
            encoder = EffnetEncoder(self.config.model.effnet_encoder)
            latent, changed["effnet_encoder"] = encoder.apply(
                variables["effnet_encoder"],
                image.astype(self.dtype),
                train=self.training,
                mutable=["batch_stats"],
            )
            latent = latent.astype(jnp.float32)
            # The latent's batch norm fixes its variance, not its tails, and stage C learns those badly.
            excess = jnp.maximum(jnp.abs(latent) - task.outlier_limit, 0)
            outliers = task.outlier_weight * jnp.square(excess).mean((1, 2, 3))
        else:
            latent = encode.latent(batch, "latent", frozen, self.config.model, self.dtype)
        if task.latent_noise:
            latent += task.latent_noise * normal(keys_of(batch, NOISE), latent.shape[1:])
        out: Any = None
        out, changed["previewer"] = Previewer(self.config.model.previewer).apply(
            variables["previewer"], latent, train=self.training, mutable=["batch_stats"]
        )
        target = resize_antialiased(image, out.shape[1:3])
        return Losses(jnp.square(out - target).mean((1, 2, 3)) + outliers, collections=changed)
