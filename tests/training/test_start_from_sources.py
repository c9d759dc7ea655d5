"""A run that starts from its sources' weights: straight onto any mesh, and then as on one device."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.mlir import ir
from jax.sharding import Mesh

from configs.tiny import config as tiny
from tests.training.steps import config_of, images, latents, with_
from tests.training.test_tasks import STAGE_B
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.checkpoints.sources import RANDOM_STD, Sources, _perturbed
from ultrapixel_jax.checkpoints.weights import DEMO
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig, to_dict
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.models import components, scan
from ultrapixel_jax.sharding import batch_sharding, make_mesh, parameter_sharding
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.checkpoints import RunCheckpoints
from ultrapixel_jax.training.config import (
    ControlNetTask,
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
    tiny.stage_c, levels=(LevelConfig(16, 2, 2, 1, dropout=0.1), LevelConfig(16, 2, 1, 1, dropout=0.1))
)
MODEL = dataclasses.replace(
    tiny,
    stage_c=STAGE_C,
    stage_b=dataclasses.replace(STAGE_B, levels=(STAGE_B.levels[0], LevelConfig(16, 2, 2, 2))),
    guidance=dataclasses.replace(
        tiny.guidance, channels=16, inr_channels=16, inr_width=16, inr_heads=2, inr_groups=4
    ),
    lora=dataclasses.replace(tiny.lora, stage_c=STAGE_C, rank=2),
    controlnet=dataclasses.replace(tiny.controlnet, channels=16),  # borrows the EffNet encoder's backbone
)
DESCENT = optax.sgd(0.1)
"""Which compiles faster than AdamW."""
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TASKS = {
    "guidance": GuidanceTask(),
    "lora": LoraTask(),
    "controlnet": ControlNetTask(frozen_statistics=False),
    "stage_c": StageCTask(train_text_encoder=True),
    "stage_b": StageBTask(train_encoder=False, condition_scales=(1.0,)),
    "stage_a": StageATask(crop=32),
    "previewer": PreviewerTask(train_encoder=True),
    "text": TextTask(),
}


def task_config(name: str, **changes: Any) -> TrainConfig:
    """Of 2 steps that change the losses."""
    data = DataConfig(
        cached=name in ("guidance", "lora", "controlnet"), batch_size=4, image_vector_probability=0.0
    )
    return config_of(TASKS[name], model=MODEL, scanned=True, start_from_sources=True, data=data, **changes)


def begin(config: TrainConfig, sources: Sources, mesh: Mesh) -> tuple[Any, Any, Any]:
    """(shardings of the state, state, frozen variables), as `train.py` begins."""
    task, optimizer = make_task(config), DESCENT
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(states.creator(task, optimizer), {})
        shardings = states.state_shardings(abstract, optimizer, mesh)
        state = states.fresh(task, optimizer, sources, mesh, shardings)
        assert jax.tree.map(lambda x: x.sharding, state) == shardings
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), abstract
        )
        return shardings, state, states.frozen(task, sources, mesh)


def losses(config: TrainConfig, sources: Sources, mesh: Mesh, *, descend: bool) -> list[float]:
    """Of two steps on one batch; unless these `descend`, the second is the first's with other noise."""
    task = make_task(config)
    shardings, state, frozen = begin(config, sources, mesh)
    batch = {**latents(config), **images(4, 64)}
    if not config.data.cached:
        del batch["latent"], batch["text_states"]
    batch = jax.device_put(batch, batch_sharding(mesh))
    step = make_step(task, DESCENT)

    def loss_alone(state: states.TrainState, frozen: Any, rate: Any, batch: Any) -> Any:
        del rate
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = {**batch, "key": jax.random.key_data(jax.random.split(key, 4))}
        out = task.loss(state.params, state.collections, frozen, batch)
        return state._replace(step=state.step + 1), {"loss": out.loss.mean()}

    run = jax.jit(
        step if descend else loss_alone, out_shardings=(shardings, None), donate_argnums=0,
        compiler_options=UNOPTIMISED,
    )  # fmt: skip
    found = []
    with jax.set_mesh(mesh):
        for _ in range(2):
            state, metrics = run(state, frozen, np.float32(0), batch)
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
    descend = name == "text"  # the others' gradients take half a minute each to compile for the mesh
    alone = losses(config, sources, make_mesh({}, jax.devices()[:1]), descend=descend)
    assert alone[0] != alone[1] or name in ("stage_a", "previewer")  # which draw nothing here
    np.testing.assert_allclose(losses(config, sources, make_mesh(MESH), descend=descend), alone, rtol=1e-4)


def on_mesh(mesh: Mesh) -> Any:
    return lambda path, struct: parameter_sharding(path, struct.shape, mesh)


