"""Stage C: the UNet that denoises the 42.67:1 latent from text (§3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ultrapixel_jax.config import StageCConfig
from ultrapixel_jax.models.blocks import KeysValues, Level, build_levels
from ultrapixel_jax.models.dropout import keys_for
from ultrapixel_jax.models.embeddings import time_embedding
from ultrapixel_jax.models.layers import Dtype, Linear, layer_norm, pixel_shuffle, pixel_unshuffle
from ultrapixel_jax.models.resize import resize_bilinear

Conditioning = dict[str, list[KeysValues]]
"""Keys and values of the conditioning tokens for every attention block, by level."""
Fuse = Callable[[str, Array], Array]
"""(place, map after the first A of that level) -> what replaces the map."""

PLACES = ("down_0", "down_1", "up_0", "up_1")
"""Where guidance is taken and given: after the first A of every level; `up_0` is the deepest."""

_small = nn.initializers.normal(0.02)


class StageCOutput(NamedTuple):
    """What a pass gives."""

    epsilon: Float[Array, "b h w c"]
    """The predicted noise."""
    features: dict[str, Float[Array, "b h w c"]]
    """The maps after the first A of every level, by place: the guidance of UltraPixel."""
    deep: Float[Array, "b h w c"]
    """What the inner levels gave on the way up."""


class StageC(nn.Module):
    """The text-to-latent UNet."""

    config: StageCConfig
    param_dtype: Dtype = jnp.float32
    scanned: bool = False
    """Weights of each level's blocks stacked, and run in a rematerialised scan (`models.scan`)."""

    def setup(self) -> None:
        """Create the layers; names are those of the released files where they have one."""
        c, dtype = self.config, self.param_dtype
        self.clip_txt_mapper = Linear(c.c_cond, kernel_init=_small, param_dtype=dtype)
        self.clip_txt_pooled_mapper = Linear(c.clip_tokens * c.c_cond, kernel_init=_small, param_dtype=dtype)
        self.clip_img_mapper = Linear(c.clip_tokens * c.c_cond, kernel_init=_small, param_dtype=dtype)
        init = nn.initializers.variance_scaling(0.02**2, "fan_avg", "uniform")
        # Biases are larger than what the small kernel makes of x, so that the norm keeps the scale of x.
        self.embedding = Linear(
            c.levels[0].channels, kernel_init=init, bias_init=nn.initializers.normal(0.05), param_dtype=dtype
        )
        self.down, self.up = build_levels(c.levels, c.timestep_conditions, dtype, self.scanned)
        # Entry i leads into level i + 1 on the way down, out of `up_i` on the way up.
        self.downscaler = [Linear(level.channels, param_dtype=dtype) for level in c.levels[1:]]
        self.upscaler = [Linear(level.channels, param_dtype=dtype) for level in reversed(c.levels[:-1])]
        self.clf = Linear(c.c_latent * c.patch_size**2, kernel_init=nn.initializers.zeros, param_dtype=dtype)

    def condition(
        self,
        clip_text: Float[Array, "b t e"],
        clip_text_pooled: Float[Array, "b p"],
        clip_img: Float[Array, "b *n i"],
    ) -> Conditioning:
        """Text states, pooled text and image vectors to keys and values for every attention block.

        There may be several image vectors of each. None of it depends on the noise level, so that sampling
        does this once per prompt.
        """
        c = self.config
        b = clip_text.shape[0]
        tokens = jnp.concatenate(
            [
                self.clip_txt_mapper(clip_text),
                self.clip_txt_pooled_mapper(clip_text_pooled).reshape(b, c.clip_tokens, c.c_cond),
                self.clip_img_mapper(clip_img).reshape(b, -1, c.c_cond),
            ],
            axis=1,
        )
        tokens = layer_norm(tokens)
        out = {f"down_{i}": level.keys_values(tokens) for i, level in enumerate(self.down)}
        return out | {f"up_{i}": level.keys_values(tokens) for i, level in enumerate(self.up)}

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        r: Float[Array, " b"],
        conditioning: Conditioning,
        *,
        conditions: Mapping[str, Float[Array, " b"]] | None = None,
        controls: Mapping[int, Float[Array, "b h3 w3 c3"]] | None = None,
        fuse: Fuse | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
        deep: Float[Array, "b h4 w4 c4"] | None = None,
    ) -> StageCOutput:
        """Predict the noise in `x`.

        Args:
            x: noised latent.
            r: noise level in [0, 1] (`diffusion.schedule.noise_level`).
            conditioning: from `condition`.
            conditions: values of `sca` and `crp`; 0 where absent.
            controls: ControlNet maps by ResBlock, counted in order of execution, strength included.
            fuse: guidance, called at each of `PLACES`.
            dropout_keys: one for each sample; nothing is dropped without.
            deep: of an earlier step: stands for the inner levels, which are left out with their places.
        """
        c = self.config
        given = {name: (conditions or {}).get(name) for name in c.timestep_conditions}
        time = time_embedding(r, given)
        features: dict[str, Array] = {}
        kept, first = deep, 0

        def run(place: str, level: Level, x: Array, skip: Array | None) -> Array:
            nonlocal first
            local = {i - first: m for i, m in (controls or {}).items() if 0 <= i - first < level.blocks}
            x, feature = level(
                x, time, conditioning[place], skip=skip, controls=local,
                fuse=None if fuse is None else functools.partial(fuse, place),
                dropout_keys=keys_for(dropout_keys, first),
            )  # fmt: skip
            first += level.blocks
            if feature is not None:
                features[place] = feature
            return x

        outer = c.outer if deep is not None else len(c.levels)
        x = layer_norm(self.embedding(pixel_unshuffle(x, c.patch_size)))
        skips: list[Array] = []
        for i, level in enumerate(self.down[:outer]):
            if i > 0:
                x = self.downscaler[i - 1](layer_norm(x))
                if c.switch_level:
                    x = resize_bilinear(x, (x.shape[1] // 2, x.shape[2] // 2))
            x = run(f"down_{i}", level, x, None)
            skips.append(x)
        if deep is not None:
            first += sum(level.blocks for level in (*self.down[outer:], *self.up[:-outer]))
        for i, level in enumerate(self.up):
            own = len(c.levels) - 1 - i
            if own >= outer:
                continue
            if own == c.outer - 1:
                kept = x = x if deep is None else deep
            if i > 0:
                x = layer_norm(x)
                if c.switch_level:
                    x = resize_bilinear(x, (x.shape[1] * 2, x.shape[2] * 2))
                x = self.upscaler[i - 1](x)
            x = run(f"up_{i}", level, x, skips[own] if i > 0 else None)
        epsilon = pixel_shuffle(self.clf(layer_norm(x)), c.patch_size)
        return StageCOutput(epsilon, features, x if kept is None else kept)
