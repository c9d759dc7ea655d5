"""Stage B against its recording: three sizes, two of which do not halve evenly, and pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests import recorded_models
from tests.recordings import load, nhwc, relative_error
from ultrapixel_jax.models.stage_b import StageB


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
