"""A scanned network computes what the unrolled one does, forward and backward, in less memory."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config
from tests.recordings import relative_error
from ultrapixel_jax.checkpoints.weights import load_weights
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.models import components
from ultrapixel_jax.models.scan import stack, unstack
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC

LEVELS = (LevelConfig(32, 4, 1, 2), LevelConfig(32, 4, 3, 1))
STAGE_C = dataclasses.replace(config.stage_c, levels=LEVELS)
STAGE_B = dataclasses.replace(
    config.stage_b,
    levels=(LevelConfig(16, 1, 1, 3, up_repeats=2, layers="CT"), LevelConfig(32, 4, 2, 1)),
)


def variables(name, cfg):
    """Named weights, so that no output is zero."""
    cascade = dataclasses.replace(config, guidance=None, **{name: cfg})
    return load_weights(None, cascade, dtype="float32", mesh=None, preview=False).variables[name]


def stage_c_loss(scanned, variables, x):
    module = StageC(STAGE_C, scanned=scanned)
    inputs = (jnp.full((1, 5, 48), 0.3), jnp.full((1, 48), -0.2), jnp.full((1, 40), 0.1))
    conditioning = module.apply(variables, *inputs, method="condition")
    # In the first block of a level, in others, and in the last one.
    controls = {i: jnp.tile(jnp.sin(i + x[:, ::2, ::2]), (1, 1, 1, 2)) for i in (0, 1, 3, 5, 6)}
    out = module.apply(variables, x, jnp.array([0.4]), conditioning, controls=controls)
    return jnp.mean(jnp.sin(out.epsilon)) + sum(jnp.mean(f) for f in out.features.values())


def stage_b_loss(scanned, variables, x):
    module = StageB(STAGE_B, scanned=scanned)
    effnet = jnp.full((1, 3, 3, 16), 0.5)
    conditioning = module.apply(
        variables, jnp.full((1, 48), 0.2), effnet, (x.shape[1], x.shape[2]), method="condition"
    )
    return jnp.mean(jnp.sin(module.apply(variables, x, jnp.array([0.4]), conditioning)))


@pytest.mark.parametrize(
    ("name", "cfg", "loss", "shape"),
    [("stage_c", STAGE_C, stage_c_loss, (1, 6, 7, 16)), ("stage_b", STAGE_B, stage_b_loss, (1, 8, 12, 4))],
)
def test_scanned_equals_unrolled(name, cfg, loss, shape):
    v = variables(name, cfg)
    stacked = stack(v, cfg)
    assert "rest" in stacked["params"]["down_1"] and "rest" not in v["params"]["down_1"]
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked, cfg), dict(v))
    x = jax.random.normal(jax.random.key(0), shape)

    def with_gradient(v, *, scanned):
        function = jax.value_and_grad(functools.partial(loss, scanned), (0, 1))
        return jax.jit(function, compiler_options=UNOPTIMISED)(v, x)

    value, (dv, dx) = with_gradient(v, scanned=False)
    value_s, (dv_s, dx_s) = with_gradient(stacked, scanned=True)
    assert abs(value - value_s) < 1e-5 * max(abs(value), 1)
    assert relative_error(dx_s, dx) < 1e-4
    for a, b in zip(jax.tree.leaves(unstack(dv_s, cfg)), jax.tree.leaves(dict(dv)), strict=True):
        if np.abs(b).max() > 1e-6:
            assert relative_error(a, b) < 1e-3


@pytest.mark.parametrize(("name", "cfg"), [("stage_c", STAGE_C), ("stage_b", STAGE_B)])
def test_shapes_without_tracing_every_block(name, cfg):
    levels = (
        dataclasses.replace(cfg.levels[0], down_blocks=4),
        dataclasses.replace(cfg.levels[1], up_blocks=3),
    )
    cfg = dataclasses.replace(cfg, levels=levels)
    expected = jax.eval_shape(lambda: components.initialise(name, cfg, jax.random.key(0), jnp.bfloat16))
    assert components.abstract(name, cfg, jnp.bfloat16) == expected


def test_temporaries_do_not_grow_with_the_number_of_blocks():
    def temporaries(blocks: int, scanned: bool) -> int:
        cfg = dataclasses.replace(STAGE_C, levels=(LEVELS[0], LevelConfig(32, 4, blocks, 1)))
        v = components.abstract("stage_c", cfg)
        v = jax.eval_shape(lambda v: stack(v, cfg), v) if scanned else v

        def loss(x, v):
            module = StageC(cfg, scanned=scanned)
            inputs = (jnp.zeros((1, 5, 48)), jnp.zeros((1, 48)), jnp.zeros((1, 40)))
            conditioning = module.apply(v, *inputs, method="condition")
            return jnp.sum(module.apply(v, x, jnp.array([0.4]), conditioning).epsilon)

        x = jax.ShapeDtypeStruct((1, 32, 32, 16), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(x, v).compile(UNOPTIMISED).memory_analysis().temp_size_in_bytes

    # A scanned block leaves its input behind (32·32·32·4 bytes); an unrolled one all its activations.
    added = temporaries(4, scanned=True) - temporaries(2, scanned=True)
    added_unrolled = temporaries(4, scanned=False) - temporaries(2, scanned=False)
    assert added < 0.25 * added_unrolled
