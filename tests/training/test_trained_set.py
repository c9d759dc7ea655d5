"""What a task trains is what changes, and nothing else does."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models.filled import filled
from tests.training.steps import config_of, latents, start, with_
from ultrapixel_jax.models import components
from ultrapixel_jax.training.config import ControlNetTask, GuidanceTask, LoraTask, StageCTask
from ultrapixel_jax.training.optimizer import make_optimizer

SMALL = {"down_blocks": 1, "up_blocks": 1}


def host(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def paths(tree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def small(config):
    """Two blocks less, to compile faster."""
    levels = tuple(dataclasses.replace(level, **SMALL) for level in config.model.stage_c.levels)
    stage_c = dataclasses.replace(config.model.stage_c, levels=levels)
    lora = dataclasses.replace(config.model.lora, stage_c=stage_c)
    controlnet = dataclasses.replace(config.model.controlnet, slots=(0, 3))
    model = dataclasses.replace(config.model, stage_c=stage_c, lora=lora, controlnet=controlnet)
    return with_(config, model=model)


@pytest.mark.parametrize(
    "task, trained",
    [
        (GuidanceTask(), "guidance"),
        (LoraTask(), "lora"),
        (StageCTask(), "stage_c"),
        (ControlNetTask(backbone="nothing", frozen_statistics=False), "controlnet"),
    ],
)
def test_only_the_trained_networks_change(task, trained: str) -> None:
    config = small(config_of(task))
    stage_c = filled("stage_c", config.model.stage_c)
    frozen = {} if trained == "stage_c" else {"stage_c": stage_c}
    _, _, state, step = start(config, optimizer=make_optimizer(config.optimizer))
    before, frozen_before = host(state.params), host(frozen)
    for _ in range(2):
        state, _ = step(state, frozen, latents(config))

    expected = paths(components.abstract(trained, getattr(config.model, trained))["params"])
    assert list(state.params) == [trained]
    left_out = set(expected) - set(paths(state.params[trained]))
    assert left_out == ({"['embeddings']"} if trained == "lora" else set())  # no new tokens here
    assert set(paths(state.params[trained])) <= set(expected)
    sizes = {x.size for x in jax.tree.leaves(state.params)} | {1}
    assert {x.size for x in jax.tree.leaves(state.optimizer)} <= sizes  # moments of these and counters
    jax.tree.map(np.testing.assert_array_equal, frozen_before, host(frozen))
    still = [
        jax.tree_util.keystr(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(host(state.params)), strict=True
        )
        if (old == new).all()
    ]
    # What starts at zero behind zeros, and what no input of this batch reaches, moves later or not at all.
    assert len(still) < len(jax.tree.leaves(before)) / 2, still
