"""Low-rank changes beside stage C's weights: what adding them to the weights gives, and does to training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config as tiny
from tests.models.filled import filled
from tests.recordings import relative_error
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig, LoraConfig
from ultrapixel_jax.models import lora, scan
from ultrapixel_jax.models.layers import low_rank
from ultrapixel_jax.models.stage_c import StageC

STAGE_C = dataclasses.replace(
    tiny.stage_c, levels=(LevelConfig(32, 4, down_blocks=1, up_blocks=1), LevelConfig(32, 4, 2, 1))
)

ALPHA = 2.0
CONFIG = LoraConfig(STAGE_C, rank=3, alpha=ALPHA, modules=(".*",), text_width=48)


def noisy(tree, scale):
    return jax.tree.map(lambda x: x + scale * jax.random.normal(jax.random.key(x.size), x.shape), tree)


@pytest.fixture(scope="module")
def weights():
    stage_c = jax.tree.map(jnp.asarray, filled("stage_c", STAGE_C))
    changes = lora.init(jax.random.key(1), CONFIG)
    return stage_c, noisy(changes, 0.3)


def loss(variables, scanned):
    module, keys = StageC(STAGE_C, scanned=scanned), map(jax.random.key, range(4))
    shapes = ((2, 5, 48), (2, 48), (2, 40), (2, 6, 6, 16))
    *text, x = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    conditioning = module.apply(variables, *text, method="condition")
    epsilon = module.apply(variables, x, jnp.asarray([0.3, 0.7]), conditioning).epsilon
    return jnp.sin(epsilon).mean(), epsilon


def test_beside_the_weights_is_added_to_them(weights) -> None:
    stage_c, changes = weights
    stacked = scan.stack(stage_c, STAGE_C)

    def merged(changes):
        return loss(lora.merge(stage_c, [(lora.changes(changes["params"], ALPHA), 1.0)]), scanned=False)

    def beside(changes):
        return loss({**stacked, "lora": lora.branches(changes, CONFIG, scanned=True)}, scanned=True)

    def run(function):
        compute = jax.value_and_grad(function, has_aux=True)
        return jax.jit(compute, compiler_options=UNOPTIMISED)(changes)

    (_, expected), gradient = run(merged)
    (_, found), other = run(beside)
    assert relative_error(found, expected) < 1e-5
    whole, same = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (gradient, other))
    assert relative_error(same, whole) < 1e-5
    # They change something: every layer's, and the result.
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves({**other["params"], "embeddings": 1.0}))


def test_a_change_that_bfloat16_weights_cannot_hold() -> None:
    """After a step or two of Adam a change is a thousandth of the weights, of which bfloat16 keeps 256."""
    shapes = ((64, 96), (4, 64), (96, 4))
    rng = np.random.default_rng(0)
    kernel, down, up = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    kernel, down = kernel.astype(jnp.bfloat16), 1e-3 * down
    change = (up @ down).T / 4
    beside = low_rank(jnp.eye(64, dtype=jnp.bfloat16), jnp.asarray(down), jnp.asarray(up))
    merged = (kernel.astype(np.float32) + change).astype(jnp.bfloat16).astype(np.float32)
    assert relative_error(merged - kernel.astype(np.float32), change) > 0.5
    assert relative_error(beside, change) < 0.01
