"""Many processes of one run: joining them, agreeing, and ending together with one exit code.

They speak through the key-value store of jax's coordination service, which process 0 keeps: host to host,
beside any collective on the devices. So a process that fails tells the others even while they wait for it in
a collective: a thread in each looks once a second for what it has to say. One that is killed says nothing;
jax notices it after `silence` seconds and aborts the others, whose last line says so.

Imports jax only to join.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ultrapixel_jax import meeting
from ultrapixel_jax.commands import surroundings
from ultrapixel_jax.errors import UserError, one_line

LOOK = 1.0
"""Seconds between two looks for a process that ended."""
GRACE = 15.0
"""Seconds that process 0 waits for the others to have heard why they end."""
LONG = 10**9
"""Milliseconds, for what another process may take its time for."""
PREFIX = "ultrapixel_jax"

_group: _Group | None = None
"""The processes that this one has joined."""


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return _group is None or _group.index == 0


def join(
    coordinator: str = "", index: int = -1, number: int = -1, *, silence: int = 100, patience: int = 300
) -> None:
    """Connect to the other processes, before anything else of jax runs.

    Args:
        coordinator: HOST:PORT of process 0; empty to have it, `index` and `number` detected.
        index: of this process.
        number: of processes.
        silence: seconds without a sign of life after which a process counts as lost.
        patience: seconds to wait for the others; then this process ends with exit code 2.

    Raises:
        UserError: nothing was detected, the others did not come or cannot be reached, or they and this one
            were told different things.
    """
    import jax  # before the others are told that this one is there

    if coordinator:
        meeting.meet(coordinator, index, number, patience)
    joined = threading.Event()
    # When the time is up jax would abort in C++: this thread comes before it.
    threading.Thread(target=_wait, args=(joined, patience), daemon=True).start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            number if coordinator else None,
            index if coordinator else None,
            heartbeat_timeout_seconds=silence,
            initialization_timeout=patience + 60,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes were not reached ({' '.join(str(error).split()):.200}); give HOST:PORT of "
            "process 0, the number of this process and that of all"
        ) from error
    finally:
        joined.set()
    state = _state()
    if state.num_processes > 1:
        global _group  # noqa: PLW0603  (a process joins once)
        _group = _Group(state.client, state.process_id, state.num_processes)
        _group.watch.start()
        _group.last_word.promise(
            f"error: process {state.process_id} of {state.num_processes} was ended from outside or by jax "
            f"(above), which ends all when one dies or is silent for {silence} s: see what the others said, "
            "then start all again"
        )


def agreed(decide: Callable[[], Any], name: str) -> Any:
    """What process 0 decides, JSON-able, in all processes; `name` is used once."""
    if _group is None:
        return decide()
    key = f"{PREFIX}/agreed/{name}"
    if is_first():
        value = decide()
        _group.client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_group.client.blocking_key_value_get(key, LONG))


def together(command: Callable[[], int]) -> int:
    """The exit code of `command`, which all processes run: what ends one ends all, with its exit code.

    Process 0 prints why. Without others errors go on to the caller.
    """
    try:
        with surroundings.explaining():
            code = command()
    except BaseException as error:
        if _group is None:
            raise
        if isinstance(error, UserError):
            _group.end(2, f"error: {one_line(error)}")
        if isinstance(error, KeyboardInterrupt):
            _group.end(130, "interrupted: the same command continues")
        if isinstance(error, BrokenPipeError):
            _group.end(141, "nobody reads what it prints")
        _group.end(1, traceback.format_exc())
    if _group is not None:
        # Another may still fail, with what it does last: then all do.
        _group.client.wait_at_barrier(f"{PREFIX}/done", LONG)
        _group.watch.close()
        _group.last_word.withdraw()
    return code


@dataclasses.dataclass
class _Group:
    """Processes that have joined."""

    client: Any
    """Of jax's coordination service."""
    index: int
    """Of this one."""
    count: int

    def __post_init__(self) -> None:
        self.watch = _Watch(self)
        self.last_word = _LastWord()
        self._ending = threading.Lock()

    def end(self, code: int, text: str) -> NoReturn:
        """End all processes because of this one, unless another was first."""
        own = {"process": self.index, "code": code, "text": text}
        with contextlib.suppress(Exception):  # another was first
            self.client.key_value_set(f"{PREFIX}/end", json.dumps(own))
        why = own
        with contextlib.suppress(Exception):  # the service is gone: end all the same
            why = json.loads(self.client.blocking_key_value_get(f"{PREFIX}/end", 5000))
        self.obey(why, text)

    def obey(self, why: dict[str, Any], own: str = "") -> NoReturn:
        """End this process as `why` says, of which `own` is what it would say itself."""
        self._ending.acquire()  # once: the watch may see it meanwhile
        if why["process"] == self.index or (self.index == 0 and own == why["text"]):
            print(why["text"], file=sys.stderr)
        elif self.index == 0:
            print(f"process {why['process']} ended: {why['text']}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self.client.wait_at_barrier(f"{PREFIX}/heard", int(GRACE * 1000))
        if self.index == 0:
            threading.Event().wait(0.5)  # the service ends with this process: last
        self.last_word.withdraw()
        # Not `sys.exit`: the main thread may wait in a collective, and jax for the others.
        os._exit(why["code"])


class _Watch(threading.Thread):
    """Looks for a process that ended."""

    def __init__(self, group: _Group) -> None:
        super().__init__(daemon=True)
        self._group, self._closed = group, threading.Event()

    def run(self) -> None:
        while not self._closed.wait(LOOK):
            try:
                why = self._group.client.key_value_try_get(f"{PREFIX}/end")
            except Exception:  # not there, as jax's error of many meanings says; or jax aborts by itself
                continue
            self._group.obey(json.loads(why))

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self.join()


class _LastWord:
    """A line that is said after all else where this process ends without a word of its own: killed, or by
    jax, which aborts in C++ with a stack trace. A shell waits for the end of the process to say it.
    """

    _SCRIPT = 'trap "" TERM INT; read -r end; [ "$end" = withdrawn ] || printf "%s\\n" "$1" >&2'

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None

    def promise(self, line: str) -> None:
        """Say `line` at the end."""
        with contextlib.suppress(OSError):  # no shell: then nothing is said
            self._shell = subprocess.Popen(["sh", "-c", self._SCRIPT, "sh", line], stdin=subprocess.PIPE)
            atexit.register(self.withdraw)

    def withdraw(self) -> None:
        """Say nothing: this process has said why it ends."""
        shell, self._shell = self._shell, None
        if shell is not None:
            with contextlib.suppress(OSError):
                shell.communicate(b"withdrawn\n")


def _wait(joined: threading.Event, patience: float) -> None:
    """Say for whom this process waits, and end it when the time is up."""
    if joined.wait(min(meeting.SOON, patience)):
        return
    state = _state()
    address = state.coordinator_address
    if not address:
        who = "this process waits for the others that the cluster names"
    elif state.process_id:
        who = f"process {state.process_id} waits for process 0 at {address} and for the others"
    else:
        who = f"process 0 waits at {address} for the others"
    print(f"{who}, {patience:.0f} s at most", file=sys.stderr, flush=True)
    if not joined.wait(patience - min(meeting.SOON, patience)):
        line = f"error: {who}; not all came in {patience:.0f} s: start all of them"
        print(line, file=sys.stderr, flush=True)
        os._exit(2)


def _state() -> Any:
    """What jax knows of its processes, for which it has no public name."""
    from jax._src import distributed

    return distributed.global_state
