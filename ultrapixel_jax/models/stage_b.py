"""Stage B: the UNet that denoises stage A's latent, conditioned on the stage C latent (§7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ultrapixel_jax.config import StageBConfig
from ultrapixel_jax.models.blocks import KeysValues, build_levels
from ultrapixel_jax.models.convolutions import Conv, ConvTransposed
from ultrapixel_jax.models.dropout import keys_for
from ultrapixel_jax.models.embeddings import time_embedding
from ultrapixel_jax.models.layers import Dtype, Linear, gelu, layer_norm, pixel_shuffle, pixel_unshuffle
from ultrapixel_jax.models.resize import resize_bilinear


class StageBConditioning(NamedTuple):
    """What does not depend on the noise level, computed once per image."""

    keys_values: dict[str, list[KeysValues]]
    """Of the pooled text's tokens, for every attention block, by level."""
    maps: Float[Array, "b h w c"]
    """What is added after the embedding: the mapped stage C latent and the mapped pixels."""


class ConditionMapper(nn.Module):
    """1×1 conv → GELU → 1×1 conv → LN, for the stage C latent and for pixels."""

    channels: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Map every pixel to `channels`."""
        x = gelu(Linear(4 * self.channels, param_dtype=self.param_dtype, name="expand")(x))
        return layer_norm(Linear(self.channels, param_dtype=self.param_dtype, name="contract")(x))


class StageB(nn.Module):
    """The UNet between the stage C latent and stage A's."""

    config: StageBConfig
    param_dtype: Dtype = jnp.float32
    scanned: bool = False
    """Weights of each level's blocks stacked, and run in a rematerialised scan (`models.scan`)."""

    def setup(self) -> None:
        """Create the layers."""
        c, dtype = self.config, self.param_dtype
        first = c.levels[0].channels
        self.effnet_mapper = ConditionMapper(first, dtype)
        self.pixels_mapper = ConditionMapper(first, dtype)
        self.clip_mapper = Linear(
            c.clip_tokens * c.c_cond, kernel_init=nn.initializers.normal(0.02), param_dtype=dtype
        )
        init = nn.initializers.variance_scaling(0.02**2, "fan_avg", "uniform")
        # Biases are larger than what the small kernel makes of x, so that the norm keeps the scale of x.
        self.embedding = Linear(
            first, kernel_init=init, bias_init=nn.initializers.normal(0.05), param_dtype=dtype
        )
        self.down, self.up = build_levels(c.levels, c.timestep_conditions, dtype, self.scanned)
        self.downscaler = [
            Conv(level.channels, size=2, stride=2, padding=0, param_dtype=dtype) for level in c.levels[1:]
        ]
        self.upscaler = [
            ConvTransposed(level.channels, param_dtype=dtype) for level in reversed(c.levels[:-1])
        ]
        self.clf = Linear(c.c_latent * c.patch_size**2, kernel_init=nn.initializers.zeros, param_dtype=dtype)

    def condition(
        self,
        clip_text_pooled: Float[Array, "b p"],
        effnet: Float[Array, "b h w e"],
        size: tuple[int, int],
        pixels: Float[Array, "b ph pw 3"] | None = None,
    ) -> StageBConditioning:
        """Everything that all steps share.

        Args:
            clip_text_pooled: pooled text vector.
            effnet: stage C latent (zeros for the unconditional half).
            size: height and width of the stage B latent.
            pixels: RGB image; 8×8 zeros where there is none, which is not a no-op.
        """
        c = self.config
        b = clip_text_pooled.shape[0]
        inner = (size[0] // c.patch_size, size[1] // c.patch_size)
        tokens = layer_norm(self.clip_mapper(clip_text_pooled).reshape(b, c.clip_tokens, c.c_cond))
        kv = {f"down_{i}": level.keys_values(tokens) for i, level in enumerate(self.down)}
        kv |= {f"up_{i}": level.keys_values(tokens) for i, level in enumerate(self.up)}
        maps = self.effnet_mapper(resize_bilinear(effnet, inner))
        if pixels is None:
            pixels = jnp.zeros((b, 8, 8, 3), effnet.dtype)
        return StageBConditioning(kv, maps + resize_bilinear(self.pixels_mapper(pixels), inner))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        r: Float[Array, " b"],
        conditioning: StageBConditioning,
        *,
        conditions: Mapping[str, Float[Array, " b"]] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict the noise in `x`, whose sides are even; with dropout where each sample has a key for it."""
        return self.step(x, r, conditioning, conditions=conditions, dropout_keys=dropout_keys)[0]

    def step(
        self,
        x: Float[Array, "b h w c"],
        r: Float[Array, " b"],
        conditioning: StageBConditioning,
        *,
        conditions: Mapping[str, Float[Array, " b"]] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
        deep: Float[Array, "b h2 w2 c2"] | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 c2"]]:
        """The noise in `x`, and what the inner levels gave on the way up.

        With `deep` of an earlier step, that stands for the inner levels, which are left out.
        """
        c = self.config
        time = time_embedding(r, {n: (conditions or {}).get(n) for n in c.timestep_conditions})
        kv = conditioning.keys_values
        maps = c.maps(x.shape[1], x.shape[2])
        x = layer_norm(self.embedding(pixel_unshuffle(x, c.patch_size))) + conditioning.maps
        height, width = x.shape[1:3]
        if (height, width) != maps:
            x = jnp.pad(x, ((0, 0), (0, maps[0] - height), (0, maps[1] - width), (0, 0)), mode="edge")
        kept, outer = deep, c.outer if deep is not None else len(c.levels)
        skips: list[Array] = []
        for i, level in enumerate(self.down[:outer]):
            x = self.downscaler[i - 1](layer_norm(x)) if i > 0 else x
            x, _ = level(x, time, kv[f"down_{i}"], dropout_keys=keys_for(dropout_keys, 2 * i))
            skips.append(x)
        for i, level in enumerate(self.up):
            own = len(c.levels) - 1 - i
            if own >= outer:
                continue
            if own == c.outer - 1:
                kept = x = x if deep is None else deep
            x = self.upscaler[i - 1](layer_norm(x)) if i > 0 else x
            x, _ = level(
                x, time, kv[f"up_{i}"], skip=skips[own] if i > 0 else None,
                dropout_keys=keys_for(dropout_keys, 2 * i + 1),
            )  # fmt: skip
        kept = x if kept is None else kept
        if (height, width) != maps:
            x = x[:, :height, :width]
        return pixel_shuffle(self.clf(layer_norm(x)), c.patch_size), kept
