"""What keeps something from being read has a remedy that belongs to its cause."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoints.test_runs import make_run
from tests.training.steps import config_of
from ultrapixel_jax.checkpoints import arrays, directory
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo, restore
from ultrapixel_jax.checkpoints.faults import cause_of, reading
from ultrapixel_jax.checkpoints.runs import RunWeights
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training.checkpoints import RunCheckpoints
from ultrapixel_jax.training.config import OptimizerConfig, TextTask
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.state import creator
from ultrapixel_jax.training.tasks import make_task


def out_of_memory() -> Exception:
    """The error of a device that is full."""
    try:
        jax.block_until_ready(jnp.zeros(2**46, jnp.float32))
    except jax.errors.JaxRuntimeError as error:
        return error
    raise AssertionError("256 TB were there")


ERRORS: dict[str, tuple[Callable[[], BaseException], str | None]] = {
    "device": (out_of_memory, "memory"),
    "host": (lambda: MemoryError("Unable to allocate 3 GiB"), "memory"),
    "storage library": (lambda: ValueError("RESOURCE_EXHAUSTED: reading d/5be4"), "memory"),
    "no rights": (lambda: PermissionError(errno.EACCES, "Permission denied", "state"), "access"),
    "disk": (lambda: OSError(errno.EIO, "Input/output error"), "access"),
    "bucket": (lambda: ValueError("UNAVAILABLE: error reading gs://a/b"), "access"),
    "network": (lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "access"),
    "slow": (lambda: TimeoutError("waited 300 s"), "access"),
    "lost": (lambda: FileNotFoundError(errno.ENOENT, "No such file"), "damage"),
    "bits": (lambda: ValueError("DATA_LOSS: CRC-32C is 1, not 2"), "damage"),
    "key": (lambda: KeyError("ema"), "damage"),
    "program": (lambda: RuntimeError("an assumption was wrong"), None),
    "group": (lambda: ExceptionGroup("tasks", [ValueError("UNAVAILABLE: x")]), "access"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_causes(name: str) -> None:
    make, cause = ERRORS[name]
    assert cause_of(make()) == cause
    wrapped = ValueError("while reading 'state'")
    wrapped.__cause__ = make()
    assert cause_of(wrapped) == (cause or "damage")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("faults") / "run", TextTask())[0]


def of_a_run_that_goes_on(run: Path) -> Any:
    config = config_of(TextTask(), optimizer=OptimizerConfig(ema_decay=0.9))
    abstract: Any = jax.eval_shape(creator(make_task(config), make_optimizer(config.optimizer)), {})
    with RunCheckpoints(str(run), config.checkpoints) as checkpoints:
        return checkpoints.restore(abstract)


def of_a_source(run: Path) -> Any:
    return RunWeights.open(run).restore("clip_text")


def of_a_checkpoint(run: Path) -> Any:
    made = run.parent / "checkpoint"
    if not made.exists():
        with CheckpointWriter(made) as writer:
            writer.add("a", {"params": {"b": np.ones(3, np.float32)}}, ComponentInfo({}))
    return restore(made, "a")


@pytest.mark.parametrize("read", [of_a_run_that_goes_on, of_a_source, of_a_checkpoint])
def test_only_damage_advises_to_replace_what_is_there(
    read: Callable[[Path], Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(run)

    def message(name: str) -> str:
        def fail(*_: Any, **__: Any) -> Any:
            raise ERRORS[name][0]()

        with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
            patched.setattr(arrays, "restore_arrays", fail)
            patched.setattr(directory, "restore_arrays", fail)
            patched.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
            read(run)
        return str(caught.value)

    damage = ("remove", "again, or", "convert it again", "train")
    for name in ("device", "host"):
        assert "does not fit into memory" in message(name) and "more devices" in message(name)
        assert not any(words in message(name) for words in damage)
    for name in ("no rights", "disk", "bucket"):
        assert "cannot be reached" in message(name) and "permissions" in message(name)
        assert not any(words in message(name) for words in damage)
    assert any(words in message("bits") for words in damage) and "cannot be read" in message("bits")


def test_another_optimizers_state_is_not_damage(run: Path) -> None:
    config = config_of(TextTask(), optimizer=OptimizerConfig(ema_decay=0.0))
    abstract: Any = jax.eval_shape(creator(make_task(config), make_optimizer(config.optimizer)), {})
    with (
        RunCheckpoints(str(run), config.checkpoints) as checkpoints,
        pytest.raises(UserError, match=r"has other ema.*use the configuration") as caught,
    ):
        checkpoints.restore(abstract)
    assert "remove" not in str(caught.value)


def test_what_is_none_of_these_is_raised_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="assumption"), reading("a", "b"):
        raise RuntimeError("an assumption was wrong")
