"""What a task is: which networks it trains, which it needs beside them, and one loss.

All tasks share the loop, the data, the optimizer and the checkpoints; what differs is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.diffusion import loss as objective
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components, random_keys, scan
from ultrapixel_jax.sizes import HW
from ultrapixel_jax.training.config import DiffusionTraining, TrainConfig

Variables = Mapping[str, Any]
Batch = Mapping[str, Array]
"""Device arrays by name; `key` (b, 2) uint32 holds a random key for every sample."""
Shapes = Mapping[str, tuple[int, ...]]
DROPOUT = 1000
"""Stream of a sample's random numbers in every task."""
WITHOUT = {"clip_vision": "--data.image-vector-probability 0"}
"""Options with which training does without a network."""


class Losses(NamedTuple):
    """What a loss gives."""

    loss: Float[Array, " b"]
    """Of each sample, before any weight."""
    logsnr: Float[Array, " b"] | None = None
    """Of each sample, where the loss is a diffusion's."""
    collections: Mapping[str, Any] = {}
    """Collections of the trained components that the pass changed."""
    metrics: Mapping[str, Float[Array, ""]] = {}
    """Further figures, for the log."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of all tasks."""

    config: TrainConfig
    training: bool = True
    """False: without dropout, and with the running statistics of batch norm, as `evaluating` gives it."""

    needs_images: ClassVar[bool] = True
    """Whether it needs pixels, so that cached latents do not do."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Components that are trained."""
        raise NotImplementedError

    @property
    def frozen(self) -> tuple[str, ...]:
        """Components that are needed beside them."""
        raise NotImplementedError

    @property
    def borrows(self) -> Mapping[str, str]:
        """Trained networks that begin with weights of another network, and its name: `begin`."""
        return {}

    def begin(self, name: str, key: Array, source: Variables) -> dict[str, Any]:
        """Fresh variables of a trained component that takes what fits of the network `borrows` names."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """Of the computation."""
        return jnp.dtype(self.config.dtype)

    @property
    def diffusion(self) -> DiffusionTraining | None:
        """How noise is drawn, if it is."""
        return getattr(self.config.task, "diffusion", None)

    def evaluating(self) -> Task:
        """The task whose loss is that of the finished networks: what validation takes."""
        return dataclasses.replace(self, training=False)

    def check(self) -> None:
        """Refuse data that the task cannot use.

        Raises:
            UserError: it needs pixels, and the data are cached latents.
        """
        if self.needs_images and self.config.data.cached:
            raise UserError(
                f"training {', '.join(self.trained)} needs images, and --data.cached is set: give "
                "--data.no-cached and the data that `python -m ultrapixel_jax.data.build` wrote"
            )

    @property
    def kinds(self) -> int:
        """How many programs the steps on one bucket are, as `part` has it."""
        return 1

    def part(self, step: int, arrays: Batch) -> Batch:
        """Of a batch's `arrays`, those that update number `step` takes; what it takes decides on its loss."""
        del step
        return arrays

    def flops(self, shapes: Shapes) -> int:
        """Operations of one step on a batch of arrays of these `shapes`, by name.

        As is usual, what rematerialisation computes again is not counted; nor are the frozen encoders.
        0 where nothing is counted.
        """
        del shapes
        return 0

    def stacks(self, name: str) -> bool:
        """Whether this task holds the component with its blocks stacked: where it scans."""
        return self.config.scanned and name in scan.SCANNABLE

    def arrange(self, name: str, variables: Variables) -> dict[str, Any]:
        """Variables of a component as this task holds them: blocks stacked where it scans."""
        if self.stacks(name):
            return scan.stack(variables, getattr(self.config.model, name))
        return dict(variables)

    def initial(self, name: str, key: Array) -> dict[str, Any]:
        """Fresh variables of a trained component."""
        return self.arrange(name, components.initialise(name, getattr(self.config.model, name), key))

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """Losses of a batch."""
        raise NotImplementedError


def keys_of(batch: Batch, stream: int) -> Array:
    """A key per sample, another for each `stream`; neither mesh nor accumulation enters."""
    return jax.vmap(lambda k: jax.random.fold_in(random_keys.of_data(k), stream))(batch["key"])


def uniform(keys: Array) -> Float[Array, " b"]:
    """A number in [0, 1) per key."""
    return jax.vmap(lambda k: jax.random.uniform(k, dtype=jnp.float32))(keys)


def normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal noise of `shape` per key."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def dropout_keys(batch: Batch, *, dropping: bool) -> Array | None:
    """A key per sample for the dropout of a network; None where it is off."""
    return keys_of(batch, DROPOUT) if dropping else None


def draw_logsnr(diffusion: DiffusionTraining, keys: Array) -> Float[Array, " b"]:
    """The logSNR of each sample (section 5)."""
    t = objective.draw_t(uniform(keys))
    return schedule.logsnr(t, diffusion.schedule, diffusion.shift, xp=jnp)


def batch_size(shapes: Shapes) -> int:
    """Number of samples."""
    return next(iter(shapes.values()))[0]


def latent_size(shapes: Shapes, name: str) -> HW:
    """Size of the EffNet latent `latent` or `latent_lr`, cached or to be computed."""
    if name in shapes:
        return shapes[name][1], shapes[name][2]
    _, h, w, _ = shapes[name.replace("latent", "image")]
    return h // 32, w // 32
