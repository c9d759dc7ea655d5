"""What a line of the log is the mean of, by hand, with a clock that the test winds."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests.training.presets.stage_c import config as preset
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.diffusion.loss import adaptive_init
from ultrapixel_jax.training import log as logs
from ultrapixel_jax.training.config import LogConfig, PicturesConfig
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.step import BANDS
from ultrapixel_jax.training.tasks import make_task

COUNTS = np.zeros(len(BANDS) - 1)


class Clock:
    """Ten seconds on at every step."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(logs, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def opened(directory: Path, start: int = 0) -> logs.Log:
    config = LogConfig(every=3, tensorboard=False)
    return logs.Log(epath.Path(directory), config, steps=9, start=start, batch_size=4)


def add(log: logs.Log, clock: Clock, step: int) -> None:
    """The loss of step n is n²; one sample of loss n in band 1 at each, in band 5 at even ones."""
    clock.now += 10
    count = COUNTS.copy()
    count[1], count[5] = 1, 1 - step % 2
    band = {"band_loss": step * count, "band_count": count}
    scalars = {"loss": np.asarray(step**2), "gradient_norm": np.asarray(step)}
    log.add(step, {**scalars, **band}, flops=10**12)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / logs.METRICS).read_text().splitlines()]


def test_lines_are_means_of_their_steps(tmp_path: Path, clock: Clock) -> None:
    log = opened(tmp_path)
    log.matmul_rate = 4e11
    for step in range(1, 7):
        if step == 5:
            with log.waiting():
                clock.now += 6
            with log.paused():
                clock.now += 1000
        add(log, clock, step)
    log.close()
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["gradient_norm"]) == (3, pytest.approx(14 / 3), 2)
    assert (second["step"], second["loss"], second["gradient_norm"]) == (6, pytest.approx(77 / 3), 5)
    bands = {"loss_logsnr/-6_-4": (2, 5), "loss_logsnr/2_4": (2, 5)}
    assert {name for name in first if name.startswith("loss_logsnr")} == set(bands)
    for name, values in bands.items():
        assert (first[name], second[name]) == values
    assert first["images_per_second"] == pytest.approx(12 / 30)
    assert first["tflops"] == pytest.approx(3 / 30)
    assert first["utilisation"] == pytest.approx(0.25)
    assert (first["data_wait"], second["data_wait"]) == (0, pytest.approx(6 / 36))
    assert second["step_seconds"] == pytest.approx(12)


def test_a_line_goes_on_after_a_checkpoint(tmp_path: Path, clock: Clock) -> None:
    log = opened(tmp_path)
    for step in range(1, 6):
        add(log, clock, step)
    kept = json.loads(json.dumps(log.state()))  # as the checkpoint after step 5 has it
    add(log, clock, 6)
    add(log, clock, 7)
    log.close()
    whole = lines(tmp_path)

    log = opened(tmp_path, start=5)
    assert lines(tmp_path) == whole[:1]
    log.restore(kept)
    add(log, clock, 6)
    log.close()
    again = lines(tmp_path)
    assert [line["step"] for line in again] == [3, 6]
    for name in ("loss", "gradient_norm", "loss_logsnr/-6_-4", "loss_logsnr/2_4"):
        assert again[1][name] == whole[1][name], name
    assert again[1]["images_per_second"] == pytest.approx(4 / 10)  # of the one step that this process made

    opened(tmp_path, start=6).close()
    assert lines(tmp_path) == again  # the line of step 6 stays


def test_compilation_is_announced_and_no_part_of_the_eta(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    monkeypatch.setattr(logs, "device_memory", lambda: (31_000_000_000, 80_000_000_000))
    for step in range(1, 4):
        if step < 3:
            with log.compiling(f"{logs.STEP} for bucket 128x192", step, 3):
                clock.now += 60
        with log.paused():
            clock.now += 500
            with log.compiling("validation for bucket 128x192", 1, 1):  # counted once
                clock.now += 500
        add(log, clock, step)
    log.close()
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "compiling the step for bucket 128x192 (1 of 3) …",
        "compiled in 60.0 s; 2 still to compile, when they come",
    ]
    assert said[2:4] == ["compiling validation for bucket 128x192 (1 of 1) …", "compiled in 500.0 s"]
    assert said[-1].startswith("step 3/9  loss 4.6667")
    assert said[-1].endswith("memory 31.0/80.0 GB  ETA 0:01:00 + 1 bucket(s) to compile, 60 s each")
    assert lines(tmp_path)[0]["step_seconds"] == pytest.approx(10)


def test_tensorboard_has_the_tags_of_the_log_and_the_configuration(
    tmp_path: Path, clock: Clock, latents: Path
) -> None:
    from tensorboardX.proto.event_pb2 import Event

    config = LogConfig(every=3)
    log = logs.Log(epath.Path(tmp_path), config, steps=9, start=0, batch_size=4)
    task = make_task(dataclasses.replace(preset, pictures=PicturesConfig(every=3)))
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    state = TrainState(np.int32(0), {}, {}, {}, None, adaptive_init(4), np.zeros(2, np.uint32))
    with Loader(DataConfig(str(latents), cached=True, batch_size=4)) as loader:
        log.describe(task, state, mesh, loader, "stage_c from CHECKPOINT")
    for step in range(1, 4):
        add(log, clock, step)
    log.validated(3, {"validation_loss": 2.0, "validation_loss_logsnr/-2_0": 3.0})
    log.close()
    data, tags, texts = next((tmp_path / "tensorboard").iterdir()).read_bytes(), set(), {}
    while data:  # length, its checksum, an event, its checksum
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        for value in event.summary.value:
            if value.tensor.string_val:
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                tags.add(value.tag)
    assert tags == {name for line in lines(tmp_path) for name in line if name != "step"}
    assert "validation_loss" in tags and "loss_logsnr/-6_-4" in tags
    assert '"learning_rate": 0.01' in texts["configuration/text_summary"]
    assert "1. a lighthouse in a storm" in texts["prompts/text_summary"]
