from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrapixel_jax.config import StageAConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.sampling.tiling import decode_tiled, halo_for, places, tile_for_budget

CONFIG = StageAConfig(c_hidden=8, bottleneck_blocks=1, codebook_size=4)
HALO = halo_for(CONFIG)


@functools.cache
def decoder():
    """A jitted decoder whose blocks do something, and its variables closed over."""
    module = StageA(CONFIG)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    gammas = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1 if path[-1].key == "gammas" else x, variables
    )
    return lambda: jax.jit(lambda z: module.apply(gammas, z, method="decode"))


def latent(h: int, w: int, batch: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(h * 100 + w).normal(size=(batch, h, w, 4)), jnp.float32)


def assert_equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@functools.cache
def shared_decoder():
    return decoder()()


SIDES = st.sampled_from([1, 9, 18])  # few, as every new shape compiles a program


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, st.sampled_from([5, 8]), st.data())
def test_tiled_equals_whole_image(h, w, tile, data):
    decode, z = shared_decoder(), latent(h, w)
    whole = np.asarray(decode(z))
    height, width = data.draw(st.integers(1, 4 * h)), data.draw(st.integers(1, 4 * w))
    assert_equal(decode_tiled(decode, z, tile, HALO), whole)
    cropped = decode_tiled(decode, z, tile, HALO, size=(height, width))
    assert_equal(cropped, whole[:, :height, :width])


@pytest.mark.parametrize("size", [(30, 41), (64, 17), (33, 12)])
def test_one_program_serves_every_window(size):
    decode = decoder()()
    decode_tiled(decode, latent(*size), 6, HALO)
    assert decode._cache_size() == 1


def test_a_batch_is_decoded_together():
    decode, z = decoder()(), latent(19, 23, batch=2)
    assert_equal(decode_tiled(decode, z, 7, HALO), np.asarray(decode(z)))


def test_the_halo_is_as_small_as_it_can_be():
    decode, z = decoder()(), latent(24, 24)
    error = np.abs(decode_tiled(decode, z, 6, HALO - 1) - np.asarray(decode(z))).max()
    assert error > 1e-3


def test_bytes_are_clipped_and_rounded():
    decode, z = decoder()(), 5 * latent(19, 23)
    found = decode_tiled(decode, z, 7, HALO, as_uint8=True)
    expected = np.clip(np.asarray(decode(z)), 0, 1) * 255
    assert found.dtype == np.uint8
    assert found.min() == 0
    assert found.max() == 255
    assert np.abs(found - expected).max() < 0.501


def test_a_crop_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="cannot crop to 81×8"):
        decode_tiled(decoder()(), latent(20, 20), 8, HALO, size=(81, 8))


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 20), st.data())
def test_places_cover_and_stay_inside(length, tile, halo, data):
    wanted = data.draw(st.integers(1, length))
    covered = np.zeros(length, bool)
    for window, core, (side, kept) in places(length, tile, halo, wanted):
        assert 0 <= window <= core
        assert core + kept <= window + side <= length
        # Either the full halo, or the image's border.
        assert core - window >= halo or window == 0
        assert window + side - core - kept >= halo or window + side == length
        covered[core : core + kept] = True
    assert covered[:wanted].all()


def test_tile_follows_the_budget():
    config = StageAConfig()
    tile = tile_for_budget(2 * 2**30, config, jnp.float32)
    assert tile % 8 == 0
    assert tile > 200
    assert tile_for_budget(2 * 2**30, config, jnp.bfloat16) > tile
    assert tile_for_budget(2 * 2**30, config, jnp.float32, batch=4) < tile
    with pytest.raises(UserError, match="budget of 10 MiB is too small to decode a tile; give at least"):
        tile_for_budget(10 * 2**20, config, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("budget", [256 * 2**20, 1024 * 2**20])
def test_the_full_size_decoder_keeps_within_the_budget(dtype, budget):
    config = StageAConfig()
    module = StageA(config, dtype)
    side = tile_for_budget(budget, config, dtype) + 2 * halo_for(config)
    specs = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    z = jax.ShapeDtypeStruct((1, side, side, 4), dtype)
    program = jax.jit(lambda v, z: module.apply(v, z, method="decode")).lower(specs, z).compile()
    memory = program.memory_analysis()
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes + z.size * z.dtype.itemsize
    assert 0.5 * budget < used <= budget


def test_the_halo_follows_the_blocks():
    assert halo_for(StageAConfig()) == 13
    assert halo_for(dataclasses.replace(CONFIG, bottleneck_blocks=3)) == 4
