"""Decoding to pixels: stage A tile by tile, or the small previewer at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.sampling.stages.base import Setup, Stage
from ultrapixel_jax.sampling.tiling import decode_tiled, halo_for, tile_for_budget, to_uint8
from ultrapixel_jax.sizes import HW

# The decoders run in float32 whatever the dtype: bfloat16 has fewer values than a byte in [0, 1].


class TiledDecoder(Stage):
    """Stage A's decoder."""

    networks = ("stage_a",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        self._config, stage_a = config.stage_a, StageA(config.stage_a)

        def decode(v: Any, z: Any) -> Any:
            return stage_a.apply(v["stage_a"], z, method="decode")

        self._decode = setup.program("decode", decode, batched=[1], dtype=jnp.float32, wide_maps=True)

    def tile(self, batch: int, decode_bytes: int) -> int:
        """Side of the largest tile, in latents, that decodes within `decode_bytes`.

        Raises:
            UserError: not even the smallest does.
        """
        return tile_for_budget(decode_bytes, self._config, jnp.float32, batch)

    def __call__(
        self, latent: Float[Array, "b h w c"], size: HW, tile: int
    ) -> UInt8[np.ndarray, "b hp wp 3"]:
        """Pictures of `size` in pixels, decoded in tiles of `tile` latents."""
        return decode_tiled(
            lambda z: self._decode(self.variables, z),
            latent, tile, halo_for(self._config), size=size, as_uint8=True,
        )  # fmt: skip


class PreviewDecoder(Stage):
    """The previewer: eight pixels for each of stage C's latents, on each side."""

    networks = ("previewer",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        previewer = Previewer(config.previewer)

        def preview(v: Any, z: Any) -> Any:
            return to_uint8(previewer.apply(v["previewer"], z))  # pyright: ignore[reportArgumentType]

        self._preview = setup.program("preview", preview, batched=[1], dtype=jnp.float32, wide_maps=True)

    def __call__(self, latent: Float[Array, "b h w c"]) -> UInt8[Array, "b h8 w8 3"]:
        """Small pictures of stage C's latent, on the device."""
        return self._preview(self.variables, latent)
