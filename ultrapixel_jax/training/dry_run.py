"""``train.py … --dry-run``: what a run would be, checked as far as that goes; writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ultrapixel_jax.checkpoints.runs import saved_steps
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.data.prior import loader_of
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.report import device_memory
from ultrapixel_jax.sharding import device_bytes
from ultrapixel_jax.training import machines
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.checkpoints import check_directory, is_finished
from ultrapixel_jax.training.config import TrainConfig
from ultrapixel_jax.training.inputs import Inputs, rows_of_batch
from ultrapixel_jax.training.log import describe
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.pictures import make_pictures
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.tasks.base import WITHOUT


def dry_run(config: TrainConfig, *, compiled: bool = False) -> list[str]:
    """Check machines, data, sources, directory and memory of a run; what it would be, line by line.

    Args:
        config: of the run.
        compiled: compile the step for the bucket with the largest pictures too, and ask the compiler for the
            memory that it takes beside its arguments. Takes as long as the first step of the run.

    Raises:
        UserError: the run would end with it.
    """
    machines.join(config.machines)
    mesh = machines.mesh_of(config.mesh)
    with jax.set_mesh(mesh):
        if is_finished(config):
            return [f"finished already: {config.output} has all {config.steps} steps"]
        rows = rows_of_batch(mesh, config.data.batch_size, config.optimizer.accumulate)
        task = make_task(config)
        task.check()
        with loader_of(config.reading, rows=rows, held_out=config.validation.share) as loader:
            sources = Sources(config.sources)
            if config.random_frozen:
                sources.fill_with_random(config.model, config.seed)
            sources.require(task.frozen, f"training {', '.join(task.trained)}", WITHOUT)
            started = states.started(task, sources)
            for name in (*task.frozen, *(started.values())):
                sources.check(name, getattr(config.model, name))
            inputs = Inputs(task, sources.tokenizer, mesh)
            if config.pictures.every:
                make_pictures(task, sources, mesh, inputs.place)
            if config.measures.every:
                from ultrapixel_jax.training.measures import Measures  # with scipy: a second of the start

                Measures(task, sources, mesh)
            check_directory(epath.Path(config.output), config)
            largest = max(loader.bucket_counts(), key=lambda size: size[0] * size[1])
            loader.seek(next(k for k in range(2**62) if loader.size_of(k) == largest))
            arrays = inputs(next(loader))  # so that the data can be read, and fit
            optimizer = make_optimizer(config.optimizer)
            abstract = jax.eval_shape(states.creator(task, optimizer), {})
            shardings = states.state_shardings(abstract, optimizer, mesh)
            state = states.place(abstract, shardings)
            steps = saved_steps(config.output)
            weights = states.origins(task, sources, fresh=not steps)
            lines = describe(task, state, mesh, loader, steps[-1] if steps else 0, weights)
            frozen = {
                name: states.abstract(task, name, mesh, states.frozen_dtype(task, name))
                for name in task.frozen
            }
            parts = {
                "trained parameters": state.params,
                "optimizer": state.optimizer,
                "moving average": state.ema,
                "frozen networks": frozen,
                "a batch of the largest bucket": arrays,
            }
            sizes = {name: device_bytes(tree) for name, tree in parts.items()}
            lines.append(f"memory on each device: {memory_line(sizes)}")
            if compiled:
                step = jax.jit(make_step(task, optimizer), donate_argnums=0, out_shardings=(shardings, None))
                found: Any = step.lower(state, frozen, np.float32(0), arrays).compile().memory_analysis()
                taken = found.argument_size_in_bytes + found.temp_size_in_bytes
                lines.append(
                    f"the compiler's reckoning for {largest[0]}x{largest[1]}: {gigabytes(taken)}, of which "
                    f"{gigabytes(found.temp_size_in_bytes)} are temporary"
                )
                check_fits(taken)
            else:
                check_fits(sum(sizes.values()))
                lines.append("temporary values come on top: --dry-run compile asks the compiler for them")
    every = config.checkpoints.every
    lines.append(f"would train {config.steps} steps into {config.output}, with a checkpoint every {every}")
    return lines


def memory_line(sizes: Mapping[str, int]) -> str:
    """`sizes` in words, and their sum beside what the device has."""
    memory = device_memory()
    there = f" of {gigabytes(memory[1])}" if memory else ""
    parts = [f"{name} {gigabytes(n)}" for name, n in sizes.items() if n]
    return f"{', '.join(parts)}; together {gigabytes(sum(sizes.values()))}{there}"


def check_fits(taken: int) -> None:
    """Refuse what cannot fit, where the device tells what it has.

    Raises:
        UserError: it is more than that.
    """
    memory = device_memory()
    if memory and taken > memory[1]:
        raise UserError(
            f"the run takes {gigabytes(taken)} on each device, which has {gigabytes(memory[1])}: use "
            "more devices with --mesh.fsdp, more parts with --optimizer.accumulate, or smaller --data.areas"
        )


def gigabytes(n: int) -> str:
    """`n` bytes, in GB or, of less than one, MB."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
