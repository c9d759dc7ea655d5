"""UltraPixel's step (paper section 3, eq. 5; §12): the guidance networks on a frozen stage C."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultrapixel_jax import flops, sizes
from ultrapixel_jax.config import GuidanceConfig
from ultrapixel_jax.diffusion import loss as objective
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask
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

T, HR, LR = range(3)
"""Streams of a sample's random numbers."""


@dataclasses.dataclass(frozen=True)
class TrainGuidance(Task):
    """Noise of the HR latent, predicted with guidance from the slightly noised LR latent."""

    needs_images = False

    @property
    def trained(self) -> tuple[str, ...]:
        """The four guidance networks."""
        return ("guidance",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Stage C, and the encoders where latents are not cached."""
        return ("stage_c", *encoders(self))

    def flops(self, shapes: Shapes) -> int:
        """A pass at LR; forward and back through the frozen HR pass, and through the trained networks."""
        config = self.config.model
        assert config.guidance is not None
        hr, lr, batch = latent_size(shapes, "latent"), latent_size(shapes, "latent_lr"), batch_size(shapes)
        text = config.clip_text.positions
        once = flops.stage_c_condition_flops(config.stage_c, batch, text_tokens=text)
        once += flops.stage_c_flops(config.stage_c, lr, batch, text_tokens=text)
        trained = flops.guidance_prepare_flops(config.guidance, lr, hr, batch)
        trained += flops.guidance_fuse_flops(config.guidance, hr, batch)
        return once + 2 * flops.stage_c_flops(config.stage_c, hr, batch, text_tokens=text) + 3 * trained

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of the HR pass; the LR pass has no gradient."""
        task = self.config.task
        assert isinstance(task, GuidanceTask)
        text = encode.text(batch, frozen, self.config.model, self.dtype)
        networks = {**frozen, "guidance": {"params": params["guidance"], **collections["guidance"]}}
        return guided_loss(
            self, task.diffusion, networks, text, batch, dropping=self.training and task.frozen_dropout
        )


def guided_loss(
    task: Task,
    diffusion: DiffusionTraining,
    networks: Mapping[str, Variables],
    text: encode.Text,
    batch: Batch,
    *,
    dropping: bool,
) -> Losses:
    """The ε loss of the HR pass of `networks`, guided by their LR pass, which has no gradient."""
    config, dtype = task.config.model, task.dtype
    guidance = config.guidance
    assert isinstance(guidance, GuidanceConfig)
    hr = encode.latent(batch, "latent", networks, config, dtype)
    lr = encode.latent(batch, "latent_lr", networks, config, dtype)
    stage_c = StageC(config.stage_c, scanned=task.config.scanned)
    model = StageCModel(stage_c, networks["stage_c"], Guidance(guidance), networks["guidance"], dtype)
    conditioning = model.condition(Prompts(*text))

    logsnr = draw_logsnr(diffusion, keys_of(batch, T))
    logsnr_lr = logsnr
    if guidance.timestep != "synchronized":
        t = np.float32(guidance.timestep)
        logsnr_lr = jnp.full_like(logsnr, schedule.logsnr(t, diffusion.schedule, diffusion.shift))
    x_lr = objective.diffuse(lr, normal(keys_of(batch, LR), lr.shape[1:]), logsnr_lr)
    features = model.denoise(x_lr, schedule.noise_level(logsnr_lr, jnp), conditioning).features
    features = jax.lax.stop_gradient(features)

    height, width = hr.shape[1:3]
    prepared = model.prepare(features, (height, width))
    scale = ScaleInputs(sizes.scale(height, width), 1.0)
    epsilon = normal(keys_of(batch, HR), hr.shape[1:])
    x_hr = objective.diffuse(hr, epsilon, logsnr)
    predicted = model.denoise(
        x_hr, schedule.noise_level(logsnr, jnp), conditioning, prepared, scale,
        dropout_keys=dropout_keys(batch, dropping=dropping),
    ).epsilon  # fmt: skip
    return Losses(objective.epsilon_loss(predicted, epsilon), logsnr)


def encoders(task: Task) -> tuple[str, ...]:
    """Frozen encoders that stage C's tasks need."""
    if task.config.data.cached:
        return () if task.config.data.cached_text else ("clip_text",)
    vision = ("clip_vision",) if task.config.data.image_vector_probability > 0 else ()
    return ("effnet_encoder", "clip_text", *vision)
