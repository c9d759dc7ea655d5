"""Gradients of the training step: against diffusers in torch, and however it is computed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.filled import SMALL, filled
from tests.models.test_against_diffusers import STAGE_C, nchw, numpy_state, unet
from tests.recorded_models import import_component
from tests.training.steps import config_of, gradient, latents, rows_of, with_
from ultrapixel_jax.config import CascadeConfig, LevelConfig
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask, StageCTask
from ultrapixel_jax.training.tasks.base import draw_logsnr, keys_of, normal

P2 = DiffusionTraining(loss_weight="p2")


def cascade(stage_c, **changes) -> CascadeConfig:
    """A cascade around `stage_c`, whose other parts are not used."""
    base = CascadeConfig()
    return dataclasses.replace(
        base,
        stage_c=stage_c,
        guidance=None,
        clip_text=dataclasses.replace(base.clip_text, width=24, projection=24),
        clip_vision=dataclasses.replace(base.clip_vision, projection=20),
        stage_b=dataclasses.replace(base.stage_b, c_clip=24),
        **changes,
    )


@jax.jit
def noise_of(rows: dict) -> tuple:
    """logSNR, the noise level that networks are given, and noise, rounded as in a step: under jit.

    Angles of the embedding reach 10,000 rad: the level outside of jit, which is four units in the last place
    off, changes them by 2e-3, and the loss by 3e-5.
    """
    logsnr = draw_logsnr(P2, keys_of(rows, 0))
    return logsnr, schedule.noise_level(logsnr, jnp), normal(keys_of(rows, 1), rows["latent"].shape[1:])


@pytest.mark.parametrize("scanned", [False, True])
def test_stage_c_against_diffusers(scanned: bool) -> None:
    model = unet(STAGE_C)
    config = config_of(
        StageCTask(diffusion=P2, dropout=False), batch_size=3, model=cascade(STAGE_C), scanned=scanned
    )
    batch = latents(config)
    given = {"stage_c": import_component("stage_c", STAGE_C, numpy_state(model))}
    found, metrics = gradient(config, given, {}, batch)

    rows = rows_of(config, batch)
    logsnr, level, epsilon = map(np.array, noise_of(rows))
    a, b = (torch.from_numpy(np.asarray(v))[:, None, None, None] for v in schedule.scalings(logsnr))
    x = a * nchw(batch["latent"]) + b * nchw(epsilon)
    predicted = model(
        x,
        torch.from_numpy(level),
        clip_text_pooled=torch.from_numpy(batch["text_pooled"][:, None]),
        clip_text=torch.from_numpy(batch["text_states"]),
        clip_img=torch.from_numpy(batch["image_vector"][:, None]),
    ).sample
    losses = (predicted - nchw(epsilon)).square().mean((1, 2, 3))
    (torch.from_numpy(1 / (1 + np.exp(logsnr))) * losses).mean().backward()
    assert abs(metrics["loss"] / losses.mean().item() - 1) < 1e-5

    gradients = {
        k: (torch.zeros_like(p) if p.grad is None else p.grad).numpy() for k, p in model.named_parameters()
    }
    expected = import_component("stage_c", STAGE_C, gradients)
    if scanned:
        from ultrapixel_jax.models.scan import stack

        expected = stack(expected, STAGE_C)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for (path, e), f in zip(
        jax.tree_util.tree_leaves_with_path(expected["params"]),
        jax.tree.leaves(found["stage_c"]),
        strict=True,
    ):
        # diffusers' table of frequencies is off by as much (NOISE_LEVELS in that test).
        assert np.abs(np.asarray(e) - f).max() < 3e-4 * largest, jax.tree_util.keystr(path)


def test_neither_parts_nor_scanning_change_the_gradient() -> None:
    """The same gradient unrolled in one part, and scanned with rematerialisation in two; with dropout."""
    levels = (LevelConfig(16, 2, 1, 2, dropout=0.1), LevelConfig(16, 2, 2, 1, dropout=0.1))
    small = dataclasses.replace(SMALL, stage_c=dataclasses.replace(SMALL.stage_c, levels=levels))
    config = config_of(GuidanceTask(diffusion=P2, frozen_dropout=True), model=small)
    assert all(level.dropout > 0 for level in config.model.stage_c.levels)
    stage_c = jax.tree.map(jnp.asarray, filled("stage_c", config.model.stage_c))
    batch = latents(config)
    plain, _ = gradient(config, {}, {"stage_c": stage_c}, batch)
    parts = dataclasses.replace(config.optimizer, accumulate=2)
    other = with_(config, optimizer=parts, scanned=True)
    assert (other.scanned, other.optimizer.accumulate) != (config.scanned, config.optimizer.accumulate)
    found, _ = gradient(other, {}, {"stage_c": stage_c}, batch)
    assert max(np.abs(x).max() for x in jax.tree.leaves(plain)) > 1e-4
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
