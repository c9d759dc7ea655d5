"""Dropout: a mask of its own for each sample, block and repetition; the same unrolled and scanned."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.models.blocks import Level
from ultrapixel_jax.models.dropout import dropout, keys_for

BLOCKS, CHANNELS = 4, 3
KEYS = jax.random.split(jax.random.key(5), 2)
X = jnp.zeros((2, 5, 4, CHANNELS))


def block(number: int) -> dict[str, Any]:
    """Weights of a C that adds 10ⁿ where its first hidden channels are kept, whatever it gets."""
    hidden = 4 * CHANNELS
    first = jnp.eye(hidden, CHANNELS) * 10.0**number / 0.8413447  # GELU(1)
    return {
        "depthwise": {"kernel": jnp.zeros((3, 3, CHANNELS)), "bias": jnp.zeros(CHANNELS)},
        "expand": {"kernel": jnp.zeros((CHANNELS, hidden)), "bias": jnp.ones(hidden)},
        "grn": {"gamma": jnp.zeros(hidden), "beta": jnp.zeros(hidden)},
        "contract": {"kernel": first, "bias": jnp.zeros(CHANNELS)},
    }


def masks(scanned: bool, repeats: int, keys: Any = KEYS, kept: int = 2) -> np.ndarray:
    """(block, sample, height, width, channel): in how many repetitions of each block a value was kept, where
    one that is kept is multiplied by `kept`.
    """
    blocks = [block(n) for n in range(BLOCKS)]
    params: dict[str, Any] = {f"layer_{n}": b for n, b in enumerate(blocks[: 1 if scanned else BLOCKS])}
    if scanned:
        params["rest"] = {"layer_0": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks[1:])}
    if repeats > 1:
        params["repeat_mapper_0"] = {"kernel": jnp.eye(CHANNELS), "bias": jnp.zeros(CHANNELS)}
    config = LevelConfig(CHANNELS, 1, BLOCKS, BLOCKS, layers="C", dropout=0.5)
    level = Level(config, BLOCKS, repeats, (), 1.0, scanned=scanned)
    out, _ = level.apply({"params": params}, X, {}, [], dropout_keys=keys)  # pyright: ignore
    total = np.rint(np.asarray(out) / kept).astype(int)
    return np.stack([total // 10**n % 10 for n in range(BLOCKS)])


def test_blocks_and_repetitions_have_masks_of_their_own() -> None:
    once, twice = masks(False, 1), masks(False, 2)
    second = twice - once
    found = [*once, *second]
    assert all(set(np.unique(mask)) == {0, 1} for mask in found)
    for a, b in itertools.combinations(found, 2):
        assert (a != b).any()
    assert (once[0][0] != once[0][1]).any()  # those of two samples


@pytest.mark.parametrize("repeats", [1, 2])
def test_scanned_blocks_drop_what_they_drop_unrolled(repeats: int) -> None:
    np.testing.assert_array_equal(masks(True, repeats), masks(False, repeats))


def test_nothing_is_dropped_without_keys() -> None:
    np.testing.assert_array_equal(masks(False, 1, None, kept=1), np.ones((BLOCKS, *X.shape)))
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, KEYS) is x and keys_for(None, 3) is None


def test_a_sample_drops_the_same_in_any_batch() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 40, 50))
    out = dropout(x, 0.3, KEYS)
    np.testing.assert_array_equal(dropout(x[1:], 0.3, KEYS[1:]), out[1:])
    kept = np.asarray(out != 0)
    np.testing.assert_allclose(kept.mean(), 0.7, atol=0.03)
    np.testing.assert_allclose(np.asarray(out)[kept], np.asarray(x)[kept] / 0.7, rtol=1e-6)
