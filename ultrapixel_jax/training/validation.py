"""The loss on held-out examples: the same ones with the same noise each time, which tells overfitting.

A held-out example's noise level, noise, crop and dropped caption are functions of the seeds and of a hash of
its id. So the loss depends on the weights alone: not on the mesh, the processes, the parts that a batch is
cut into, or the order of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.models import components
from ultrapixel_jax.training.inputs import Inputs
from ultrapixel_jax.training.programs import Programs
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.step import BANDS, band_name, band_sums, interleaved
from ultrapixel_jax.training.tasks.base import Batch, Task

NAME = "validation_loss"
Sums = dict[str, Array]


class Validation:
    """Computes it; all processes have to call it, as they all hold parts of the networks."""

    def __init__(self, task: Task, loader: Loader, inputs: Inputs, mesh: Mesh, programs: Programs) -> None:
        """Of what `loader` holds out; `programs` compiles for each bucket."""
        self._config, self._loader, self._inputs, self._programs = task.config, loader, inputs, programs
        whole = NamedSharding(mesh, PartitionSpec())
        self._sums = jax.jit(make_sums(task), out_shardings=whole)

    def __call__(self, state: TrainState, frozen: Mapping[str, Any]) -> dict[str, float]:
        """Mean loss of all examples, and in each band of logSNR, by the names of the log."""
        params = state.ema or state.params
        total: dict[str, Any] = {}
        for batch in self._loader.held_out_batches(self._config.validation.examples):
            arrays = self._inputs(batch)
            arrays |= {name: self._inputs.place(batch[name]) for name in ("number", "weight")}
            arguments = (params, state.collections, frozen, arrays)
            sums = self._programs.run("validation", self._sums, arguments, batch["bucket"])
            for name, value in jax.tree.map(lambda x: np.asarray(x, np.float64), sums).items():
                total[name] = total.get(name, 0.0) + value
        return named(total)


def make_sums(task: Task) -> Callable[[Any, Any, Any, Batch], Sums]:
    """The function from parameters, collections, frozen networks and a held-out batch to sums of losses.

    `loss` and `count` are sums over the samples, `band_loss` and `band_count` over those in each band.
    """
    evaluating, parts = task.evaluating(), task.config.optimizer.accumulate
    base = components.key_for(task.config.seed, "validation")

    def key(number: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(base, number[0]), number[1]))

    def sums(params: Any, collections: Any, frozen: Mapping[str, Any], batch: Batch) -> Sums:
        def part(micro: Batch) -> Sums:
            micro = {**micro, "key": jax.vmap(key)(micro["number"])}
            weight = micro["weight"]
            out = evaluating.loss(params, collections, frozen, micro)
            weight = jnp.repeat(weight, len(out.loss) // len(weight))  # several noise levels of each
            found = {"loss": (out.loss * weight).sum(), "count": weight.sum()}
            if out.logsnr is not None:
                found |= band_sums(out.logsnr, out.loss, weight)
            return found

        if parts == 1:
            return part(batch)
        return jax.tree.map(lambda x: x.sum(0), jax.lax.map(part, interleaved(batch, parts)))

    return sums


def named(total: Mapping[str, Any]) -> dict[str, float]:
    """Means of `total`, sums over all batches, by the names of the log."""
    if not total or not total["count"]:
        return {}
    out = {NAME: float(total["loss"] / total["count"])}
    if "band_loss" in total:
        for i, (low, high) in enumerate(itertools.pairwise(BANDS)):
            if count := total["band_count"][i]:
                out[f"validation_{band_name(low, high)}"] = float(total["band_loss"][i] / count)
    return out
