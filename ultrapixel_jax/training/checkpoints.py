"""Checkpoints of a run: asynchronous, whole or not there, and refused where they do not fit.

RUN/config.json              the configuration
RUN/run.json                 what the run is made of, for those who read it (`checkpoints.runs`)
RUN/checkpoints/STEP/state   Orbax: trained parameters, average, optimizer, losses, random key
RUN/checkpoints/STEP/data    position of the data and of the log, checksums of the state; JSON
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from ultrapixel_jax.checkpoints import orbax_log
from ultrapixel_jax.checkpoints.arrays import check_like, flatten, stored_tree
from ultrapixel_jax.checkpoints.checksum import BY_COMPONENT, check_sums, checksums
from ultrapixel_jax.checkpoints.faults import reading
from ultrapixel_jax.checkpoints.runs import (
    CHECKPOINTS,
    CONFIG,
    RUN_MANIFEST,
    RunManifest,
    absolute,
    manifest_to_json,
    saved_steps,
)
from ultrapixel_jax.config import GuidanceConfig
from ultrapixel_jax.data.config import MULTIPLE
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_full, is_remote, refusal, write_whole
from ultrapixel_jax.sizes import HW, STAGE_C_FACTOR
from ultrapixel_jax.training.changes import differences
from ultrapixel_jax.training.config import CheckpointConfig, TrainConfig, config_to_json
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.tasks import make_task

orbax_log.quiet()


class RunCheckpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: str, config: CheckpointConfig) -> None:
        """Open what is in `directory`, which `check_directory` accepted, creating it if need be.

        Raises:
            UserError: it cannot be written.
        """
        self.directory = epath.Path(directory)
        orbax_log.ignore_tasks_left_behind()
        with disk_errors(directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep_last,
                keep_period=config.keep_every or None,
                enable_async_checkpointing=True,
                create=True,
            )
            self._manager = ocp.CheckpointManager(
                os.fspath(absolute(self.directory / CHECKPOINTS)), options=options
            )

    def describe(self, config: TrainConfig, sizes: Collection[HW]) -> None:
        """Write the configuration and what the run is made of, before the first checkpoint or with what has
        changed since.

        Args:
            config: of the run.
            sizes: heights and widths of its buckets that have examples, in pixels of the EffNet encoder.
        """
        if jax.process_index() == 0:
            texts = {
                CONFIG: config_to_json(config),
                RUN_MANIFEST: manifest_to_json(manifest_of(config, sizes)),
            }
            with disk_errors(os.fspath(self.directory)):
                for name, values in texts.items():
                    write_whole(self.directory / name, json.dumps(values, indent=1) + "\n")

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Mapping[str, Any], *, wait: bool = False) -> None:
        """Save `state` in the background; an earlier save that failed raises here.

        Raises:
            UserError: it cannot be written; the checkpoints before it are whole.
        """
        with disk_errors(os.fspath(self.directory)):
            step = int(state.step)
            if step != self.latest:
                sums = checksums(state._asdict())
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state._asdict()),  # pyright: ignore[reportCallIssue]
                        data=ocp.args.JsonSave({**data, "checksums": sums}),  # pyright: ignore[reportCallIssue]
                    ),
                )
            if wait:
                self._manager.wait_until_finished()

    def restore(self, abstract: PyTree[jax.ShapeDtypeStruct]) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, placed as `abstract` says, and the position of the data.

        Raises:
            UserError: it is damaged, out of reach, does not fit into memory or is of another configuration;
                nothing is started afresh over it.
        """
        step = self.latest
        what = f"checkpoint {step} in {self.directory}"
        remedy = "remove that directory to go on from the one before, or train into another --output"
        with reading(what, remedy):
            stored = stored_tree(absolute(self.directory / CHECKPOINTS / str(step) / "state"))
            _check_fits(what, stored, abstract)
            out = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract._asdict()),  # pyright: ignore
                    data=ocp.args.JsonRestore(),
                ),
            )
            check_sums(out["state"], out["data"].get("checksums", {}))
            return TrainState(**out["state"]), out["data"]

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for a save that is under way, whatever ends the run.

        Raises:
            UserError: it failed.
        """
        with disk_errors(os.fspath(self.directory)):
            self._manager.wait_until_finished()
            self._manager.close()


def _check_empty(directory: epath.Path) -> None:
    there = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if CONFIG not in there and (strange := sorted(n for n in there - {CHECKPOINTS} if n[0] != ".")):
        raise UserError(
            f"{directory} is not empty and no run (it has {strange[0]} and no {CONFIG}); use another --output"
        )


def check_directory(directory: epath.Path, config: TrainConfig) -> None:
    """Whether a run of `config` may be in `directory`, which need not exist.

    Raises:
        UserError: it holds a run of another configuration, or something else.
    """
    with disk_errors(os.fspath(directory)):
        _check_empty(directory)
        check_configuration(directory, config)
        if saved_steps(directory) and not (directory / CONFIG).exists():
            raise UserError(f"{directory} has checkpoints but no {CONFIG}; use another --output")


def check_configuration(directory: epath.Path, config: TrainConfig) -> None:
    """Compare `config` with that of the run in `directory`, if there is one.

    Raises:
        UserError: it is another one in a field that may not change, or what is there is damaged.
    """
    file = directory / CONFIG
    if not file.exists():
        return
    try:
        old = json.loads(file.read_text())
        if not isinstance(old, dict):
            raise ValueError("it holds no configuration")
    except ValueError as error:
        raise UserError(f"{file} is damaged; restore it, or train into another --output") from error
    if found := differences(old, config):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"{directory} holds a run with another configuration: {'; '.join(found[:5])}{more}; "
            "use the same, or another --output"
        )


def is_finished(config: TrainConfig) -> bool:
    """Whether the run of `config` has done all its steps.

    Raises:
        UserError: the directory holds a finished run of another configuration.
    """
    directory = epath.Path(config.output)
    with disk_errors(config.output):
        steps = saved_steps(directory) if (directory / CONFIG).exists() else []
    if not steps or steps[-1] < config.steps:
        return False
    check_configuration(directory, config)
    return True


def manifest_of(config: TrainConfig, sizes: Collection[HW]) -> RunManifest:
    """What a run of `config` on data of `sizes` is made of."""
    task = make_task(config)
    model = config.model
    if "guidance" in task.trained and model.guidance is not None:
        model = dataclasses.replace(model, guidance=_trained_on(model.guidance, sizes))
    return RunManifest(
        {name: task.stacks(name) for name in task.trained}, bool(config.optimizer.ema_decay), model,
        config.sources, config.seed if config.random_frozen else None,
    )  # fmt: skip


def _trained_on(guidance: GuidanceConfig, sizes: Collection[HW]) -> GuidanceConfig:
    """`guidance` with `sizes` as those of the pictures that are drawn.

    The encoder sees 32 pixels for each position of a latent, from which 42.67 are drawn.
    """
    sides = sorted(round(math.sqrt(height * width) * STAGE_C_FACTOR / MULTIPLE) for height, width in sizes)
    longest = max(max(size) / min(size) for size in sizes)
    return dataclasses.replace(guidance, trained_sides=(sides[0], sides[-1]), trained_ratio=longest)


def _check_fits(what: str, stored: Mapping[str, Any], abstract: TrainState) -> None:
    """Raise `UserError` where the arrays in `stored` are not those of the state `abstract`."""
    remedy = "use the configuration that the run was started with, or another --output"
    for field in BY_COMPONENT:
        like = flatten(abstract._asdict()[field])
        check_like(f"{what} has other {field}: it", flatten(stored.get(field, {})), like, remedy)

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(x.shape) for x in jax.tree.leaves(tree))

    if shapes(stored) != shapes(abstract):
        raise UserError(f"{what} has the state of another optimizer; {remedy}")


@contextlib.contextmanager
def disk_errors(directory: str) -> Iterator[None]:
    """Turn what the file system refuses into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A failed asynchronous save comes back as whatever its thread raised.
        text = " ".join(str(error).split())
        if is_full(error):
            raise UserError(
                f"no space left to save in {directory}; free some and run the same command again: the "
                "checkpoints before are whole"
            ) from error
        if is_remote(directory) and (said := refusal(error)):
            raise UserError(f"{directory} cannot be written: {said}") from error
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written ({error.strerror or text[:200]})") from error
        raise
