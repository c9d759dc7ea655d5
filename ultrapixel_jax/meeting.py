"""How processes meet before jax connects them: all of them, nobody twice, and all told the same.

jax ends processes in C++ where two have one number, runs where they were told of different numbers of
processes, and says nothing while it waits. So process 0 first keeps the coordinator's port itself: each of
the others tells it who it is, and when all are there, all go on to jax, which takes the port over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

from ultrapixel_jax.errors import UserError, one_line

SOON = 3.0
"""Seconds after which a process says that it waits."""
ANSWER = 5.0
"""Seconds that process 0 has for its first word."""
AGAIN = 0.5
"""Seconds between two tries to reach it."""
LATE = 5.0
"""Seconds that process 0 stays to tell others why it ends."""
GREETING = {"process 0 of": "ultrapixel_jax"}
LONGEST = 1000
"""Bytes of what one says."""
NAMED = 8
"""Most numbers of missing processes that are listed."""


def meet(address: str, index: int, count: int, patience: float | int) -> None:
    """Wait until all `count` processes are there.

    Args:
        address: HOST:PORT of process 0.
        index: of this process.
        count: of all.
        patience: most seconds to wait.

    Raises:
        UserError: no such address or number, not all came, two have one number, or they were told of
            different numbers of processes.
    """
    host, port = address_of(address)
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count} cannot be; numbers go from 0 to {count - 1}")
    if count == 1:
        return
    if index == 0:
        _Door(address, port, count, patience).open()
    else:
        _Guest(address, (host, port), index, count, patience).enter()


def address_of(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        UserError: it is written otherwise.
    """
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise UserError(f"coordinator {address!r:.80} is not HOST:PORT, with a port from 1 to 65535")
    return host.strip("[]"), int(port)


class _Waiting:
    """How long it may take, and saying so."""

    def __init__(self, patience: float | int) -> None:
        self._patience, self._began, self._said = patience, time.monotonic(), False

    @property
    def left(self) -> float:
        """Seconds."""
        return self._began + self._patience - time.monotonic()

    def say(self, who: str, why: str = "") -> None:
        """Say once, after a while, that `who` waits."""
        if not self._said and time.monotonic() - self._began >= min(SOON, self._patience):
            self._said = True
            text = f"{who}, {self._patience:.0f} s at most{why and f': {why}'}"
            print(text, file=sys.stderr, flush=True)

    def over(self, who: str, why: str = "") -> UserError:
        """That the time is up."""
        because = f" ({why})" if why else ""
        return UserError(f"{who}; not all came in {self._patience:.0f} s{because}: start all of them")


