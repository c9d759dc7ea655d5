"""Reading a run's directory: its configuration, and the weights that it trained."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from ultrapixel_jax.config import from_dict, to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training import config as cfg

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


def config_to_json(config: cfg.TrainConfig) -> dict[str, Any]:
    """Plain form of a configuration; `task_type` names the class of `task`."""
    return {"task_type": type(config.task).__name__, **to_dict(config)}


def config_from_json(values: dict[str, Any]) -> cfg.TrainConfig:
    """Inverse of `config_to_json`.

    Raises:
        UserError: an unknown task or field.
    """
    values = dict(values)
    name = values.pop("task_type", None)
    tasks = {task.__name__: task for task in cfg.Task.__args__}
    if name not in tasks:
        raise UserError(f"task {name!r} is not known; known are {', '.join(tasks)}")
    return from_dict(cfg.TrainConfig, {**values, "task": from_dict(tasks[name], values["task"])})


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` is that of a run."""
    path = epath.Path(directory)
    return (path / CONFIG).exists() and (path / CHECKPOINTS).exists()


def one_error() -> None:
    """Before reading or writing checkpoints: of damage or a full disk, Orbax tells only what it raises.

    Those of its tasks that were at work when one failed else write to standard error that nobody waits for
    them.
    """
    usual = sys.unraisablehook

    def hook(what: Any) -> None:
        if str(what.exc_value) != "Event loop is closed":
            usual(what)

    sys.unraisablehook = hook


def check_sum(name: str, value: Any, saved: Mapping[str, Any]) -> None:
    """Compare a restored field of the state with the checksum in what was saved beside it.

    Raises:
        ValueError: its bits are not those that were saved.
    """
    from ultrapixel_jax.checkpoints.checksum import checksum

    expected = saved.get("checksums", {}).get(name)
    if expected is not None and int(checksum(value)) != expected:
        raise ValueError(f"{name} are not the numbers that were saved")


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """What the newest checkpoint of a run holds."""

    directory: epath.Path
    config: cfg.TrainConfig
    step: int

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> RunWeights:
        """Read the configuration, and find the newest checkpoint.

        Raises:
            UserError: nothing was saved yet, or the configuration is damaged.
        """
        path = epath.Path(directory)
        try:
            config = config_from_json(json.loads((path / CONFIG).read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path / CONFIG} cannot be read ({error}); is {path} a run?") from error
        steps = [int(p.name) for p in (path / CHECKPOINTS).iterdir() if p.name.isdigit()]
        if not steps:
            raise UserError(f"run {path} has no checkpoint yet; let it train on")
        return cls(path, config, max(steps))

    def restore(self, *, ema: bool = True) -> dict[str, dict[str, Any]]:
        """Trained variables by component, float32 on the host, blocks unstacked.

        Args:
            ema: the moving average, where the run has one; else the parameters themselves.

        Raises:
            UserError: the checkpoint is damaged.
        """
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        from ultrapixel_jax.models.scan import unstack
        from ultrapixel_jax.training.tasks import make_task
        from ultrapixel_jax.training.tasks.base import SCANNABLE

        task = make_task(self.config)
        ema = ema and self.config.optimizer.ema_decay > 0
        which = "ema" if ema else "params"
        fresh = {
            name: jax.eval_shape(lambda name=name: task.initial(name, jax.random.key(0)))
            for name in task.trained
        }
        wanted = {
            which: {name: v["params"] for name, v in fresh.items()},
            "collections": {name: {k: c for k, c in v.items() if k != "params"} for name, v in fresh.items()},
        }
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        path = self.directory / CHECKPOINTS / str(self.step) / "state"
        try:
            one_error()
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                out = checkpointer.restore(
                    os.fspath(path if "://" in os.fspath(path) else path.absolute()),
                    args=ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True),
                )
            saved = json.loads((path.parent / "data" / "metadata").read_text())
            for name in wanted:
                check_sum(name, out[name], saved)
        except Exception as error:  # Orbax reports damage as whatever its storage library raised
            text = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {text:.300})") from error
        variables = {
            name: {"params": out[which][name], **(out["collections"].get(name) or {})}
            for name in task.trained
        }
        if self.config.scanned:
            for name in SCANNABLE:
                if name in variables:
                    variables[name] = unstack(variables[name], getattr(self.config.model, name))
        return variables
