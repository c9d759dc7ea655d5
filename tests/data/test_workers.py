"""Reading processes that are killed, or whose trainer is: batches go on, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data.conftest import AREAS, RATIOS
from tests.data.test_loader import assert_same, read
from ultrapixel_jax.data import loader as loaders
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError

TRAINER = """
import sys
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
if __name__ == "__main__":
    config = DataConfig(sys.argv[1], areas=(64, 128), ratios=("1/1", "1/2"), batch_size=4, workers=1)
    with Loader(config) as batches:
        while True:
            next(batches)
            print("batch", flush=True)
            sys.stdin.readline()
"""


def settings(path: Path, workers: int) -> DataConfig:
    return DataConfig(str(path), areas=AREAS, ratios=RATIOS, batch_size=4, workers=workers)


def test_a_reading_process_that_is_killed_starts_anew(
    records: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read(settings(records, 0), 6)
    with Loader(settings(records, 1)) as batches:
        found = [next(batches)]
        kill_readers()
        found += [next(batches) for _ in range(5)]
        assert_same(found, expected)
        assert "was killed (exit code -9): it starts anew" in caplog.text
        monkeypatch.setattr(loaders, "MOST_DEATHS", 0)
        kill_readers()
        with pytest.raises(UserError, match=r"ended 1 times .*fewer than --data.workers 1, or 0"):
            [next(batches) for _ in range(5)]


def kill_readers() -> None:
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def test_nothing_outlives_a_trainer_that_is_killed(records: Path, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(records)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert trainer.stdout is not None and trainer.stdout.readline() == b"batch\n"
    assert len(members(trainer.pid)) >= 3, "the trainer, its reader, and Python's resource tracker"
    shared = {path for pid in members(trainer.pid) for path in shared_memory(pid)}
    assert any(path.exists() for path in shared)
    for pid in members(trainer.pid):  # as a whole job is told: only the trainer decides what it means
        if pid != trainer.pid:
            os.kill(pid, signal.SIGTERM)
    trainer.kill()
    trainer.communicate()
    end = time.monotonic() + 60
    while left := [*members(trainer.pid), *(path for path in shared if path.exists())]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def members(group: int) -> list[int]:
    """Processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (path / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:  # it has ended
            continue
        if int(number) == group and state != "Z":
            found.append(int(path.name))
    return found


def shared_memory(pid: int) -> set[Path]:
    """Semaphores and segments that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if "/dev/shm/" in line}
