"""The training loop, from top to bottom: ``train.py``, and `ultrapixel_jax.train` in Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.compilation import cache as compilation_cache
from ultrapixel_jax.data.prior import loader_of
from ultrapixel_jax.report import matmul_rate
from ultrapixel_jax.training import machines, stopping
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.checkpoints import RunCheckpoints, check_directory, is_finished
from ultrapixel_jax.training.config import TrainConfig
from ultrapixel_jax.training.ending import finished
from ultrapixel_jax.training.inputs import Inputs, rows_of_batch
from ultrapixel_jax.training.log import STEP, Log, check_finite
from ultrapixel_jax.training.optimizer import learning_rate, make_optimizer
from ultrapixel_jax.training.pictures import labels_of, make_pictures, save_pictures
from ultrapixel_jax.training.profile import Profile
from ultrapixel_jax.training.programs import Programs
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.tasks.base import WITHOUT
from ultrapixel_jax.training.validation import Validation


def train(config: TrainConfig, *, notes: Sequence[str] = ()) -> None:
    """Train as `config` says until it is done, or until SIGTERM; the run lies in `config.output`.

    The same configuration continues a run that was stopped. The first process says `notes` on stderr.

    Raises:
        UserError: a value, a network, the data or the directory is not as `config` says.
    """
    # ── Machines ───────────────────────────────────────────────────────────────────────────────────────
    machines.join(config.machines)
    if notes and jax.process_index() == 0:
        print("\n".join(notes), file=sys.stderr)
    if compilation_cache.use() is None:
        print("warning: no compilation cache: the user's cache directory cannot be written", file=sys.stderr)
    mesh = machines.mesh_of(config.mesh)
    if is_finished(config):
        if jax.process_index() == 0:
            print(finished(config), file=sys.stderr)
        return

    with jax.set_mesh(mesh):
        # ── Data ───────────────────────────────────────────────────────────────────────────────────────
        rows = rows_of_batch(mesh, config.data.batch_size, config.optimizer.accumulate)
        task = make_task(config)
        task.check()
        loader = loader_of(config.reading, rows=rows, held_out=config.validation.share)

        # ── Networks: which are trained, which are frozen, where they come from ───────────────────────
        sources = Sources(config.sources)
        if config.random_frozen:
            sources.fill_with_random(config.model, config.seed)
        sources.require(task.frozen, f"training {', '.join(task.trained)}", WITHOUT)
        inputs = Inputs(task, sources.tokenizer, mesh)
        draw = make_pictures(task, sources, mesh, inputs.place) if config.pictures.every else None
        measures = None
        if config.measures.every:
            from ultrapixel_jax.training.measures import Measures  # with scipy: a second of the start

            measures = Measures(task, sources, mesh)

        # ── State: that of the newest checkpoint, or a fresh one ───────────────────────────────────────
        check_directory(epath.Path(config.output), config)
        checkpoints = RunCheckpoints(config.output, config.checkpoints)
        optimizer = make_optimizer(config.optimizer)
        abstract = jax.eval_shape(states.creator(task, optimizer), {})
        shardings = states.state_shardings(abstract, optimizer, mesh)
        if checkpoints.latest is None:
            state, position = states.fresh(task, optimizer, sources, mesh, shardings), {}
        else:
            state, position = checkpoints.restore(states.place(abstract, shardings))
            loader.restore(position)
        checkpoints.describe(config, loader.bucket_counts())
        frozen = states.frozen(task, sources, mesh)

        # ── Loop ───────────────────────────────────────────────────────────────────────────────────────
        start = int(state.step)
        log = Log(
            checkpoints.directory, config.log, steps=config.steps, start=start,
            batch_size=config.data.batch_size,
        )  # fmt: skip
        log.restore(position.get("log"))
        log.describe(task, state, mesh, loader, states.origins(task, sources, fresh=start == 0))
        log.matmul_rate = matmul_rate(config.dtype, mesh.size)

        # ── Step and validation, compiled once per bucket; pictures ────────────────────────────────────
        step = jax.jit(make_step(task, optimizer), donate_argnums=0, out_shardings=(shardings, None))
        programs = Programs(log, len(loader.bucket_counts()), task.kinds)
        validation = Validation(task, loader, inputs, mesh, programs) if config.validation.share else None

        def validate(n: int) -> None:
            """Write the losses on held-out examples after step `n`."""
            if validation is not None:
                with log.paused():
                    losses = validation(state, frozen)
                log.validated(n, losses)

        def show(n: int) -> None:
            """Draw pictures after step `n`."""
            if draw is not None:
                log.say(f"drawing pictures of step {n} …")
                with log.paused():
                    held_out = (
                        loader.held_out_batches(config.data.batch_size) if loader.held_out else iter(())
                    )
                    pictures = draw(state, frozen, next(held_out, batch))
                    save_pictures(log, checkpoints.directory, n, pictures, labels_of(task, draw))

        def appraise(n: int) -> None:
            """Draw the fixed set after step `n`, and write what it measures."""
            if measures is not None:
                log.say(f"drawing and measuring the pictures of step {n} …")
                with log.paused():
                    log.measured(n, measures(state, frozen))

        def settle(step: int, metrics: Any, batch: Any, operations: int) -> None:
            """Take the metrics of a step once it has run."""
            metrics = jax.tree.map(np.asarray, metrics)
            check_finite(step, metrics, batch)
            log.add(step, metrics, operations)

        try:
            recorded = Profile(checkpoints.directory, config.log.profile)
            with stopping.Stop() as stop, checkpoints, loader, recorded as profile:
                waiting, stopped = None, False
                if is_due(config.validation.every, start, config.steps) and log.validated_step != start:
                    validate(start)
                for n in range(start + 1, config.steps + 1):
                    with log.waiting():
                        batch = next(loader)
                    if n == 1:
                        show(0)
                        appraise(0)
                    arrays = task.part(n, inputs(batch))
                    profile.before(n)
                    rate = np.float32(learning_rate(config.optimizer, config.steps, n - 1))
                    state, metrics = programs.run(STEP, step, (state, frozen, rate, arrays), batch["bucket"])
                    profile.after(n, metrics)
                    # While the device runs step n, the host looks at step n − 1.
                    if waiting is not None:
                        settle(*waiting)
                    waiting = (n, metrics, batch, task.flops({name: x.shape for name, x in arrays.items()}))
                    stopped = stop.at(n)
                    saves = stopped or is_due(config.checkpoints.every, n, config.steps)
                    validates = not stopped and is_due(config.validation.every, n, config.steps)
                    if saves or validates:
                        settle(*waiting)  # so that nothing is saved that is not finite
                        waiting = None
                    if n == config.steps:
                        log.write(n)
                    if validates:
                        validate(n)
                    if saves:
                        checkpoints.save(state, {**loader.state(), "log": log.state()})
                    if not stopped and is_due(config.pictures.every, n, config.steps):
                        show(n)
                    if not stopped and is_due(config.measures.every, n, config.steps):
                        appraise(n)
                    if stopped:
                        log.say(f"stopped at step {n}: the same command continues")
                        break
            if not stopped:
                log.say(finished(config))
        finally:
            log.close()


def is_due(every: int, step: int, steps: int) -> bool:
    """Whether what is done `every` so many steps is done after `step`; after the last of `steps` it is."""
    return step == steps or (every > 0 and step % every == 0)
