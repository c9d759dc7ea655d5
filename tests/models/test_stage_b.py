"""Stage B against its recording: three sizes, two of which do not halve evenly, and pixels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_models
from tests.recordings import load, nhwc, relative_error
from ultrapixel_jax.models.layers import pixel_shuffle, pixel_unshuffle
from ultrapixel_jax.models.stage_b import StageB, StageBConditioning


@pytest.fixture(scope="module")
def recorded():
    tensors, meta = load("stage_b")
    config = recorded_models.stage_b_config(meta)
    return tensors, StageB(config), recorded_models.named("stage_b", config)


@pytest.mark.parametrize(("key", "x"), [("out.0", 0), ("out.1", 1), ("out.2", 2), ("out.pixels", 0)])
def test_recording(recorded, key, x):
    t, module, variables = recorded
    pixels = jnp.asarray(nhwc(t["in.pixels"])) if key == "out.pixels" else None

    @jax.jit
    def run(x, r, clip, effnet):
        size = (x.shape[1], x.shape[2])
        c = module.apply(variables, clip, effnet, size, pixels, method="condition")
        return module.apply(variables, x, r, c, method="step")

    inputs = nhwc(t[f"in.x.{x}"]), t["in.r"], t["in.clip"][:, 0], nhwc(t["in.effnet"])
    found, deep = run(*inputs)
    assert relative_error(found, nhwc(t[key])) < 1e-4
    assert deep.shape[1:] == module.config.inner(*inputs[0].shape[1:3])
    if key == "out.2":  # the inner levels of this very pass, and others

        @jax.jit
        def again(x, r, clip, effnet, deep):
            c = module.apply(variables, clip, effnet, x.shape[1:3], method="condition")
            return module.apply(variables, x, r, c, deep=deep, method="step")[0]

        assert relative_error(again(*inputs, deep), found) < 1e-4
        assert relative_error(again(*inputs, 0 * deep), found) > 0.01


@pytest.mark.parametrize("number", [0, 1, 2])
def test_padded_maps_halve_evenly(recorded, number):
    """As if the noise and the condition had been padded before; sizes that halve evenly are as they were."""
    t, module, variables = recorded
    x, r, clip, effnet = nhwc(t[f"in.x.{number}"]), t["in.r"], t["in.clip"][:, 0], nhwc(t["in.effnet"])
    padding = StageB(dataclasses.replace(module.config, pads=True))
    patch, whole = module.config.patch_size, 2 ** (len(module.config.levels) - 1)
    sides = [side // patch for side in x.shape[1:3]]
    edges = ((0, 0), *((0, -side % whole) for side in sides), (0, 0))

    @jax.jit
    def run(x, r, clip, effnet):
        c = padding.apply(variables, clip, effnet, x.shape[1:3], method="condition")
        return padding.apply(variables, x, r, c, method="step")

    @jax.jit
    def expected(x, r, clip, effnet):
        c = module.apply(variables, clip, effnet, x.shape[1:3], method="condition")
        c = StageBConditioning(c.keys_values, jnp.pad(c.maps, edges, mode="edge"))
        wide = pixel_shuffle(jnp.pad(pixel_unshuffle(x, patch), edges, mode="edge"), patch)
        return module.apply(variables, wide, r, c)[:, : x.shape[1], : x.shape[2]]

    found, deep = run(x, r, clip, effnet)
    assert relative_error(found, expected(x, r, clip, effnet)) < 1e-5
    assert deep.shape[1:] == padding.config.inner(*x.shape[1:3])
    evenly = all(side % whole == 0 for side in sides)
    assert (relative_error(found, nhwc(t[f"out.{number}"])) < 1e-4) == evenly
    assert np.isfinite(found).all()
