"""Stage B on stage A's latent, with its EffNet encoder or a frozen one (§12)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from ultrapixel_jax import flops
from ultrapixel_jax.diffusion import loss as objective
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.models import random_keys
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.resize import resize_antialiased, resize_bilinear
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.training.config import StageBTask
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
    normal,
    uniform,
)

T, NOISE, DROP, SCALE, PYRAMID = range(5)
"""Streams of a sample's random numbers; the pyramid takes one per level from the last on."""
DRAW = 1 << 16
"""First number of the keys of a sample's noised copies."""
ENCODED = 0.75
"""Scale at which stage C's latent has a picture: the encoder's 32 pixels of each position's 42.67."""
PYRAMID_DECAY = 0.75
"""Weight of level i of the pyramid is this to the power i."""


@dataclasses.dataclass(frozen=True)
class TrainStageB(Task):
    """The latent decoder."""

    @property
    def _encoder(self) -> tuple[str, ...]:
        task = self.config.task
        assert isinstance(task, StageBTask)
        return ("effnet_encoder",) if task.train_encoder else ()

    @property
    def trained(self) -> tuple[str, ...]:
        """Stage B, and the EffNet encoder if asked."""
        return ("stage_b", *self._encoder)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Stage A, the text encoder, and the EffNet encoder if it is not trained."""
        wanted = ("stage_a", "clip_text", "effnet_encoder")
        return tuple(name for name in wanted if name not in self._encoder)

    def flops(self, shapes: Shapes) -> int:
        """Three times a forward pass of stage B."""
        config, batch = self.config.model.stage_b, batch_size(shapes)
        _, h, w, _ = shapes["image"]
        assert isinstance(self.config.task, StageBTask)
        batch *= self.config.task.draws
        size, effnet = (h // 4, w // 4), (h // 32, w // 32)
        once = flops.stage_b_condition_flops(config, effnet, size, batch)
        return 3 * (once + flops.stage_b_flops(config, size, batch))

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of stage A's latent."""
        config, task, dtype = self.config.model, self.config.task, self.dtype
        assert isinstance(task, StageBTask)
        variables = {name: {"params": params[name], **collections[name]} for name in self.trained}
        networks = {**frozen, **variables}
        image = encode.pixels(batch["image"])
        x0: Any = StageA(config.stage_a).apply(frozen["stage_a"], image, method="encode")
        x0 = jax.lax.stop_gradient(x0)

        model = StageB(config.stage_b, scanned=self.config.scanned)
        inner = (x0.shape[1] // config.stage_b.patch_size, x0.shape[2] // config.stage_b.patch_size)
        effnet, changed = self._condition(networks["effnet_encoder"], image, inner, batch)
        text: Any = ClipText(config.clip_text, dtype=dtype).apply(
            frozen["clip_text"], batch["ids"], batch["mask"]
        )
        pooled = text[1]
        if task.draws > 1:
            x0, effnet, pooled = (jnp.repeat(x, task.draws, axis=0) for x in (x0, effnet, pooled))
            batch = {"key": keys_of_draws(batch, task.draws)}
        kept = uniform(keys_of(batch, DROP)) >= task.condition_dropout
        effnet = jnp.where(kept[:, None, None, None], effnet, 0).astype(dtype)

        logsnr = draw_logsnr(task.diffusion, keys_of(batch, T))
        epsilon = pyramid_noise(batch, x0.shape[1:], task.pyramid_levels)
        x = objective.diffuse(x0, epsilon, logsnr).astype(dtype)
        conditioning = model.apply(
            variables["stage_b"], pooled.astype(dtype), effnet, x0.shape[1:3], method="condition"
        )
        predicted: Any = model.apply(
            variables["stage_b"], x, schedule.noise_level(logsnr, jnp), conditioning,
            dropout_keys=dropout_keys(batch, dropping=self.training and task.dropout),
        )  # fmt: skip
        updated = {"effnet_encoder": changed} if task.train_encoder else {}
        return Losses(objective.epsilon_loss(predicted, epsilon), logsnr, updated)

    def _condition(
        self, variables: Variables, image: Float[Array, "b h w 3"], inner: tuple[int, int], batch: Batch
    ) -> tuple[Float[Array, "b h2 w2 c"], Any]:
        """The image's EffNet latent at a random scale, resized to `inner`, and changed statistics."""
        task = self.config.task
        assert isinstance(task, StageBTask)
        encoder = EffnetEncoder(self.config.model.effnet_encoder)
        train = self.training and task.train_encoder

        def at_scale(scale: float, image: Array) -> tuple[Array, Any]:
            height, width = (max(32, 32 * round(side * scale / 32)) for side in image.shape[1:3])
            small = resize_antialiased(image, (height, width)).astype(self.dtype)
            out: Any = encoder.apply(variables, small, train, mutable=["batch_stats"] if train else False)
            z, changed = out if train else (out, {})
            return resize_bilinear(z.astype(jnp.float32), inner), changed

        # One branch per scale, since each has shapes of its own; the results have one.
        scales = task.condition_scales
        if not self.training:
            scales = (min(scales, key=lambda scale: abs(scale - ENCODED)),)
        branches = [functools.partial(at_scale, scale) for scale in scales]
        which = jnp.floor(uniform(keys_of(batch, SCALE))[0] * len(branches)).astype(jnp.int32)
        return jax.lax.switch(which, branches, image)


def keys_of_draws(batch: Batch, draws: int) -> UInt32[Array, "b 2"]:
    """Keys of `draws` noised copies of each sample, those of one sample side by side."""
    number = DRAW + jnp.arange(draws)
    copies = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(number))
    return jax.random.key_data(copies(random_keys.of_data(batch["key"])).reshape(-1))


def pyramid_noise(batch: Batch, shape: tuple[int, ...], levels: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Noise with noise of halved sizes added, enlarged by repetition, at unit variance.

    Level i, of sides `shape` / 2ⁱ, counts where its shorter side is within `levels`, with weight 0.75ⁱ.
    Low frequencies of white noise are so weak that a network reads the picture's layout through it at
    any level; these are not.
    """
    h, w, c = shape
    total, variance = normal(keys_of(batch, NOISE), shape), 1.0
    i = 1
    while levels[1] > 0 and min(h, w) >> i >= max(levels[0], 1):
        if min(h, w) >> i <= levels[1]:
            coarse = normal(keys_of(batch, PYRAMID + i), (h >> i, w >> i, c))
            weight = PYRAMID_DECAY**i
            enlarged = jax.image.resize(coarse, (coarse.shape[0], h, w, c), "nearest")
            total, variance = total + weight * enlarged, variance + weight**2
        i += 1
    return total / jnp.sqrt(jnp.float32(variance))
