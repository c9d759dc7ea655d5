"""SIGTERM, which preemption and time limits send: it ends a run with exit code 0, at any moment.

Before a run has done a step there is nothing to save, and the process ends at once, whatever it does: joining
others, reading, compiling. From then on it saves after the step under way. Imports no jax.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SAID = b"stopped before the first step: the same command starts or continues the run\n"

_worth_saving = threading.Event()
"""Set while a step is done that SIGTERM must not lose."""


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within, SIGTERM ends this process with exit code 0, but not while a `Stop` has something to save.

    For command lines: it is the whole process that ends. Once several processes have joined, jax listens in
    place of this, and all stop at the same step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A Python handler waits for the main thread, which may compile for minutes: a thread reads what the
    # interpreter writes as soon as the signal comes.
    _worth_saving.clear()
    out, into = os.pipe()
    os.set_blocking(into, False)
    threading.Thread(target=_listen, args=(out,), daemon=True).start()
    before = signal.signal(signal.SIGTERM, _nothing)
    pipe = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe)
        signal.signal(signal.SIGTERM, before)
        os.close(into)  # which ends the thread


def _nothing(number: int, frame: FrameType | None) -> None:
    del number, frame


def _listen(out: int) -> None:
    with open(out, "rb", buffering=0) as pipe:
        while numbers := pipe.read(1):
            if numbers[0] == signal.SIGTERM and not _worth_saving.is_set():
                with contextlib.suppress(OSError):
                    os.write(2, SAID)  # `sys.stderr` may lead elsewhere
                os._exit(0)


class Stop:
    """Whether the run has been asked to stop, by SIGTERM to any of its processes."""

    def __init__(self) -> None:
        import jax

        self._asked = False
        self._previous: signal.Handlers | int | object | None = None
        # With several processes jax itself watches for the signal, and agrees on a step to stop at.
        self._many = jax.process_count() > 1
        self._listens = not self._many and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Stop:
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)  # pyright: ignore[reportArgumentType]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def at(self, step: int) -> bool:
        """Whether to stop after `step`, which is done; the same answer in every process."""
        _worth_saving.set()
        if self._many:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
