"""Training in bfloat16 beside float32: losses and changes of the parameters, within a bound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.filled import SMALL, filled
from tests.training.steps import adamw, config_of, latents, start
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask, OptimizerConfig

STEPS = 10
LOSS, CHANGE = 0.002, 0.15
"""Bounds of the relative differences, 0.0003 and 0.06 when measured; 0.43 where the parameters are rounded to
bfloat16 after every step."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.0)


class Run:
    """Ten steps of the guidance networks that can be made again."""

    def __init__(self, dtype: str) -> None:
        config = config_of(
            GuidanceTask(diffusion=DiffusionTraining(loss_weight="p2")), model=SMALL, batch_size=4,
            dtype=dtype, optimizer=OPTIMIZER,
        )  # fmt: skip
        given = {"guidance": filled("guidance", SMALL.guidance, seed=1)}
        _, _, self.first, self.step = start(config, given, adamw(OPTIMIZER))
        stage_c = filled("stage_c", SMALL.stage_c)
        self.frozen = {"stage_c": jax.tree.map(lambda x: jnp.asarray(x, dtype), stage_c)}
        self.batch = latents(config)

    def train(self, keep: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """Losses of ten steps, and the change of all parameters, which are kept in the dtype `keep`."""
        state, losses = self.first, []
        for _ in range(STEPS):
            state, metrics = self.step(state, self.frozen, self.batch)
            losses.append(float(metrics["loss"]))
            kept: Any = jax.tree.map(lambda x: x.astype(keep).astype(jnp.float32), state.params)
            state = state._replace(params=kept)
        change = jax.tree.map(
            lambda a, b: np.ravel(np.asarray(b) - np.asarray(a)), self.first.params, state.params
        )
        return np.asarray(losses), np.concatenate(jax.tree.leaves(change))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_ten_steps() -> None:
    losses, change = Run("float32").train()
    half = Run("bfloat16")
    found_losses, found = half.train()
    _, control = half.train(keep="bfloat16")
    print(f"losses apart by {apart(found_losses, losses):.4f}, changes by {apart(found, change):.4f}")
    print(f"changes of rounded parameters by {apart(control, change):.4f}")
    assert apart(found_losses, losses) < LOSS
    assert apart(found, change) < CHANGE
    assert apart(control, change) > 2 * CHANGE
