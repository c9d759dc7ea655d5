"""Nothing of a failed save is logged beside the one line that says so: Orbax raises what it logs.

Its arrays are written by tasks of one event loop. The first that fails is raised; should others fail before
they are cancelled, asyncio logs each with a traceback.
"""

from __future__ import annotations

import logging


def quiet() -> None:
    """Silence Orbax's own log, and asyncio's about Orbax's tasks."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_of_others)


def _of_others(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio is about others: of a task it names the file of Orbax's coroutine, of a
    future the file that could not be written, in a directory with a name of Orbax's.
    """
    message = record.getMessage().replace("\\", "/")
    return "/orbax/checkpoint/" not in message and ".orbax-checkpoint-tmp" not in message