class _Door:
    """Process 0's side."""

    def __init__(self, address: str, port: int, count: int, patience: float | int) -> None:
        self._address, self._port, self._count = address, port, count
        self._waiting = _Waiting(patience)
        self._heard: dict[socket.socket, bytes] = {}
        self._there: dict[socket.socket, dict[str, Any]] = {}

    def open(self) -> None:
        """Let all in."""
        with self._listener() as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            try:
                while missing := {*range(1, self._count)} - {one["process"] for one in self._there.values()}:
                    who = f"process 0 waits at {self._address} for {_named(missing, self._count)}"
                    self._waiting.say(who)
                    if self._waiting.left <= 0:
                        raise self._waiting.over(who)
                    for key, _ in selector.select(min(AGAIN, max(self._waiting.left, 0))):
                        if key.fileobj is listener:
                            with contextlib.suppress(OSError):
                                self._greet(listener.accept()[0], selector)
                        else:
                            self._hear(key.fileobj, selector)
                self._tell({"go": True})
            except UserError as error:
                self._refuse(listener, {"end": str(error)})
                raise
            finally:
                for guest in self._heard:
                    guest.close()

    def _listener(self) -> socket.socket:
        try:
            return socket.create_server(
                ("", self._port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False
            ) if socket.has_dualstack_ipv6() else socket.create_server(("", self._port))  # fmt: skip
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(
                f"process 0 cannot listen at port {self._port} ({reason}): an earlier run or another program "
                "has it; end that, or choose another port for all processes"
            ) from error

    def _greet(self, guest: socket.socket, selector: selectors.BaseSelector) -> None:
        guest.settimeout(ANSWER)
        self._heard[guest] = b""
        selector.register(guest, selectors.EVENT_READ)
        _say(guest, GREETING)

    def _hear(self, guest: Any, selector: selectors.BaseSelector) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = guest.recv(LONGEST)
        self._heard[guest] += data
        line, end, _ = self._heard[guest].partition(b"\n")
        said = _parsed(line) if end else None
        if not data or len(self._heard[guest]) > LONGEST or (end and said is None):
            selector.unregister(guest)
            del self._heard[guest]
            self._there.pop(guest, None)  # it may come again
            guest.close()
        elif said is not None:
            self._check(said)
            self._there[guest] = said

    def _check(self, said: dict[str, Any]) -> None:
        number, host = said["process"], said["host"]
        if said["of"] != self._count:
            raise UserError(
                f"process {number} (on {host:.80}) was told of {said['of']} processes, and process 0 of "
                f"{self._count}; give all the same number"
            )
        hosts = [one["host"] for one in self._there.values() if one["process"] == number]
        if hosts or not 0 < number < self._count:
            others = ", ".join(f"{name:.80}" for name in [socket.gethostname()][number:] + hosts)
            raise UserError(
                f"two processes have the number {number} (on {others} and {host:.80}); give each its own"
            )

    def _refuse(self, listener: socket.socket, words: dict[str, Any]) -> None:
        """Tell all that it is over, those too that come a little later."""
        self._tell(words)
        came, until = len(self._heard), time.monotonic() + LATE
        while came < self._count - 1 and (left := until - time.monotonic()) > 0:
            listener.settimeout(left)
            with contextlib.suppress(OSError):
                guest = listener.accept()[0]
                self._heard[guest] = b""
                _say(guest, GREETING)
                _say(guest, words)
                came += 1

    def _tell(self, words: dict[str, Any]) -> None:
        for guest in self._heard:
            _say(guest, words)
        for guest in self._heard:
            # Who closes first keeps the port busy for a minute: let it be the other's.
            guest.settimeout(1.0)
            with contextlib.suppress(OSError):
                guest.recv(1)


class _Guest:
    """The side of the others."""

    def __init__(
        self, address: str, place: tuple[str, int], index: int, count: int, patience: float | int
    ) -> None:
        self._place, self._patience = place, patience
        self._who = f"process {index} waits for process 0 at {address} and for the others"
        self._words = {"process": index, "of": count, "host": socket.gethostname()}
        self._waiting = _Waiting(patience)

    def enter(self) -> None:
        """Go in when all are there."""
        while True:
            why = self._try()
            if why is None:
                return
            self._waiting.say(self._who, why)
            if self._waiting.left <= 0:
                raise self._waiting.over(self._who, why)
            time.sleep(min(AGAIN, max(self._waiting.left, 0)))

    def _try(self) -> str | None:
        """Why process 0 does not let this one in; None when it does."""
        timeout = max(0.1, min(ANSWER, self._waiting.left))
        try:
            with socket.create_connection(self._place, timeout) as door:
                _say(door, self._words)
                lines = self._lines(door)
                if next(lines, None) != GREETING:
                    return (
                        "what listens there is no process 0 that waits, but an earlier run or another program"
                    )
                for said in lines:
                    if said is None:  # nothing yet
                        self._waiting.say(self._who)
                        if self._waiting.left <= 0:
                            raise self._waiting.over(self._who)
                    elif "end" in said:
                        raise UserError(one_line(said["end"]))
                    elif "go" in said:
                        return None
                return "process 0 went away"
        except socket.gaierror:
            return "that host is not known"
        except ConnectionRefusedError:
            return "nothing listens there"
        except OSError as error:
            return f"it cannot be reached ({error.strerror or 'no answer'})"

    def _lines(self, door: socket.socket) -> Iterator[dict[str, Any] | None]:
        """What process 0 says, None whenever it has said nothing for a while; ends when it does."""
        heard, greeted = b"", False
        while True:
            try:
                data = door.recv(LONGEST)
            except TimeoutError:
                if not greeted:
                    return
                yield None
                continue
            heard += data
            if not data or len(heard) > 4 * LONGEST:
                return
            *lines, heard = heard.split(b"\n")
            for line in lines:
                greeted = True
                door.settimeout(AGAIN)
                yield _parsed(line, keys=()) or {}


def _say(to: socket.socket, words: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it has gone, which is noticed when it is heard
        to.sendall(json.dumps(words).encode() + b"\n")


def _parsed(line: bytes, keys: Collection[str] = ("process", "of", "host")) -> dict[str, Any] | None:
    """What one says; None for what is no word of these processes."""
    try:
        said = json.loads(line)
        known = isinstance(said, dict) and {*keys} <= {*said}
        numbers = known and all(type(said[key]) is int for key in ("process", "of") if key in keys)
        return (
            said if numbers and all(isinstance(said[key], str) for key in ("host",) if key in keys) else None
        )
    except (ValueError, RecursionError):
        return None


def _named(numbers: Collection[int], count: int) -> str:
    """Processes by their numbers, in words."""
    listed = ", ".join(map(str, sorted(numbers)[:NAMED]))
    if len(numbers) > NAMED:
        return f"{len(numbers)} of {count} processes ({listed}, …)"
    return f"process {listed}" if len(numbers) == 1 else f"processes {listed}"
