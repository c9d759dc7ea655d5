"""Sinusoidal embeddings of noise level and scale, and the Fourier features of the INR (§2, §4).

The angles reach 10,000 rad, where one unit in the last place of a float32 is 1e-3. So every constant
is a table made on the host, rounded exactly where the released implementation rounds it, and the
products are kept in its order: XLA would otherwise fold the two constant factors into one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax.models.resize import Dim

MAX_POSITIONS = 10_000


def _frequencies(dim: int) -> np.ndarray:
    """`exp(−i·ln(10000)/(dim/2 − 1))`: exponent in float32, exp correctly rounded."""
    half = dim // 2
    exponent = np.arange(half, dtype=np.float32) * np.float32(-math.log(MAX_POSITIONS) / (half - 1))
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


def sinusoidal(r: Float[Array, " b"], dim: int = 64) -> Float[Array, "b dim"]:
    """Embed `r` in [0, 1] as `[sin(10000·r·f), cos(10000·r·f)]`, in float32 (§2, time embedding)."""
    scaled = jax.lax.optimization_barrier(r.astype(jnp.float32) * np.float32(MAX_POSITIONS))
    angle = scaled[:, None] * jnp.asarray(_frequencies(dim))[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def time_embedding(
    r: Float[Array, " b"], conditions: dict[str, Float[Array, " b"] | None], dim: int = 64
) -> dict[str, Float[Array, "b dim"]]:
    """Embeddings of the noise level, under `r`, and of each further condition, under its name.

    A condition that is not given is embedded as 0, which is not a vector of zeros.
    """
    out = {"r": sinusoidal(r, dim)}
    for name, value in conditions.items():
        out[name] = sinusoidal(jnp.zeros_like(r) if value is None else value, dim)
    return out


def pixel_centres(size: Dim) -> Float[Array, " n"]:
    """Coordinates in [−1, 1] of the centres of `size` pixels: `−1 + 2·(0.5 + i)/size`, float32."""
    i = jnp.arange(size, dtype=jnp.float32)
    # XLA would turn the division by one number into a product with its reciprocal, which rounds
    # differently: 1e-4 in the features of the highest frequency.
    divisor = jax.lax.optimization_barrier(jnp.full_like(i, size))
    return -1.0 + (2.0 * (0.5 + i)) / divisor


def fourier_features(height: Dim, width: Dim, frequencies: int = 64) -> Float[Array, "n f"]:
    """Fourier features of an H×W grid, row-major, `4·frequencies` values each (§4, step 4).

    `[cos(π p), sin(π p)]` with `p = [y·w, x·w]` and `w = exp(linspace(0, ln 1024, frequencies))`.
    """
    w = jnp.asarray(np.exp(np.linspace(0.0, math.log(1024.0), frequencies).astype(np.float32)))

    def angles(size: Dim) -> Array:
        product = jax.lax.optimization_barrier(pixel_centres(size)[:, None] * w[None])
        return product * np.float32(math.pi)

    y = jnp.broadcast_to(angles(height)[:, None], (height, width, frequencies))
    x = jnp.broadcast_to(angles(width)[None], (height, width, frequencies))
    p = jnp.concatenate([y, x], axis=-1).reshape(height * width, 2 * frequencies)
    return jnp.concatenate([jnp.cos(p), jnp.sin(p)], axis=-1)
