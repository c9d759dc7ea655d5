"""Many processes end together, with one exit code and one line, and nobody waits for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.training.tiny_run import ROOT


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(index: int, where: str, what: str, patience: int = 120) -> subprocess.Popen[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PATIENCE": str(patience)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.two_ends", str(index), "2", where, what],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ends(what: str) -> list[tuple[int, str]]:
    """Exit code and output of two processes."""
    where = address()
    both = [start(i, where, what) for i in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    return [(process.returncode, text) for process, text in zip(both, said)]


def test_both_are_done() -> None:
    assert ends("fine") == [(0, ""), (0, "")]


@pytest.mark.parametrize("how", ["refused", "late"])
def test_what_one_finds_ends_both(how: str) -> None:
    assert ends(f"1:{how}") == [
        (2, "process 1 ended: error: the disk is full\n"),
        (2, "error: the disk is full\n"),
    ]


def test_what_the_first_finds_ends_both() -> None:
    assert ends("0:refused") == [(2, "error: the disk is full\n"), (2, "")]


def test_a_fault_ends_both() -> None:
    for code, text in ends("1:fault"):
        assert code == 1
        assert text.rstrip().endswith("ZeroDivisionError")


@pytest.mark.parametrize("index", [0, 1])
def test_one_that_is_alone_says_so_and_ends(index: int) -> None:
    where = address()
    began = time.monotonic()
    process = start(index, where, "fine", patience=6)
    text = process.communicate(timeout=200)[0]
    assert time.monotonic() - began > 6
    assert process.returncode == 2
    first, last = text.splitlines()
    if index:
        who, why = f"process 1 waits for process 0 at {where} and for the others", "nothing listens there"
        assert first == f"{who}, 6 s at most: {why}"
        assert last == f"error: {who}; not all came in 6 s ({why}): start all of them"
    else:
        who = f"process 0 waits at {where} for process 1"
        assert first == f"{who}, 6 s at most"
        assert last == f"error: {who}; not all came in 6 s: start all of them"
