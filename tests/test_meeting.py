"""Processes meet before jax connects them; what keeps them apart is said in a line, in all of them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.test_processes import address
from ultrapixel_jax import meeting
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.meeting import address_of, meet


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SOON", 0.3), ("AGAIN", 0.05), ("ANSWER", 0.5), ("LATE", 0.5)):
        monkeypatch.setattr(meeting, name, value)


def outcome(where: str, index: int, count: int, patience: float = 20, after: float = 0) -> str:
    time.sleep(after)
    try:
        meet(where, index, count, patience)
    except UserError as error:
        return str(error)
    return ""


def outcomes(*processes: tuple[int, int], where: str = "", patience: float = 20) -> list[str]:
    """What (index, count) of processes that start together end with."""
    where = where or address()
    with ThreadPoolExecutor(len(processes)) as pool:
        jobs = [pool.submit(outcome, where, *process, patience) for process in processes]
        return [job.result() for job in jobs]


def test_all_come_and_the_port_is_free_at_once() -> None:
    where = address()
    for _ in range(3):
        assert outcomes((2, 4), (0, 4), (1, 4), (3, 4), where=where) == [""] * 4
    with socket.create_server(address_of(where)):  # as jax does next
        pass
    assert outcomes((0, 1)) == [""]


def test_process_0_may_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    where = address()
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(outcome, where, 1, 2)
        assert outcome(where, 0, 2, after=0.6) == early.result() == ""
    who = f"process 1 waits for process 0 at {where} and for the others"
    assert capsys.readouterr().err == f"{who}, 20 s at most: nothing listens there\n"


def test_two_with_one_number() -> None:
    first, *others = outcomes((0, 3), (1, 3), (1, 3))
    assert first.startswith("two processes have the number 1 (on ") and first.endswith("; give each its own")
    assert others == [first] * 2


def test_who_comes_after_a_refusal_hears_it() -> None:
    where = address()
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(outcome, where, *p) for p in ((0, 3), (1, 4))]
        jobs.append(pool.submit(outcome, where, 2, 3, after=0.3))
        assert len({job.result() for job in jobs}) == 1 and "was told of 4" in jobs[0].result()


def test_two_first_processes() -> None:
    where = address()
    both = outcomes((0, 2), (0, 2), where=where, patience=1)
    port = where.split(":")[1]
    assert sorted(said.split(" (")[0] for said in both) == [
        f"process 0 cannot listen at port {port}",
        f"process 0 waits at {where} for process 1; not all came in 1 s: start all of them",
    ]


@pytest.mark.parametrize(("count", "other"), [(2, 3), (3, 2), (4, 9)])
def test_different_numbers_of_processes(count: int, other: int) -> None:
    first, second = outcomes((0, count), (1, other))
    assert first == second
    assert f"was told of {other} processes, and process 0 of {count}; give all the same number" in first


def test_process_0_believes_that_it_is_alone() -> None:
    assert outcomes((0, 1), (1, 2), patience=0.5)[1].endswith("(nothing listens there): start all of them")


def test_what_is_missing_is_named() -> None:
    where = address()
    first, second = outcomes((0, 12), (3, 12), where=where, patience=1)
    assert "for 10 of 12 processes (1, 2, 4, 5, 6, 7, 8, 9, …); not all came in 1 s" in first
    assert "not all came" in second or second == first


def test_one_that_went_may_come_again() -> None:
    where = address()
    with ThreadPoolExecutor(3) as pool:
        door = pool.submit(outcome, where, 0, 3)
        time.sleep(0.2)
        with socket.create_connection(address_of(where)) as gone:
            gone.sendall(json.dumps({"process": 1, "of": 3, "host": "x"}).encode() + b"\n")
            time.sleep(0.2)
        others = [pool.submit(outcome, where, i, 3) for i in (1, 2)]
        assert [door.result(), *(other.result() for other in others)] == [""] * 3


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b"\0\xff\n", b"{}\n", b"[" * 900 + b"\n", b"x" * 5000,
              b'{"process": "1", "of": 2, "host": "x"}\n', b'{"process": 1, "of": 2, "host": 3}\n'],
)  # fmt: skip
def test_strangers_are_sent_away(words: bytes) -> None:
    where = address()
    with ThreadPoolExecutor(2) as pool:
        door = pool.submit(outcome, where, 0, 2)
        time.sleep(0.1)
        with socket.create_connection(address_of(where)) as stranger:
            stranger.sendall(words)
            stranger.settimeout(5)
            while True:
                try:
                    if not stranger.recv(1000):
                        break
                except ConnectionResetError:
                    break
        assert outcome(where, 1, 2) == door.result() == ""


def stranger(answer: Callable[[socket.socket], None]) -> tuple[str, socket.socket]:
    """Another program's port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                answer(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}", server


@pytest.mark.parametrize(
    "words", [None, b"", b"\0\0\x12\4\0\0\0\0\0", b"HTTP/1.1 400 Bad Request\n", b"[]\n"]
)
def test_another_program_at_the_port(words: bytes | None) -> None:
    kept = []

    def answer(guest: socket.socket) -> None:
        kept.append(guest)  # silent, for None
        if words is not None:
            guest.sendall(words)
            guest.close()

    where, server = stranger(answer)
    said = outcome(where, 1, 2, patience=0.8)
    assert "an earlier run or another program" in said or "it cannot be reached" in said
    assert "an earlier run or another program has it; end that, or" in outcome(where, 0, 2)
    server.close()


@pytest.mark.parametrize(
    ("where", "index", "count", "message"),
    [
        ("host", 1, 2, "coordinator 'host' is not HOST:PORT"),
        (":123", 1, 2, "is not HOST:PORT"),
        ("host:0", 0, 2, "a port from 1 to 65535"),
        ("host:99999", 1, 2, "a port from 1 to 65535"),
        ("host:http", 1, 2, "is not HOST:PORT"),
        ("host:1234", 2, 2, "process 2 of 2 cannot be; numbers go from 0 to 1"),
        ("host:1234", -1, 2, "process -1 of 2 cannot be"),
        ("no.such.host.invalid:1234", 1, 2, "that host is not known"),
    ],
)
def test_addresses_and_numbers(where: str, index: int, count: int, message: str) -> None:
    assert message in outcome(where, index, count, patience=0.2)
    assert address_of("[::1]:80") == ("::1", 80)
