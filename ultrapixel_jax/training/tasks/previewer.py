"""The previewer: RGB at 8× the latent's size from the frozen encoder's latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import Batch, Losses, Task, Variables


@dataclasses.dataclass(frozen=True)
class TrainPreviewer(Task):
    """A small decoder, by reconstruction."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The previewer."""
        return ("previewer",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The encoder whose latents it decodes."""
        return ("effnet_encoder",)

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """Squared error against the image at that size."""
        image = encode.pixels(batch["image"])
        latent = encode.latent(batch, "latent", frozen, self.config.model, self.dtype)
        variables = {"params": params["previewer"], **collections["previewer"]}
        out: Any = None
        out, changed = Previewer(self.config.model.previewer).apply(
            variables, latent, True, mutable=["batch_stats"]
        )
        target = jax.image.resize(image, out.shape, "linear")
        return Losses(jnp.square(out - target).mean((1, 2, 3)), collections={"previewer": changed})
