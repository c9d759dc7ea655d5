"""A ControlNet on a frozen stage C (§10): what it adds to the maps, learned from what its pictures show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax import flops
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.controlnet import ControlNet, with_backbone
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.training.config import ControlNetTask
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import (
    Batch,
    Losses,
    Shapes,
    Task,
    Variables,
    batch_size,
    latent_size,
)
from ultrapixel_jax.training.tasks.guidance import encoders
from ultrapixel_jax.training.tasks.stage_c import denoising_loss


@dataclasses.dataclass(frozen=True)
class TrainControlNet(Task):
    """Noise of the latent, predicted with the maps of the picture's own control."""

    needs_images = False

    @property
    def _task(self) -> ControlNetTask:
        assert isinstance(self.config.task, ControlNetTask)
        return self.config.task

    @property
    def trained(self) -> tuple[str, ...]:
        """The ControlNet; its name has no kind here."""
        return ("controlnet",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Stage C, the encoders where latents are not cached, and that of the small picture."""
        found = ("stage_c", *encoders(self))
        small = self.config.model.controlnet.kind == "super_resolution" and "effnet_encoder" not in found
        return (*found, "effnet_encoder") if small else found

    def check(self) -> None:
        """Refuse a ControlNet that fits neither stage C nor the backbone that it is to begin as."""
        super().check()
        model = self.config.model
        controlnet, levels = model.controlnet, model.stage_c.levels
        blocks = sum(level.down_blocks + level.up_blocks for level in levels)
        if max(controlnet.slots) >= blocks:
            raise UserError(
                f"model.controlnet.slots has {max(controlnet.slots)}, and stage C has {blocks} blocks, from 0"
            )
        if others := {level.channels for level in levels} - {controlnet.channels}:
            raise UserError(
                f"model.controlnet.channels {controlnet.channels} is not the {min(others)} of stage C"
            )
        if self._task.backbone == "nothing":
            return
        if controlnet.kind == "super_resolution":
            raise UserError("super-resolution's backbone begins as random numbers: --task.backbone nothing")
        if controlnet.backbone != model.effnet_encoder.backbone:
            raise UserError(
                "model.controlnet.backbone is not that of model.effnet_encoder, which it is to begin as; "
                "make them equal, or use --task.backbone nothing"
            )

    @property
    def borrows(self) -> Mapping[str, str]:
        """The EffNet encoder's backbone is what the ControlNet's begins as, if asked."""
        return {"controlnet": "effnet_encoder"} if self._task.backbone == "effnet_encoder" else {}

    def begin(self, name: str, key: Array, source: Variables) -> dict[str, Any]:
        """Fresh projections on the backbone of `source`."""
        return with_backbone(self.initial(name, key), source)

    def flops(self, shapes: Shapes) -> int:
        """Forward and back through the frozen pass and the trained network."""
        config, text = self.config.model, self.config.model.clip_text.positions
        batch, size = batch_size(shapes), latent_size(shapes, "latent")
        once = flops.stage_c_condition_flops(config.stage_c, batch, text_tokens=text)
        frozen = 2 * flops.stage_c_flops(config.stage_c, size, batch, text_tokens=text)
        shape = shapes["control"][1:3] if "control" in shapes else size
        return once + frozen + 3 * flops.controlnet_flops(config.controlnet, (shape[0], shape[1]), batch)

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of stage C with the ControlNet's maps in their slots."""
        config, task = self.config, self._task
        control = control_of(batch, frozen, config.model, self.dtype)
        module = ControlNet(config.model.controlnet, rematerialised=config.scanned)
        variables = {"params": params["controlnet"], **collections["controlnet"]}
        train = self.training and not task.frozen_statistics and "batch_stats" in variables
        out: Any = module.apply(variables, control, train, mutable=["batch_stats"] if train else False)
        maps, changed = out if train else (out, {})
        losses = denoising_loss(
            self, task.diffusion, frozen["stage_c"], frozen, batch,
            dropping=self.training and task.frozen_dropout,
            controls=dict(zip(config.model.controlnet.slots, maps, strict=True)),
            offset_noise=task.offset_noise,
        )  # fmt: skip
        return losses._replace(collections={"controlnet": changed} if train else {})


def control_of(
    batch: Batch, frozen: Mapping[str, Any], config: CascadeConfig, dtype: Any
) -> Float[Array, "b h w c"]:
    """What the ControlNet sees: the loader's map, or for super-resolution the small picture's latent.

    That is of the picture at half its size, and twice as large as its own: both by nearest neighbours.
    """
    if "control" in batch:
        control = batch["control"]
        return (encode.pixels(control) if control.dtype == jnp.uint8 else control).astype(dtype)
    small = encode.pixels(batch["image"])[:, ::2, ::2]
    latent: Any = EffnetEncoder(config.effnet_encoder).apply(frozen["effnet_encoder"], small.astype(dtype))
    latent = jax.lax.stop_gradient(latent)
    return jnp.repeat(jnp.repeat(latent, 2, axis=1), 2, axis=2).astype(dtype)
