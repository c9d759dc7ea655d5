"""With JAX_ENABLE_X64 jax makes 64-bit numbers of what does not say how wide it is: all here says so."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config as tiny
from tests.training.steps import config_of, images, latents
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.diffusion.sampler import initial_noise
from ultrapixel_jax.models.components import abstract
from ultrapixel_jax.sampling.pipeline import Cascade
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.tiling import decode_tiled
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import GuidanceTask, PreviewerTask, StageATask, StageBTask, TextTask
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task


def wide(traced: Any) -> list[str]:
    """Lines of a traced program with arrays of 64 bits, but for counters; single numbers are Python's."""
    return [line for line in str(traced.jaxpr).splitlines() if re.search(r"[fu]64\[\d", line)]


def test_programs_of_sampling_compute_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, list[str]] = {}

    def traced(self: Program, *args: Any) -> Any:
        with jax.enable_x64(True):
            placed = [self._place(i, arg) for i, arg in enumerate(args)]
            program = self._jitted.trace(*placed)
            found[self._name] = wide(program)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.out_info)

    config = dataclasses.replace(tiny, sampling_c=dataclasses.replace(tiny.sampling_c, steps=2))
    cascade = Cascade.load(None, config=config)
    monkeypatch.setattr(Program, "__call__", traced)
    with jax.enable_x64(True):
        request = Request("a", "", 0, 256, 320, config.sampling_c, config.sampling_b)
        (result,) = cascade.generate([request], batch_size=1, progress=lambda *told: told[3]())
    names = {name.partition("_unconditional")[0] for name in found}
    assert {"encode", "lr", "hr", "b", "decode"} <= names, names
    assert not {name: lines[:3] for name, lines in found.items() if lines}
    assert result.image.dtype == np.uint8
    assert {x.dtype for x in result.latents.values()} == {np.dtype(np.float32)}


def test_noise_and_tiles_are_the_same() -> None:
    keys = jnp.asarray([[0, 7]], jnp.uint32)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 20, 3)), jnp.float32)

    def made() -> tuple[np.ndarray, np.ndarray]:
        image = decode_tiled(lambda z: jnp.repeat(jnp.repeat(z, 4, 1), 4, 2), z, 4, 1)
        return np.asarray(initial_noise(keys, (2, 3, 4))), image

    narrow = made()
    with jax.enable_x64(True):
        for one, other in zip(narrow, made(), strict=True):
            assert one.dtype == other.dtype == np.float32
            np.testing.assert_array_equal(one, other)


TASKS = (
    GuidanceTask(), TextTask(), PreviewerTask(train_encoder=True, latent_noise=0.1, outlier_weight=0.1),
    StageATask(crop=32), StageBTask(condition_scales=(0.5, 1.0), pyramid_levels=(1, 4), draws=2),
)  # fmt: skip


@pytest.mark.parametrize("task_config", TASKS, ids=lambda t: type(t).__name__)
def test_steps_of_training_compute_in_32_bits(task_config: Any) -> None:
    with jax.enable_x64(True):
        of_pictures = isinstance(task_config, PreviewerTask | StageATask | StageBTask)
        changes: Any = {"data": DataConfig(batch_size=4)} if of_pictures else {}
        config = config_of(task_config, scanned=True, **changes)
        task, optimizer = make_task(config), make_optimizer(config.optimizer)
        tokens = np.ones((4, 7), np.int32)
        batch = {
            **latents(config),
            **({"ids": tokens, "mask": tokens} if "clip_text" in task.trained else {}),
            **(images(4, 64) if of_pictures else {}),
        }
        state = jax.eval_shape(states.creator(task, optimizer), {})
        frozen = {name: abstract(name, getattr(config.model, name)) for name in task.frozen}
        frozen = {name: jax.eval_shape(partial(task.arrange, name), v) for name, v in frozen.items()}
        traced = jax.jit(make_step(task, optimizer)).trace(state, frozen, np.float32(0), batch)
        assert not wide(traced)[:3]
        after, metrics = traced.out_info
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
        assert {x.dtype.itemsize for x in jax.tree.leaves(metrics)} == {4}
