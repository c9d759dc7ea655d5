"""Whatever is wrong with what `train.py` is given: one line that says so, and no run that is damaged."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.tiny_run import (
    PRESETS,
    ROOT,
    STAGE_C,
    Launcher,
    content,
    metrics,
    only_line,
    saved,
    trained,
    write_latents,
)
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS, CONFIG

Refusal = Callable[..., str]
MESH = ("--mesh.data", "4", "--mesh.tensor", "2")
"""For the devices of the test's own process."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--optimizer.learning-rat", "3"), "did you mean '--optimizer.learning-rate'"),
        (("--nonsense", "3"), "unknown option: '--nonsense'"),
        (("--steps", "many"), "--steps"),
        (("--steps",), "--steps"),
        (("--steps", "0"), "steps 0 must be 1 or more"),
        (("--dtype", "float16"), "float16"),
        (("--data.cached", "perhaps"), "perhaps"),
        (("--mesh.fsdp", "0"), "mesh.fsdp 0 must be 1 or more"),
        (("--mesh.fsdp", "3"), "does not divide the 8 devices"),
        (("--mesh.data", "4", "--mesh.fsdp", "4"), "needs 16 devices, but there are 8"),
        (("--mesh.data", "8"), "data.batch_size 4 does not divide over the mesh's data·fsdp = 8"),
        (("--data.batch-size", "3", "--optimizer.accumulate", "2"), "data.batch_size 3 does not divide"),
        (("--mesh.data", "8", "--data.batch-size", "16", "--optimizer.accumulate", "4"), "makes parts of 4"),
        (("--machines.coordinator", "here:1"), "belong together"),
        (("--task.diffusion.shift", "0"), "task.diffusion.shift 0"),
        (("--log.profile", "9", "3"), "log.profile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options(
    options: tuple[str, ...], words: str, refusal: Refusal, latents: Path, tmp_path: Path
) -> None:
    mesh = MESH if not any("mesh" in option for option in options) else ()
    run = tmp_path / "run"
    assert words in refusal(STAGE_C, "--data.path", latents, "--output", run, *mesh, *options)
    assert not run.exists()


def test_presets(refusal: Refusal, latents: Path, tmp_path: Path) -> None:
    rest = ("--data.path", latents, "--output", tmp_path / "run")
    assert "does not exist" in refusal(tmp_path / "none.py", *rest)
    assert "must define `config = TrainConfig" in refusal(ROOT / "configs" / "tiny.py", *rest)
    assert "first argument is a preset" in refusal(*rest)
    for text, words in (
        ("config = ", "SyntaxError"),
        ("from nowhere import x", "nowhere"),
        ("from ultrapixel_jax.training.config import LogConfig\nLogConfig(evry=3)", "evry"),
        ("from ultrapixel_jax.training.config import LogConfig\nLogConfig(every=0)", "log.every 0"),
    ):
        (tmp_path / "preset.py").write_text(text)
        assert words in refusal(tmp_path / "preset.py", *rest)
    (tmp_path / "config.json").write_text('{"steps": null}')
    line = refusal(tmp_path / "config.json", *rest)
    assert "is JSON, and has to be a Python file that defines `config = TrainConfig(...)`" in line
    assert "--output is missing" in refusal(STAGE_C, "--data.path", latents)
    assert "--data.path is missing" in refusal(STAGE_C, "--output", tmp_path / "run")


def test_data(refusal: Refusal, latents: Path, tmp_path: Path) -> None:
    def with_data(path: Path, *options: str) -> str:
        return refusal(STAGE_C, "--data.path", path, "--output", tmp_path / "run", *MESH, *options)

    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.touch()
    assert "does not exist" in with_data(tmp_path / "none")
    assert "is no dataset" in with_data(empty)
    assert str(file) in with_data(file)
    assert "holds cached_latents, not captioned_images" in with_data(latents, "--data.no-cached")
    images = write_images(tmp_path)
    assert "holds captioned_images, not cached_latents; training takes it with --data.no-cached" in with_data(
        images
    )
    assert not (tmp_path / "run").exists()

    cut = write_latents(tmp_path / "cut")
    records = next(cut.glob("*array_record*"))
    records.write_bytes(records.read_bytes()[:1000])
    assert "is damaged" in with_data(cut)


def write_images(directory: Path) -> Path:
    from PIL import Image

    from ultrapixel_jax.data.build import build

    (directory / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(directory / "pictures" / "a.png")
    (directory / "pictures" / "a.txt").write_text("grey")
    build(str(directory / "pictures"), str(directory / "images"), quiet=True)
    return directory / "images"


def test_latents_of_another_model(refusal: Refusal, latents: Path, tmp_path: Path) -> None:
    preset = tmp_path / "wide.py"
    preset.write_text(
        "import dataclasses\n"
        "from tests.training.presets.stage_c import config as base\n"
        "stage_c = dataclasses.replace(base.model.stage_c, c_clip_img=32)\n"
        "vision = dataclasses.replace(base.model.clip_vision, projection=32)\n"
        "model = dataclasses.replace(base.model, stage_c=stage_c, clip_vision=vision)\n"
        "config = dataclasses.replace(base, model=model)\n"
    )
    run = tmp_path / "run"
    said = refusal(preset, "--data.path", latents, "--output", run, *MESH, "--checkpoints.every", "1")
    assert (
        "has an image_vector of width 40, but the configuration's stage C takes 32" in said.splitlines()[-1]
    )
    assert saved(run) == []


def test_sources(refusal: Refusal, latents: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (PRESETS / "guidance.py", "--data.path", latents, "--output", run, *MESH, "--no-random-frozen")
    assert "training guidance needs stage_c, and the sources have nothing" in refusal(*command)
    assert "none" in refusal(*command, "--sources", tmp_path / "none")
    assert str(latents) in refusal(*command, "--sources", latents)
    assert not run.exists()


def test_output(refusal: Refusal, latents: Path, tmp_path: Path) -> None:
    def with_output(path: Path) -> str:
        return refusal(STAGE_C, "--data.path", latents, "--output", path, *MESH)

    file = tmp_path / "file"
    file.write_text("mine")
    assert f"{file} cannot be written (Not a directory)" in with_output(file)
    assert f"{file / 'run'} cannot be written" in with_output(file / "run")
    assert "/proc/run cannot be written" in with_output(Path("/proc/run"))
    assert file.read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.jpg").write_text("mine")
    assert f"{other} is not empty and no run" in with_output(other)
    assert content(other) == {"photo.jpg": b"mine"}

    lost = tmp_path / "lost"
    (lost / CHECKPOINTS / "3").mkdir(parents=True)
    (lost / CHECKPOINTS / "3" / "photo.jpg").write_text("mine")
    assert CONFIG in with_output(lost)
    assert content(lost) == {f"{CHECKPOINTS}/3/photo.jpg": b"mine"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a checkpoint or two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(launcher: Launcher, one_bucket: Path, small_disk: Path) -> None:
    run, steps = small_disk / "run", ("--steps", "8", "--checkpoints.keep-last", "8")
    code, said = launcher.run(run, one_bucket, *steps, said=small_disk.parent)
    assert code == 2
    assert "no space left" in only_line(said)
    kept = saved(run)
    assert kept
    assert kept == list(range(1, kept[-1] + 1))
    trained(run)  # whole
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert f"continues after step {kept[-1]}" in launcher.succeed(
        run, one_bucket, *steps, said=small_disk.parent
    )
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))
    assert all(a["loss"] != b["loss"] for a, b in itertools.pairwise(metrics(run)))
