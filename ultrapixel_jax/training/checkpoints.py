"""Checkpoints of a run: asynchronous, whole or not there, and refused where they do not fit.

RUN/config.json              the configuration
RUN/checkpoints/STEP/state   Orbax: trained parameters, average, optimizer, losses, random key
RUN/checkpoints/STEP/data    position of the data and of the log, checksums of the state; JSON
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from ultrapixel_jax.checkpoints import orbax_log
from ultrapixel_jax.checkpoints.checksum import checksum
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS, CONFIG, check_sum, config_to_json, one_error
from ultrapixel_jax.data.paths import write_whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_full
from ultrapixel_jax.training.config import CheckpointConfig, TrainConfig, differences
from ultrapixel_jax.training.state import TrainState

orbax_log.quiet()


class RunCheckpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: str, config: CheckpointConfig) -> None:
        """Open what is in `directory`, creating it if need be.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        self.directory = epath.Path(directory)
        one_error()
        with disk_errors(directory):
            there = {path.name for path in self.directory.iterdir()} if self.directory.exists() else set()
            if CONFIG not in there and (strange := sorted(n for n in there - {CHECKPOINTS} if n[0] != ".")):
                raise UserError(
                    f"{directory} is not empty and no run (it has {strange[0]} and no {CONFIG}); use another "
                    "--output"
                )
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

    def check(self, config: TrainConfig) -> None:
        """Compare the configuration with that of the run that is there, if one is.

        Raises:
            UserError: the directory holds a run of another configuration, or something else.
        """
        file = self.directory / CONFIG
        new = config_to_json(config)
        if file.exists():
            try:
                old = json.loads(file.read_text())
                if not isinstance(old, dict):
                    raise ValueError("it holds no configuration")
            except ValueError as error:
                raise UserError(f"{file} is damaged; restore it, or train into another --output") from error
            if found := differences(old, json.loads(json.dumps(new))):
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                raise UserError(
                    f"{self.directory} holds a run with another configuration: {'; '.join(found[:5])}{more}; "
                    "use the same, or another --output"
                )
        elif self.latest is not None:
            raise UserError(f"{self.directory} has checkpoints but no {CONFIG}; use another --output")

    def describe(self, config: TrainConfig) -> None:
        """Write the configuration, before the first checkpoint or with what has changed since."""
        if jax.process_index() == 0:
            with disk_errors(os.fspath(self.directory)):
                text = json.dumps(config_to_json(config), indent=1) + "\n"
                write_whole(self.directory / CONFIG, text.encode())

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
                sums = {name: int(checksum(value)) for name, value in state._asdict().items()}
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
            UserError: it is damaged or does not fit; nothing is started afresh over it.
        """
        step = self.latest
        what = f"checkpoint {step} in {self.directory}"
        try:
            out = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract._asdict()),  # pyright: ignore
                    data=ocp.args.JsonRestore(),
                ),
            )
            state = TrainState(**out["state"])
            same = jax.tree.structure(state) == jax.tree.structure(abstract)
            for name, value in state._asdict().items():
                check_sum(name, value, out["data"])
        except Exception as error:  # Orbax reports damage as whatever its storage library raised
            text = " ".join(str(error).split())
            raise UserError(
                f"{what} cannot be restored ({type(error).__name__}: {text:.300}); remove that directory to "
                "go on from the one before, or train into another --output"
            ) from error
        wrong = [
            jax.tree_util.keystr(path)
            for (path, got), expected in zip(
                jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(abstract), strict=same
            )
            if got.shape != expected.shape
        ]
        if not same or wrong:
            raise UserError(f"{what} is of another configuration: {', '.join(wrong[:5]) or 'other arrays'}")
        return state, out["data"]

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


def absolute(path: epath.Path) -> epath.Path:
    """Orbax wants absolute paths; those of a bucket are."""
    return path if "://" in os.fspath(path) else path.expanduser().absolute()


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
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written ({error.strerror or text[:200]})") from error
        raise
