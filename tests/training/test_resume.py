"""A run that is killed, stopped or damaged: it goes on as if nothing had been, or says why it does not."""

from __future__ import annotations

import itertools
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny_run import (
    STAGE_C,
    Launcher,
    assert_close,
    being_saved,
    content,
    logged,
    metrics,
    only_line,
    saved,
    trained,
    write_latents,
)
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS, CONFIG
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.training.log import check_finite

MESH = ("--mesh.data", "4", "--mesh.tensor", "2")
"""For the devices of the test's own process."""
STEPS = (
    "--steps", "10", "--log.every", "3", "--checkpoints.every", "2", "--optimizer.schedule", "linear",
    "--optimizer.warmup-steps", "4", "--optimizer.final-fraction", "0.4",
)  # fmt: skip
"""A line is the mean of steps before and after a checkpoint."""
RATES = (0.0025, 0.005, 0.0075, 0.01, 0.01, 0.009, 0.008, 0.007, 0.006, 0.005)
"""Of the steps."""


@pytest.fixture(scope="module")
def whole(launcher: Launcher, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    launcher.succeed(run, latents, *STEPS)
    return run


def assert_same(run: Path, whole: Path) -> None:
    """The same log to the last bit, and the same parameters."""
    assert metrics(run) == metrics(whole)
    assert saved(run)[-1] == saved(whole)[-1]
    got, expected = trained(run), trained(whole)
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert array.tobytes() == expected[name].tobytes(), name


def test_the_log_of_a_run(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert len({line["loss"] for line in lines}) == 4
    rates = [np.mean(RATES[first:last]) for first, last in itertools.pairwise((0, 3, 6, 9, 10))]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], rates, rtol=1e-6)
    assert saved(whole) == [6, 8, 10]


