"""Stage C from EffNet latents and text, with the text encoder if asked (§12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ultrapixel_jax import flops
from ultrapixel_jax.diffusion import loss as objective
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.training.config import DiffusionTraining, StageCTask
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import (
    Batch,
    Losses,
    Shapes,
    Task,
    Variables,
    batch_size,
    draw_logsnr,
    dropout_keys,
    keys_of,
    latent_size,
    normal,
)
from ultrapixel_jax.training.tasks.guidance import encoders

T, NOISE, OFFSET = range(3)
"""Streams of a sample's random numbers."""


@dataclasses.dataclass(frozen=True)
class TrainStageC(Task):
    """The text-to-latent model itself."""

    needs_images = False

    @property
    def _text(self) -> tuple[str, ...]:
        task = self.config.task
        assert isinstance(task, StageCTask)
        return ("clip_text",) if task.train_text_encoder else ()

    @property
    def trained(self) -> tuple[str, ...]:
        """Stage C, and the text encoder if asked."""
        return ("stage_c", *self._text)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The encoders that are not trained."""
        return tuple(name for name in encoders(self) if name not in self._text)

    def flops(self, shapes: Shapes) -> int:
        """Three times a forward pass, the text encoder's too where it is trained."""
        config, batch = self.config.model, batch_size(shapes)
        text, size = config.clip_text.positions, latent_size(shapes, "latent")
        once = flops.stage_c_condition_flops(config.stage_c, batch, text_tokens=text)
        once += flops.stage_c_flops(config.stage_c, size, batch, text_tokens=text)
        if self._text:
            once += flops.clip_text_flops(config.clip_text, batch)
        return 3 * once

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of the latent."""
        task = self.config.task
        assert isinstance(task, StageCTask)
        variables = {name: {"params": params[name], **collections[name]} for name in self.trained}
        return denoising_loss(
            self, task.diffusion, variables["stage_c"], {**frozen, **variables}, batch,
            dropping=self.training and task.dropout,
        )  # fmt: skip


def denoising_loss(
    task: Task,
    diffusion: DiffusionTraining,
    stage_c: Variables,
    networks: Mapping[str, Variables],
    batch: Batch,
    *,
    dropping: bool,
    latent: str = "latent",
    text: encode.Text | None = None,
    controls: Mapping[int, Array] | None = None,
    offset_noise: float = 0.0,
) -> Losses:
    """The ε loss of stage C with variables `stage_c`; the encoders are among `networks`.

    Of the batch's `latent`, with its captions or what they are encoded to, `text`. `controls` are a
    ControlNet's maps by slot. `offset_noise` is the standard deviation of what is added to the noise of a
    whole channel.
    """
    config, dtype = task.config.model, task.dtype
    model = StageC(config.stage_c, scanned=task.config.scanned)
    x0 = encode.latent(batch, latent, networks, config, dtype)
    text = text or encode.text(batch, networks, config, dtype)
    logsnr = draw_logsnr(diffusion, keys_of(batch, T))
    epsilon = normal(keys_of(batch, NOISE), x0.shape[1:])
    if offset_noise:
        epsilon += offset_noise * normal(keys_of(batch, OFFSET), (1, 1, x0.shape[-1]))
    x = objective.diffuse(x0, epsilon, logsnr).astype(dtype)
    r = schedule.noise_level(logsnr, jnp)
    conditioning = model.apply(stage_c, *text, method="condition")
    keys = dropout_keys(batch, dropping=dropping)
    predicted: Any = model.apply(stage_c, x, r, conditioning, controls=controls, dropout_keys=keys)
    return Losses(objective.epsilon_loss(predicted.epsilon, epsilon), logsnr)
