"""One exported artefact samples at every size, and gives what jit gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from configs.tiny import config
from tests.recordings import relative_error
from ultrapixel_jax import sizes
from ultrapixel_jax.checkpoints.weights import load_weights
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import (
    guidance_step,
    image_keys,
    initial_noise,
    make_table,
    noise,
)
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.sampling.export import export_sampler
from ultrapixel_jax.target import platform

STEPS = 3


@pytest.fixture(scope="module")
def variables():
    return load_weights(None, config, dtype="float32", mesh=None, preview=True).variables


@pytest.fixture(scope="module")
def artefact():
    """Serialised and read back, as another program would get it."""
    return jax_export.deserialize(export_sampler(config, batch=1).serialize())


@pytest.mark.parametrize("pixels", [(512, 512), (640, 896), (1024, 300)])
def test_artefact_at_three_sizes(artefact, variables, pixels):
    bucket = sizes.Bucket.of(*pixels)
    rng = np.random.default_rng(0)
    c = config.stage_c
    prompts = Prompts(
        *(
            jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for shape in ((2, 77, c.c_clip_text), (2, c.c_clip_text_pooled), (2, c.c_clip_img))
        )
    )
    weight = sizes.up_guide_weight(*bucket.hr, config.guidance.up_guide_weights)
    scale = ScaleInputs(jnp.float32(sizes.scale(*bucket.hr)), jnp.float32(weight))
    table = jax.tree.map(jnp.asarray, make_table(type(config.sampling_c)(steps=STEPS)))
    capture = jnp.int32(guidance_step(STEPS, 0.05))
    keys = jnp.stack([image_keys([7], stream) for stream in (0, 1)])
    shapes = [(1, *hw, c.c_latent) for hw in (bucket.lr, bucket.hr)]

    low, high = artefact.call(
        variables["stage_c"], variables["guidance"], prompts, keys,
        *(jnp.zeros(shape, jnp.float32) for shape in shapes), scale, table, jnp.int32(STEPS), capture,
    )  # fmt: skip

    model = StageCModel(StageC(c), variables["stage_c"], Guidance(config.guidance), variables["guidance"])

    @jax.jit
    def direct(keys):
        starts = [initial_noise(keys[i], shapes[i][1:]) for i in (0, 1)]
        fresh = [lambda s, i=i: noise(keys[i], s + 1, shapes[i][1:]) for i in (0, 1)]
        return two_branch.sample(model, prompts, *starts, scale, table, STEPS, capture, *fresh)

    expected_low, expected_high = direct(keys)
    assert low.shape == shapes[0] and high.shape == shapes[1]
    assert relative_error(low, expected_low) < 1e-4
    assert relative_error(high, expected_high) < 1e-4


def test_an_artefact_for_another_platform_takes_its_branches(monkeypatch):
    traced_for = []
    monkeypatch.setattr(
        two_branch, "sample", lambda model, p, lr, hr, *rest: (traced_for.append(platform()), (lr, hr))[1]
    )
    assert export_sampler(config, platforms=("tpu",)).platforms == ("tpu",)
    assert export_sampler(config, platforms=("cpu", "tpu")).platforms == ("cpu", "tpu")
    assert traced_for == ["tpu", "cpu"]
