"""Muon: which parameters it takes, and what it does with them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.models.filled import SMALL, filled
from tests.training.steps import config_of
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.models import scan
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import OptimizerConfig, StageCTask
from ultrapixel_jax.training.optimizer import is_hidden_matrix, make_optimizer
from ultrapixel_jax.training.tasks import make_task

RATE, DECAY = 1e-2, 0.1
MUON = OptimizerConfig(algorithm="muon", learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0)


def some_params(rng: np.random.Generator) -> dict[str, Any]:
    shapes = {
        "embedding": {"kernel": (4, 8)},
        "layer": {"kernel": (12, 8), "bias": (8,)},
        "depthwise": {"kernel": (3, 3, 8)},
        "token_embedding": (10, 8),
        "clf": {"kernel": (8, 4)},
    }
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree)


def updates(config: OptimizerConfig, params: Any, gradients: Any) -> Any:
    optimizer = make_optimizer(config)
    update = jax.jit(
        lambda g, p: optimizer.update(g, optimizer.init(p), p, rate=RATE)[0], compiler_options=UNOPTIMISED
    )
    return update(gradients, params)


def test_a_matrix_moves_along_the_nearest_orthogonal_one_and_the_rest_as_with_adamw() -> None:
    rng = np.random.default_rng(0)
    params, gradients = some_params(rng), some_params(rng)
    found = updates(MUON, params, gradients)
    reference = optax.adamw(RATE, weight_decay=DECAY, nesterov=True)
    adamw = reference.update(gradients, reference.init(params), params)[0]
    hidden = found["layer"].pop("kernel")
    del adamw["layer"]["kernel"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), found, adamw)

    step = -hidden / RATE - DECAY * params["layer"]["kernel"]
    u, _, v = np.linalg.svd(gradients["layer"]["kernel"], full_matrices=False)
    cosine = (step * (u @ v)).sum() / np.linalg.norm(step) / np.linalg.norm(u @ v)
    assert cosine > 0.95
    rms = np.sqrt(np.square(step).mean())
    assert 0.1 < rms < 0.25  # 0.2 of an orthogonal one's, whose singular values lie in 0.7 to 1.2 here


def test_stacked_blocks_get_the_updates_of_single_ones() -> None:
    model = dataclasses.replace(SMALL.stage_c, levels=(LevelConfig(16, 2, 2, 1),))
    single = jax.tree.map(jnp.asarray, filled("stage_c", model))
    gradients = random_like({"params": single["params"]}, 0)
    stacked = scan.stack({"params": single["params"]}, model)["params"]
    stacked_gradients = scan.stack(gradients, model)["params"]
    expected = scan.stack({"params": updates(MUON, single["params"], gradients["params"])}, model)["params"]
    found = updates(MUON, stacked, stacked_gradients)
    taken = jax.tree_util.tree_map_with_path(is_hidden_matrix, stacked)
    assert any(take and x.ndim == 3 for take, x in zip(jax.tree.leaves(taken), jax.tree.leaves(stacked)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected)


def test_moments_lie_where_their_parameters_do() -> None:
    config = config_of(StageCTask(), optimizer=MUON)
    task, optimizer = make_task(config), make_optimizer(MUON)
    mesh = make_mesh({"data": 2, "fsdp": 4})
    state = jax.eval_shape(lambda: states.creator(task, optimizer)({}))
    at = states.state_shardings(state, optimizer, mesh)
    assert jax.tree.structure(at.optimizer) == jax.tree.structure(state.optimizer)
    where = {
        jax.tree_util.keystr(path).split("'stage_c'", 1)[1]: s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(at.params)
    }
    seen = set()
    for path, s in jax.tree_util.tree_leaves_with_path(at.optimizer):
        name = jax.tree_util.keystr(path)
        if "'stage_c'" in name:
            name = name.split("'stage_c'", 1)[1]
            assert s.spec == where[name], name
            seen.add(name)
    assert seen == set(where)


def test_matrices_together_move_as_each_does_with_optax() -> None:
    params = filled("stage_c", SMALL.stage_c)["params"]
    matrix = optax.contrib.MuonDimensionNumbers(0, 1)
    reference = optax.contrib.muon(
        RATE, weight_decay=DECAY, adam_b1=MUON.betas[0], adam_b2=MUON.betas[1], adam_weight_decay=DECAY,
        eps=MUON.epsilon, consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree_util.tree_map_with_path(
            lambda *x: matrix if is_hidden_matrix(*x) else None, params
        ),
    )  # fmt: skip
    both = make_optimizer(MUON), optax.with_extra_args_support(reference)
    states_of = [optimizer.init(params) for optimizer in both]
    update = [
        jax.jit(functools.partial(optimizer.update, rate=RATE), compiler_options=UNOPTIMISED)
        for optimizer in both
    ]
    for step in range(3):
        gradients = random_like(params, step)
        found, states_of[0] = update[0](gradients, states_of[0], params)
        expected, states_of[1] = update[1](gradients, states_of[1], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected)


def test_it_lowers_a_loss() -> None:
    rng = np.random.default_rng(1)
    target = jnp.asarray(rng.standard_normal((6, 6)), jnp.float32)
    params = {"layer": {"kernel": jnp.zeros((6, 6))}}
    optimizer = make_optimizer(dataclasses.replace(MUON, weight_decay=0.0))
    state, update = optimizer.init(params), jax.jit(functools.partial(optimizer.update, rate=0.5))

    def loss(p: Any) -> Any:
        return jnp.square(p["layer"]["kernel"] - target).mean()

    first = loss(params)
    for _ in range(60):
        change, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, change)
    assert loss(params) < 0.1 * first