def test_killed_and_stopped(launcher: Launcher, latents: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = launcher.start(run, latents, *STEPS)
    started.wait_for(lambda _: (run / CHECKPOINTS).exists())  # before the first step, which compiles first
    started.process.send_signal(signal.SIGTERM)
    code, said = started.finish()
    assert (code, saved(run)) == (0, [])
    assert said.endswith("stopped before the first step: the same command starts or continues the run\n")

    started = launcher.start(run, latents, *STEPS)
    started.wait_for(being_saved(2))  # before anything is there to go on from
    started.kill()
    assert saved(run) == []

    started = launcher.start(run, latents, *STEPS)
    started.wait_for(being_saved(4))
    started.kill()
    assert saved(run) == [2]

    started = launcher.start(run, latents, *STEPS)
    started.wait_for(logged(6))
    started.process.send_signal(signal.SIGTERM)
    code, said = started.finish()
    stopped = saved(run)[-1]
    assert code == 0, said
    assert "continues after step 2" in said
    assert said.splitlines()[-1] == f"stopped at step {stopped}: the same command continues"
    assert 6 <= stopped < 10

    assert f"continues after step {stopped}" in launcher.succeed(run, latents, *STEPS)
    assert_same(run, whole)


def test_a_finished_run_has_nothing_to_do(launcher: Launcher, latents: Path, whole: Path) -> None:
    before = content(whole)
    for steps in ("10", "9"):
        said = launcher.succeed(whole, latents, *STEPS, "--steps", steps)
        assert said.startswith(f"finished: {whole} has all {steps} steps; ") and said.count("\n") == 1
        assert "join it with a checkpoint or run that has clip_text, stage_b, stage_a" in said
    assert content(whole) == before


def test_another_mesh_goes_on(launcher: Launcher, latents: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (8, 10):
        shutil.rmtree(run / CHECKPOINTS / str(step))
    said = launcher.succeed(run, latents, *STEPS, "--mesh.fsdp", "2", devices=4)
    assert "4 x cpu, data=2, fsdp=2" in said
    assert "continues after step 6" in said
    assert_close(run, whole)


def change(directory: Path, how: Callable[[bytes], bytes]) -> None:
    """Damage the files that hold the arrays."""
    for file in (directory / "state").rglob("d/*"):
        file.write_bytes(how(file.read_bytes()))


def cut(directory: Path) -> None:
    change(directory, lambda data: data[: len(data) // 2])


def flip(directory: Path) -> None:
    """One bit in the middle of an array."""
    file = max((directory / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 4] ^= 16
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "zeros": lambda directory: change(directory, lambda data: bytes(len(data))),
    "one bit": flip,
    "arrays lost": lambda directory: shutil.rmtree(directory / "state"),
    "manifest lost": lambda directory: (directory / "state" / "manifest.ocdbt").unlink(),
    "structure lost": lambda directory: (directory / "state" / "_METADATA").unlink(),
    "position lost": lambda directory: shutil.rmtree(directory / "data"),
    "position cut": lambda directory: (directory / "data" / "metadata").write_text('{"step'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_stops(
    damage: str, refusal: Callable[..., str], latents: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    DAMAGE[damage](run / CHECKPOINTS / "10")
    before = content(run)
    line = refusal(STAGE_C, "--data.path", latents, "--output", run, *STEPS, *MESH, "--steps", "11")
    assert f"checkpoint 10 in {run} cannot be read" in line
    assert "go on from the one before" in line
    assert content(run) == before


def test_a_damaged_checkpoint_in_its_own_process(
    launcher: Launcher, latents: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    cut(run / CHECKPOINTS / "10")
    before = content(run)
    code, said = launcher.run(run, latents, *STEPS, "--steps", "11")
    assert code == 2
    assert f"checkpoint 10 in {run} cannot be read" in only_line(said)
    assert content(run) == before
    assert "Traceback" not in said
    shutil.rmtree(run / CHECKPOINTS / "10")  # as it advised
    assert "continues after step 8" in launcher.succeed(run, latents, *STEPS)
    assert_same(run, whole)


def test_another_configuration_is_refused(
    refusal: Callable[..., str], latents: Path, whole: Path, tmp_path: Path
) -> None:
    before = content(whole)
    command = (STAGE_C, "--data.path", latents, "--output", whole, *STEPS, *MESH)
    line = refusal(*command, "--optimizer.learning-rate", "3e-3", "--data.seed", "1", "--task.no-dropout")
    assert "optimizer.learning_rate was 0.01, is 0.003" in line
    assert "data.seed was 0, is 1" in line
    assert "task.dropout was True, is False" in line
    for i in range(2):
        other = write_latents(tmp_path / f"other{i}", 20 + i)
        line = refusal(STAGE_C, "--data.path", other, "--output", whole, *STEPS, *MESH, "--steps", "11")
        assert f"data '{other}' or its settings" in line
    assert content(whole) == before


def test_a_damaged_configuration_is_refused(
    refusal: Callable[..., str], latents: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    command = (STAGE_C, "--data.path", latents, "--output", run, *STEPS, *MESH)
    for text in ('{"task', "[]", "3"):
        (run / CONFIG).write_text(text)
        before = content(run)
        assert f"{run / CONFIG} is damaged" in refusal(*command)
        assert content(run) == before
    (run / CONFIG).unlink()
    assert f"no {CONFIG}" in refusal(*command)


def test_a_loss_that_is_not_finite_stops(launcher: Launcher, latents: Path, tmp_path: Path) -> None:
    with Loader(DataConfig(path=str(latents), cached=True, batch_size=4)) as loader:
        batches = list(itertools.islice(loader, 6))
    step = next(n for n in range(4, 7) if not set(batches[n - 1]["ids"]) & met(batches[: n - 1]))
    batch = batches[step - 1]
    bad = batch["ids"][2]
    poisoned = write_latents(tmp_path / "data", poisoned=int(bad.removeprefix("example-")))
    run = tmp_path / "run"
    for _ in range(2):  # going on meets it again
        code, said = launcher.run(run, poisoned, *STEPS, "--checkpoints.every", "1")
        assert code == 2
        line, (height, width) = only_line(said), batch["bucket"]
        assert f"loss is nan at step {step}, bucket {height}x{width}, examples " in line
        assert ", ".join(batch["ids"]) in line
        assert saved(run)[-1] == step - 1
        assert all(np.isfinite(array).all() for array in trained(run).values())


def met(batches: list[dict]) -> set[str]:
    return {id_ for batch in batches for id_ in batch["ids"]}


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "parameter_norm"])
def test_what_must_be_finite(name: str) -> None:
    fine = {name: np.asarray(1.0) for name in ("loss", "gradient_norm", "parameter_norm")}
    batch = {"ids": ["a", "b"], "bucket": (64, 96)}
    check_finite(3, fine, batch)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=f"{name} is .* at step 3, bucket 64x96, examples a, b;"):
            check_finite(3, {**fine, name: np.asarray(value)}, batch)
