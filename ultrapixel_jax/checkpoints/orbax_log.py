"""Nothing of a failed save is logged beside the one line that says so: Orbax raises what it logs.

Its arrays are written by tasks of one event loop. The first that fails is raised; should others fail before
they are cancelled, asyncio logs each with a traceback.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def quiet() -> None:
    """Silence Orbax's own log, and asyncio's about Orbax's tasks."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_not_orbaxs)


def ignore_tasks_left_behind() -> None:
    """Before reading or writing checkpoints: of damage or a full disk, Orbax tells only what it raises.

    Those of its tasks that were at work when one failed else write to standard error that nobody waits for
    them. Asked again, this changes nothing.
    """
    usual = sys.unraisablehook
    if getattr(usual, "ignores_tasks_left_behind", False):
        return

    def hook(what: Any) -> None:
        if str(what.exc_value) != "Event loop is closed":
            usual(what)

    hook.ignores_tasks_left_behind = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = hook


def _is_not_orbaxs(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio is about others: of a task it names the file of Orbax's coroutine, of a
    future the file that could not be written, in a directory with a name of Orbax's.
    """
    message = record.getMessage().replace("\\", "/")
    return "/orbax/checkpoint/" not in message and ".orbax-checkpoint-tmp" not in message
