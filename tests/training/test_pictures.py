"""What two processes show while training, beside what one does; `tests.training.draw` has all tasks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from tests.training import draw
from tests.training.tiny_run import ROOT, Launcher

TASKS = ("stage_b", "stage_a", "previewer_encoder")


def test_two_processes_show_what_one_does(launcher: Launcher, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "XDG_CACHE_HOME": str(launcher.cache),
    }
    command = [sys.executable, "-m", "tests.training.draw", str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(i), "2", str(port), "tiled", *TASKS], cwd=ROOT, env=environment)
        for i in range(2)
    ]
    try:
        mesh = draw.mesh_of_four(jax.devices()[:4])
        expected = {}
        for name in TASKS:
            expected |= draw.drawn(name, mesh, ["tiled"])
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found = [np.load(tmp_path / f"{i}.npz") for i in range(2)]
    images = draw.batch_of(range(draw.ROWS))["image"]
    for case, pictures in expected.items():
        assert pictures[draw.ROWS :].std() > 5, case
        if "previewer" not in case:  # that shows smaller ones
            np.testing.assert_array_equal(pictures[: draw.ROWS], images)
        for process in found:
            assert process[case].dtype == np.uint8
            difference = process[case].astype(int) - pictures
            assert np.abs(difference).max() <= 1, case
        np.testing.assert_array_equal(found[0][case], found[1][case])
