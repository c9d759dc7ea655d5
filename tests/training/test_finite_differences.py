"""Gradients of the guidance networks against finite differences, all in float64."""

from __future__ import annotations

import dataclasses
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.filled import SMALL, filled
from tests.training.steps import config_of, latents, rows_of, start, with_
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import GuidanceConfig
from ultrapixel_jax.diffusion import loss as objective
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask
from ultrapixel_jax.training.tasks.base import Task

P2 = DiffusionTraining(loss_weight="p2")


class DoublePrecision(types.ModuleType):
    """`jax.numpy` in which float32 is float64: the same code, computed in double precision."""

    float32 = jnp.float64

    def __getattr__(self, name: str):
        return getattr(jnp, name)


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


@pytest.fixture
def float64(monkeypatch):
    """Run networks and losses in float64."""
    for name in (
        "models.layers", "models.convolutions", "models.blocks", "models.attention", "models.embeddings",
        "models.guidance",
        "models.resize", "models.stage_c", "diffusion.loss", "diffusion.two_branch",
        "training.tasks.guidance", "training.tasks.encode", "training.tasks.base",
    ):  # fmt: skip
        module = importlib.import_module(f"ultrapixel_jax.{name}")
        if hasattr(module, "jnp"):
            monkeypatch.setattr(module, "jnp", DoublePrecision("jnp"))
    monkeypatch.setattr(Task, "dtype", property(lambda self: jnp.dtype(jnp.float64)))
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("upsampler", ["inr", "bilinear_conv"])
def test_guidance_against_finite_differences(float64, upsampler: str) -> None:
    config = config_of(GuidanceTask(diffusion=P2), batch_size=2, model=SMALL)
    guidance = dataclasses.replace(config.model.guidance, upsampler=upsampler)
    assert isinstance(guidance, GuidanceConfig)
    config = with_(config, model=dataclasses.replace(config.model, guidance=guidance))
    task, _, state, _ = start(config)
    random = np.random.default_rng(1)

    def perturbed(x):
        return jnp.asarray(np.asarray(x, np.float64) + 0.05 * random.standard_normal(x.shape))

    stage_c = jax.tree.map(perturbed, filled("stage_c", config.model.stage_c))
    params = jax.tree.map(perturbed, state.params)
    rows = rows_of(config, latents(config))
    batch = {**double(latents(config)), "key": rows["key"]}

    def loss_of(params):
        out = task.loss(params, double(state.collections), {"stage_c": stage_c}, batch)
        assert out.logsnr is not None
        return (objective.p2_weight(out.logsnr) * out.loss).mean()

    loss = jax.jit(loss_of, compiler_options=UNOPTIMISED)
    value, grads = jax.jit(jax.value_and_grad(loss_of), compiler_options=UNOPTIMISED)(params)
    assert value.dtype == jnp.float64
    leaves, structure = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    worst, zero, h = 0.0, [], 1e-5
    rounding = 1e-15 * float(value) / h  # of the difference below: a few units in the last place
    for i, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        direction = random.standard_normal(leaf.shape)
        direction /= np.linalg.norm(direction)

        def at(step: float, i=i, direction=direction) -> float:
            moved = [x + step * direction if j == i else x for j, x in enumerate(leaves)]
            return float(loss(jax.tree.unflatten(structure, moved)))

        expected, found = (at(h) - at(-h)) / (2 * h), float((grad * direction).sum())
        if np.linalg.norm(grad) < 1e-15:
            zero.append(paths[i])
            continue
        worst = max(worst, abs(found - expected) / (abs(expected) + 1e-5 * float(np.linalg.norm(grad))))
        allowed = 1e-4 * abs(expected) + 1e-6 * float(np.linalg.norm(grad)) + rounding
        assert abs(found - expected) < allowed, paths[i]
    # Nothing is disconnected but what attention cancels: a bias of the keys moves all logits alike.
    assert all("['key']['bias']" in path or "posemb" in path for path in zero), zero
    assert worst < 1e-2