@pytest.mark.parametrize("kind", ["checkpoint", "run", "demo"])
def test_every_source_gives_its_arrays_to_the_mesh(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    """Stage C and guidance, with blocks stacked and not, whatever the source has: nowhere whole."""
    if kind == "run":
        task = make_task(task_config("stage_c"))
        config = with_(task.config, output=str(tmp_path / "run"), sources=(str(checkpoint),))
        _, state, _ = begin(config, Sources([checkpoint]), make_mesh(MESH))
        checkpoints = RunCheckpoints(config.output, config.checkpoints)
        checkpoints.describe(config, [(288, 288)])
        with checkpoints:
            checkpoints.save(state, {})
    sources = Sources([{"checkpoint": checkpoint, "run": tmp_path / "run", "demo": DEMO}[kind]])
    mesh, alone = (
        make_mesh(MESH),
        Sources([checkpoint if kind == "run" else sources.entries["stage_c"].origin]),
    )
    for name, stacked in (("guidance", False), ("stage_c", True), ("stage_c", False)):
        config = sources.entries[name].config
        expected = alone.load(name, config, dtype=np.float32)
        expected = scan.stack(expected, config) if stacked else expected
        found = sources.load(name, config, dtype=np.float32, place=on_mesh(mesh), stacked=stacked)
        assert jax.tree.map(lambda x: x.sharding, found) == states.variables_shardings(expected, mesh)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        kernels = [x for x in jax.tree.leaves(found) if not x.sharding.is_fully_replicated]
        assert kernels and all(x.addressable_shards[0].data.size < x.size for x in kernels)
    # In another dtype too, which a run's checksums are not of.
    half = sources.load("stage_c", sources.entries["stage_c"].config, dtype=jnp.bfloat16, place=on_mesh(mesh))
    assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype(jnp.bfloat16)}


def test_a_runs_random_numbers_are_those_of_one_purpose() -> None:
    """Noise of a random filling is another for each array, and no key serves two purposes."""
    kernels = {f"layer_{i}": {"kernel": jnp.zeros((48, 48)), "bias": jnp.zeros(48)} for i in range(4)}
    variables = _perturbed({"params": kernels}, 0, "clip_text")
    noise = [np.asarray(layer["kernel"]) for layer in variables["params"].values()]
    noise.append(RANDOM_STD * np.asarray(jax.random.normal(jax.random.key(0), (48, 48))))
    for x, y in itertools.combinations(noise, 2):
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.1
        np.testing.assert_allclose(x.std(), RANDOM_STD, rtol=0.1)

    task = make_task(config_of(StageCTask(train_text_encoder=True), model=MODEL))
    used = []
    initial = components.key_for
    assert len(task.trained) == 2
    for name in task.trained:
        used.append(initial(task.config.seed, "initial", name))
    used.append(initial(task.config.seed, "steps"))
    used += [initial(task.config.seed, "frozen", name) for name in task.trained]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in used}) == len(used)


@pytest.mark.parametrize("name", TASKS)
def test_no_program_has_a_large_constant(name: str) -> None:
    """At full-size pictures; numbers that are made in the program take no place in it."""
    config = task_config(name)
    config = with_(config, model=dataclasses.replace(
        MODEL, clip_text=dataclasses.replace(MODEL.clip_text, projection=256),
        stage_c=dataclasses.replace(STAGE_C, c_clip_text_pooled=256),
        stage_b=dataclasses.replace(MODEL.stage_b, c_clip=256),
    ))  # fmt: skip
    task, optimizer = make_task(config), DESCENT
    state = jax.eval_shape(states.creator(task, optimizer), {})
    frozen = {
        part: jax.eval_shape(
            lambda v, part=part: task.arrange(part, v),
            components.abstract(part, getattr(config.model, part)),
        )
        for part in task.frozen
    }
    shapes = {
        "image": ((4, 768, 768, 3), jnp.uint8), "ids": ((4, 77), jnp.int32), "mask": ((4, 77), jnp.int32),
    }  # fmt: skip
    if config.data.cached:
        shapes = {n: ((4, *x.shape[1:]), jnp.float32) for n, x in latents(config, (24, 24), (16, 16)).items()}
    batch = {n: jax.ShapeDtypeStruct(*x) for n, x in shapes.items()}
    traced = jax.jit(make_step(task, optimizer)).lower(state, frozen, np.float32(0), batch)
    sizes = [0]

    def look(operation: Any) -> Any:
        if operation.name == "stablehlo.constant":
            value = operation.attributes["value"]
            if not getattr(value, "is_splat", False):
                sizes.append(int(np.prod(value.type.shape)) * 4)
        return ir.WalkResult.ADVANCE

    traced.compiler_ir().operation.walk(look)
    assert len(sizes) > 1 and max(sizes) < 1_000_000
