"""Resampling of maps: by torch's rules, and antialiased."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dim = Any
"""A side of a map: an int, or a symbol under `jax.export`."""
Size = tuple[Dim, Dim]
"""Height and width."""


def resize_bilinear(x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b h2 w2 c"]:
    """Bilinear with aligned corners: the first and last pixels of both maps coincide."""
    for axis, target in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != target:
            x = _lerp(x, axis, target)
    return x


def _lerp(x: Array, axis: int, target: Dim) -> Array:
    source = x.shape[axis]
    last = jnp.asarray(source - 1, jnp.float32)
    steps = jnp.maximum(jnp.asarray(target - 1, jnp.float32), 1.0)
    position = jnp.arange(target, dtype=jnp.float32) * (last / steps)
    low = jnp.clip(jnp.floor(position), 0.0, last)
    weight = (position - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    low_index = low.astype(jnp.int32)
    high_index = jnp.minimum(low_index + 1, source - 1)
    a = jnp.take(x, low_index, axis=axis).astype(jnp.float32)
    b = jnp.take(x, high_index, axis=axis).astype(jnp.float32)
    return (a * (1.0 - weight) + b * weight).astype(x.dtype)


def resize_nearest(x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b h2 w2 c"]:
    """Nearest neighbour: `min(floor(float32(i)·float32(h/H)), h − 1)`, torch's rule.

    In exact arithmetic a few sizes would pick another source pixel.
    """
    for axis, target in ((1, size[0]), (2, size[1])):
        source = x.shape[axis]
        ratio = jnp.asarray(source, jnp.float32) / jnp.asarray(target, jnp.float32)
        index = jnp.floor(jnp.arange(target, dtype=jnp.float32) * ratio).astype(jnp.int32)
        x = jnp.take(x, jnp.minimum(index, source - 1), axis=axis)
    return x


def resize_antialiased(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Linear, antialiased where it shrinks: that of `jax.image.resize`, whose weights are of 64 bits where
    jax has these.
    """
    axes = [axis for axis, side in ((1, size[0]), (2, size[1])) if x.shape[axis] != side]
    shape = (x.shape[0], *size, x.shape[3])
    scale = jnp.asarray([shape[axis] / x.shape[axis] for axis in axes], jnp.float32)
    return jax.image.scale_and_translate(x, shape, axes, scale, jnp.zeros_like(scale), "linear")
