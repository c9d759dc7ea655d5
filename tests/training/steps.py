"""A step on a batch of random latents, and an optimizer that keeps the gradient instead of using it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.tiny import config as tiny
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import OptimizerConfig, TrainConfig
from ultrapixel_jax.training.optimizer import learning_rate, make_optimizer
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task


def keep_gradient() -> optax.GradientTransformation:
    """Changes no parameter; its state is the last gradient."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    return optax.GradientTransformation(zeros, lambda g, s, p=None: (jax.tree.map(lambda x: 0 * x, g), g))


def config_of(task: Any, *, batch_size: int = 4, accumulate: int = 1, **changes: Any) -> TrainConfig:
    data = DataConfig(cached=True, batch_size=batch_size, image_vector_probability=0.0)
    optimizer = OptimizerConfig(accumulate=accumulate, ema_decay=0.0)
    values = {"model": tiny, "dtype": "float32", "scanned": False, "data": data, "optimizer": optimizer}
    return TrainConfig(task=task, **{**values, **changes})


def latents(config: TrainConfig, hr: tuple[int, int] = (9, 8), lr: tuple[int, int] = (4, 4)) -> dict:
    """A cached batch with the shapes that `config` wants."""
    rng, b, c = np.random.default_rng(0), config.data.batch_size, config.model.stage_c

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal((b, *shape)).astype(np.float32)

    control = config.model.controlnet
    shown = {"control": values(64, 64, control.in_channels)} if config.reading.control else {}
    return {
        **shown,
        "latent": values(*hr, c.c_latent),
        "latent_lr": values(*lr, c.c_latent),
        "text_states": values(5, c.c_clip_text),
        "text_pooled": values(c.c_clip_text_pooled),
        "image_vector": values(c.c_clip_img),
    }


def images(count: int, side: int) -> dict[str, Any]:
    """Smooth pictures, and a caption's tokens."""
    coarse = np.random.default_rng(0).uniform(0, 255, (count, 3, 3, 3))
    smooth = jax.image.resize(jnp.asarray(coarse), (count, side, side, 3), "cubic").clip(0, 255)
    ones = np.ones((count, 7), np.int32)
    return {"image": np.asarray(smooth).astype(np.uint8), "ids": ones, "mask": ones}


def start(config: TrainConfig, given: dict[str, Any] | None = None, optimizer: Any = None):
    """(task, optimizer, state, step at the run's rate) of a run that starts from `given` variables."""
    task = make_task(config)
    optimizer = optimizer or keep_gradient()
    create = states.creator(task, optimizer)
    arranged = {name: task.arrange(name, v) for name, v in (given or {}).items()}
    state = jax.jit(create, compiler_options=UNOPTIMISED)(arranged)
    jitted = jax.jit(make_step(task, optimizer), compiler_options=UNOPTIMISED)

    def step(state: states.TrainState, frozen: Any, batch: Any) -> Any:
        rate = learning_rate(config.optimizer, config.steps, int(state.step))
        return jitted(state, frozen, np.float32(rate), batch)

    return task, optimizer, state, step


def gradient(config: TrainConfig, given: Any, frozen: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """Gradient of the objective by component, and the metrics of the step."""
    task, _, state, step = start(config, given)
    frozen = {name: task.arrange(name, v) for name, v in frozen.items()}
    state, metrics = step(state, frozen, batch)
    return state.optimizer, metrics


def adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    """The run's AdamW on all parameters as one vector: the same but for rounding, and compiled sooner."""
    assert config.algorithm == "adamw"
    return optax.flatten(make_optimizer(config))


def with_(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, **changes)


def rows_of(config, batch):
    """The step's own random keys, for its first step."""
    _, _, state, _ = start(config)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    return {
        **jax.tree.map(jnp.asarray, batch),
        "key": jax.random.key_data(jax.random.split(key, config.data.batch_size)),
    }
