"""Inputs of the channel MLP's two products, what they give in float64, and what any functions give."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import scipy.special


def inputs(channels: int, dtype: Any, side: tuple[int, int] = (11, 13)) -> dict[str, jax.Array]:
    """Of both products."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    features = 4 * channels

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    return {
        "x": normal(2, *side, channels).astype(dtype),
        "kernel": (normal(channels, features) / channels**0.5).astype(dtype),
        "bias": normal(features).astype(dtype),
        "factor": 1 + 0.3 * normal(2, features),
        "shift": normal(features),
        "second": (normal(features, channels) / features**0.5).astype(dtype),
        "last": normal(channels).astype(dtype),
    }


def in_float64(of: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(hidden units, result) by numpy."""
    v = {name: np.asarray(value, np.float64) for name, value in of.items()}
    y = v["x"] @ v["kernel"] + v["bias"]
    hidden = 0.5 * y * (1 + scipy.special.erf(y / np.sqrt(2)))
    scaled = hidden * v["factor"][:, None, None] + v["shift"]
    return hidden, v["x"] + scaled @ v["second"] + v["last"]


def outputs(
    of: dict[str, jax.Array], expand: Any, contract: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hidden units, sums of their squares, result)."""
    hidden, squares = expand(of["x"], of["kernel"], of["bias"])
    out = contract(of["x"], hidden, of["factor"], of["shift"], of["second"], of["last"])
    return tuple(np.asarray(a, np.float64) for a in (hidden, squares, out))  # pyright: ignore
