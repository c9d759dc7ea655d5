"""Decoding tile by tile, exactly (§8).

Stage A's decoder is local: an output pixel depends on no more than `bottleneck_blocks + 1` latent pixels
in each direction. So a window with that much halo around a tile gives the tile's pixels exactly. Every
window has the same size, so one program is compiled; near the border a window is shifted inward, so
that the replicate padding acts at the true border only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ultrapixel_jax.config import StageAConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import by_batch, fetch

BYTES_PER_LATENT = {"float32": 32_000, "bfloat16": 30_000}
"""Memory of the released decoder per latent pixel of the window, weights apart.

Measured on a CPU: how much the process grows from windows of 66² to 194² (float32: 29 to 32 kB) and of
74² to 226² (bfloat16: 28 to 30 kB), beside some 80 MB once. XLA's `memory_analysis` names 27,648 and
19,968 of it, the same at every size from 32² to 256²; the rest is scratch of the CPU's kernels and the
output. The outer block's MLP sets them, hence in proportion to the width.
"""
MEASURED_WIDTH = 384
"""`c_hidden` of that decoder."""
GRANULE = 8
"""Tiles from a budget are multiples of this many latent pixels."""


def halo_for(config: StageAConfig) -> int:
    """Latent pixels around a tile that its pixels depend on: one per block before the upsampling, and
    one for the transposed convolution and the block behind it together."""
    return config.bottleneck_blocks + 1


def tile_for_budget(budget: int, config: StageAConfig, dtype: Any, batch: int = 1) -> int:
    """Side of the largest tile, in latent pixels, whose window decodes within `budget` bytes.

    Args:
        budget: bytes for temporaries and the window's output; the decoder's weights not counted.
        config: stage A.
        dtype: compute dtype.
        batch: images decoded together.

    Raises:
        UserError: not even the smallest tile fits.
    """
    per_pixel = BYTES_PER_LATENT[jnp.dtype(dtype).name] * config.c_hidden / MEASURED_WIDTH * batch
    halo = halo_for(config)
    tile = (math.isqrt(int(budget / per_pixel)) - 2 * halo) // GRANULE * GRANULE
    if tile < GRANULE:
        least = math.ceil((GRANULE + 2 * halo) ** 2 * per_pixel / 2**20)
        raise UserError(
            f"a memory budget of {budget / 2**20:.0f} MiB is too small to decode a tile; "
            f"give at least {least} MiB"
        )
    return tile


def decode_tiled(
    decode: Callable[[Float[Array, "b h w c"]], Float[Array, "b hp wp 3"]],
    latent: Float[Array, "b h w c"],
    tile: int,
    halo: int,
    *,
    scale: int = 4,
    size: tuple[int, int] | None = None,
    as_uint8: bool = False,
) -> Float[np.ndarray, "b H W 3"] | UInt8[np.ndarray, "b H W 3"]:
    """`decode(latent)` computed tile by tile and put together on the host.

    On a mesh the images of a batch are decoded each on its own devices, and only finished tiles leave them.
    Where processes share the mesh, each of them gets all of the pixels.

    Args:
        decode: the decoder, compiled (`jax.jit`), so that all windows share one program.
        latent: on the device or on a mesh.
        tile: side of a tile in latent pixels. A side of the latent no longer than `tile + 2·halo` is
            decoded whole.
        halo: latent pixels that an output pixel depends on in each direction, `halo_for(config)`.
        scale: output pixels per latent pixel.
        size: height and width in pixels to crop to; all of the image where None.
        as_uint8: clip to [0, 1] and convert to bytes on the device; else float32, not clipped.
    """
    b, h, w, _ = latent.shape
    height, width = size or (h * scale, w * scale)
    if not (0 < height <= h * scale and 0 < width <= w * scale):
        raise ValueError(f"cannot crop to {height}×{width}: the image has {h * scale}×{w * scale} pixels")
    # The places that cover what is asked for; latents beyond it serve as halo only.
    rows = list(places(h, tile, halo, -(-height // scale)))
    columns = list(places(w, tile, halo, -(-width // scale)))

    latent = by_batch(latent)  # rows that devices divide are gathered once, not for every window
    out = np.empty((b, height, width, 3), np.uint8 if as_uint8 else np.float32)
    for window_y, core_y, (side_y, kept_y) in rows:
        for window_x, core_x, (side_x, kept_x) in columns:
            start = np.asarray([window_y, window_x], np.int32)
            offset = np.asarray([(core_y - window_y) * scale, (core_x - window_x) * scale], np.int32)
            image = decode(cut(latent, start, (side_y, side_x)))
            core = fetch(finish(image, offset, (kept_y * scale, kept_x * scale), as_uint8))
            y, x = core_y * scale, core_x * scale
            target = out[:, y : y + kept_y * scale, x : x + kept_x * scale]  # numpy clips at the crop
            target[...] = core[:, : target.shape[1], : target.shape[2]]
    return out


def places(length: int, tile: int, halo: int, wanted: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Where windows and tiles lie along one side of a latent.

    Yields the window's start, the tile's start, and (window's length, tile's length); the lengths are
    the same throughout. Tiles cover the first `wanted` of `length` pixels; the last one overlaps its
    neighbour where they do not divide evenly.
    """
    window = tile + 2 * halo
    if length <= window:
        yield 0, 0, (length, length)
        return
    for start in range(0, wanted, tile):
        core = min(start, length - tile)
        yield min(max(core - halo, 0), length - window), core, (window, tile)


@functools.partial(jax.jit, static_argnames="lengths")
def cut(
    latent: Float[Array, "b h w c"], start: Int[Array, "2"], lengths: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """The window of `latent` that begins at (y, x); the start is data, so nothing compiles anew."""
    b, _, _, c = latent.shape
    zero = np.int32(0)  # as wide as the start, whatever jax makes of a plain number
    return jax.lax.dynamic_slice(latent, (zero, start[0], start[1], zero), (b, *lengths, c))


@functools.partial(jax.jit, static_argnames=("lengths", "as_uint8"))
def finish(
    image: Float[Array, "b h w 3"], start: Int[Array, "2"], lengths: tuple[int, int], as_uint8: bool
) -> Float[Array, "b h2 w2 3"] | UInt8[Array, "b h2 w2 3"]:
    """The tile of a decoded window, as float32 or as bytes."""
    core = cut(image, start, lengths).astype(jnp.float32)
    return to_uint8(core) if as_uint8 else core


def to_uint8(image: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """Intensities in [0, 1], clipped, to bytes, rounded to the nearest."""
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)
