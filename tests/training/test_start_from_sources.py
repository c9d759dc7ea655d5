"""A run that starts from its sources' weights: straight onto any mesh, and then as on one device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from configs.tiny import config as tiny
from tests.training.steps import config_of, images, latents
from tests.training.test_tasks import STAGE_B
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig, to_dict
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.models import components
from ultrapixel_jax.sharding import batch_sharding, make_mesh
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import (
    GuidanceTask,
    LoraTask,
    PreviewerTask,
    StageATask,
    StageBTask,
    StageCTask,
    TextTask,
    TrainConfig,
)
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task

STAGE_C = dataclasses.replace(
    tiny.stage_c, levels=(LevelConfig(16, 2, 2, 1, dropout=0.1), LevelConfig(16, 2, 1, 2, dropout=0.1))
)
MODEL = dataclasses.replace(
    tiny,
    stage_c=STAGE_C,
    stage_b=dataclasses.replace(STAGE_B, levels=(STAGE_B.levels[0], LevelConfig(16, 2, 2, 2))),
    guidance=dataclasses.replace(
        tiny.guidance, channels=16, inr_channels=16, inr_width=16, inr_heads=2, inr_groups=4
    ),
    lora=dataclasses.replace(tiny.lora, stage_c=STAGE_C, rank=2),
    controlnet=dataclasses.replace(tiny.controlnet, channels=16),
)
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TASKS = {
    "guidance": GuidanceTask(),
    "lora": LoraTask(),
    "stage_c": StageCTask(train_text_encoder=True),
    "stage_b": StageBTask(train_encoder=False, condition_scales=(1.0,)),
    "stage_a": StageATask(crop=32),
    "previewer": PreviewerTask(train_encoder=True),
    "text": TextTask(),
}


def task_config(name: str, **changes: Any) -> TrainConfig:
    """Of 2 steps that change the losses."""
    data = DataConfig(cached=name in ("guidance", "lora"), batch_size=4, image_vector_probability=0.0)
    return config_of(TASKS[name], model=MODEL, scanned=True, start_from_sources=True, data=data, **changes)


def begin(config: TrainConfig, sources: Sources, mesh: Mesh) -> tuple[Any, Any, Any]:
    """(step, state, frozen variables), as `train.py` begins."""
    task, optimizer = make_task(config), optax.sgd(0.1)  # which compiles faster than AdamW
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(states.creator(task, optimizer), {})
        shardings = states.state_shardings(abstract, optimizer, mesh)
        state = states.fresh(task, optimizer, sources, mesh, shardings)
        assert jax.tree.map(lambda x: x.sharding, state) == shardings
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), abstract
        )
        step = jax.jit(
            make_step(task, optimizer), out_shardings=(shardings, None), donate_argnums=0,
            compiler_options=UNOPTIMISED,
        )  # fmt: skip
        return step, state, states.frozen(task, sources, mesh)


def losses(config: TrainConfig, sources: Sources, mesh: Mesh) -> list[float]:
    """Of two steps on one batch."""
    step, state, frozen = begin(config, sources, mesh)
    batch = {**latents(config), **images(4, 64)}
    if not config.data.cached:
        del batch["latent"], batch["text_states"]
    batch = jax.device_put(batch, batch_sharding(mesh))
    found = []
    with jax.set_mesh(mesh):
        for _ in range(2):
            state, metrics = step(state, frozen, batch)
            found.append(float(metrics["loss"]))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All networks of the cascade, of random numbers."""
    directory = tmp_path_factory.mktemp("sources") / "checkpoint"
    random = np.random.default_rng(3)

    def values(x: Any) -> np.ndarray:
        scale = 1 / np.sqrt(np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.1
        return np.float32(scale) * np.abs(random.standard_normal(x.shape, np.float32))  # variances, too

    with CheckpointWriter(directory) as writer:
        for name in components.CONFIGS:
            if name not in ("controlnet", "clip_vision"):
                config = getattr(MODEL, name)
                variables = jax.tree.map(values, components.abstract(name, config))
                writer.add(name, variables, ComponentInfo(config=to_dict(config)))
    return directory


@pytest.mark.parametrize("name", TASKS)
def test_the_first_losses_are_those_of_one_device(name: str, checkpoint: Path) -> None:
    config, sources = task_config(name), Sources([checkpoint])
    alone = losses(config, sources, make_mesh({}, jax.devices()[:1]))
    assert alone[0] != alone[1]
    np.testing.assert_allclose(losses(config, sources, make_mesh(MESH)), alone, rtol=1e-4)
