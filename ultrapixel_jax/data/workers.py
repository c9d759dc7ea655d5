"""Processes that read data: they end with the process that they read for, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin(index: int, count: int) -> None:
    """What a reading process does first.

    Signals go to a whole job or terminal: the process that is read for decides what they mean. If that is
    killed, so that it can tell nobody, this one ends too; the last to end is Python's resource tracker, which
    then removes their shared memory.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def was_killed(error: RuntimeError) -> bool:
    """Whether grain says with `error` that a reading process ended by itself."""
    return "terminated unexpectedly with exit code" in str(error)
