"""Two processes train as one does, save and end together, and one process goes on with what they saved.

Their devices are scattered over the mesh, so that neither has an aligned slice of a batch, and the second
two have other places, and both parts of every sample.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.training.tiny_run import Launcher, Started, assert_close, logged, saved

STEPS = ("--steps", "16", "--checkpoints.every", "4", "--validation.share", "0.2", "--validation.every", "16")
FSDP, TENSOR = ("--mesh.fsdp", "2"), ("--mesh.tensor", "2")


def start_two(launcher: Launcher, run: Path, data: Path, *options: str) -> list[Started]:
    """Two processes with two CPU devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = ["--machines.distributed", "--machines.coordinator", f"127.0.0.1:{port}"]
    machines += ["--machines.process-count", "2", "--machines.silence", "10"]
    return [
        launcher.start(run, data, *options, *machines, "--machines.process-id", str(i), devices=2)
        for i in range(2)
    ]


def finish(processes: list[Started]) -> list[str]:
    """What both said; both must succeed."""
    ends = [process.finish() for process in processes]
    assert [code for code, _ in ends] == [0, 0], "\n".join(said for _, said in ends)
    return [said for _, said in ends]


@pytest.fixture(scope="module")
def one(launcher: Launcher, one_bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with four devices, which nothing disturbs."""
    run = tmp_path_factory.mktemp("one") / "run"
    said = launcher.succeed(run, one_bucket, *STEPS, *FSDP, devices=4)
    assert "4 x cpu, data=2, fsdp=2; 1 process(es)" in said
    return run


def test_two_processes(launcher: Launcher, one_bucket: Path, one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scattered = dataclasses.replace(launcher, order="0,3,1,2")  # rows 0 and 2, 1 and 3
    processes = start_two(scattered, run, one_bucket, *STEPS, *FSDP)
    processes[0].wait_for(logged(3))
    processes[1].process.send_signal(signal.SIGTERM)  # the machine of one is taken away: both stop
    said = finish(processes)
    stopped = saved(run)[-1]
    assert 3 <= stopped < 12
    assert "4 x cpu, data=2, fsdp=2; 2 process(es)" in said[0]
    assert f"stopped at step {stopped}: the same command continues" in said[0]
    assert "loss" not in said[1]  # process 0 speaks for both

    both = dataclasses.replace(launcher, order="2,0,1,3")  # half of the features of all rows
    processes = start_two(both, run, one_bucket, *STEPS, *TENSOR)
    processes[0].wait_for(logged(stopped + 2))
    processes[1].kill()
    killed = time.monotonic()
    code, text = processes[0].finish()
    assert code not in (0, 2)
    assert time.monotonic() - killed < 45
    assert "another task died" in text
    while "error: " not in (text := processes[0].said.read_text()):  # said when the process has ended
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    last = text.splitlines()[-1]
    assert last.startswith("error: process 0 of 2 was ended from outside or by jax (above)")
    assert "when one dies or is silent for 10 s" in last
    assert f"continues after step {stopped}" in text
    newest = saved(run)[-1]
    assert stopped <= newest < 16

    assert f"continues after step {newest}" in launcher.succeed(run, one_bucket, *STEPS, *FSDP, devices=4)
    assert saved(run)[-1] == 16
    assert_close(run, one)
