import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ultrapixel_jax.checkpoints import directory  # noqa: F401 - silences it
from ultrapixel_jax.checkpoints.orbax_log import ignore_tasks_left_behind


def fails_in(file: str) -> Callable[[], Awaitable[None]]:
    """A coroutine function defined in `file`."""
    names: dict[str, Any] = {}
    exec(compile("async def save():\n    raise ValueError('no space')", file, "exec"), names)
    return names["save"]


def forget(save: Callable[[], Awaitable[None]]) -> None:
    """Lets a task fail whose exception nobody retrieves."""

    async def start() -> None:
        task = asyncio.ensure_future(save())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert task.done()

    asyncio.run(start())
    gc.collect()


def test_a_failed_save_is_not_logged_beside_its_error(caplog: pytest.LogCaptureFixture) -> None:
    forget(fails_in("/site-packages/orbax/checkpoint/_src/serialization/serialization.py"))
    assert caplog.text == ""
    forget(fails_in("/home/someone/own.py"))
    assert "never retrieved" in caplog.text


def test_nor_is_one_of_its_storage_library(caplog: pytest.LogCaptureFixture) -> None:
    def forgotten(file: str) -> None:
        async def fail() -> None:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ValueError(f"Error writing '{file}': No space left on device"))
            del future
            gc.collect()

        asyncio.run(fail())

    forgotten("/runs/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/d/5be4")
    assert caplog.text == ""
    forgotten("/home/someone/own")
    assert "never retrieved" in caplog.text


def test_one_hook_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: said.append(str(what.exc_value)))
    ignore_tasks_left_behind()
    hook = sys.unraisablehook
    ignore_tasks_left_behind()
    assert sys.unraisablehook is hook
    for text in ("Event loop is closed", "another"):
        hook(SimpleNamespace(exc_value=RuntimeError(text)))  # pyright: ignore[reportArgumentType]
    assert said == ["another"]
