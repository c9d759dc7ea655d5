"""Eight captioned pictures are learnt by heart, and the command line samples from the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

import sample
from tests.conftest import ROOT
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.config import InceptionConfig, to_dict
from ultrapixel_jax.data import build
from ultrapixel_jax.data.sheet import GAP, LINE
from ultrapixel_jax.evaluate import resizing
from ultrapixel_jax.models import measuring

PRESET = Path(__file__).parent / "presets" / "overfit.py"
INCEPTION = InceptionConfig(75, 16)
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "pink", "grey")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("overfit")
    pictures = directory / "pictures"
    pictures.mkdir()
    for i, colour in enumerate(COLOURS):
        coarse = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"a {colour} picture")
    data = directory / "data"
    assert build.main([str(pictures), str(data), "--quiet"]) == 0
    with CheckpointWriter(directory / "weights") as writer:
        info = ComponentInfo(config=to_dict(INCEPTION))
        writer.add("inception", measuring.random_inception(INCEPTION, 0), info)
    (directory / "prompts.txt").write_text("a red picture\na blue picture\n")  # as the preset draws
    measures = {"every": "150", "weights": "weights", "prompts": "prompts.txt", "against": "pictures"}
    measured = ["--measures.size", "256", "256"]
    for name, value in measures.items():
        measured += [f"--measures.{name}", value if name == "every" else str(directory / value)]
    # In a process of its own, with one device: eight on a few cores take several times as long.
    command = [sys.executable, "train.py", str(PRESET), "--data.path", str(data), *measured]
    environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
    subprocess.run([*command, "--output", str(directory / "run")], cwd=ROOT, env=environment, check=True)
    return directory / "run"


def test_loss_falls_more_than_tenfold(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.4f}")
    assert losses[-1] < losses[0] / 10


def test_measures_are_those_of_the_pictures(run: Path) -> None:
    """The sheets have the same prompts, noise and weights: FID by the formula from their pixels."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line for line in lines if "measure_fid" in line}
    assert list(measured) == [0, 150]
    variables = measuring.random_inception(INCEPTION, 0)
    apply = jax.jit(measuring.build(INCEPTION).apply)

    def features(pictures: list[np.ndarray]) -> np.ndarray:
        x = np.stack([resizing.clean(picture, 75) for picture in pictures])
        return np.asarray(apply(variables, resizing.scaled(x, "clean"))[0], np.float64)

    known = [np.asarray(Image.open(p)) for p in sorted((run.parent / "pictures").glob("*.png"))]
    theirs = features(known)
    for step, line in measured.items():
        sheet = np.asarray(Image.open(run / "samples" / f"step-{step:07d}.png"))
        tops = (GAP, GAP + 256 + LINE + GAP)
        ours = features([sheet[top : top + 256, GAP : GAP + 256] for top in tops])
        a, b = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
        root = scipy.linalg.sqrtm(a @ b + 1e-14 * np.eye(len(a))).real
        expected = ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
        assert line["measure_fid"] == pytest.approx(expected, rel=1e-3)
        assert line["measure_fid_low"] <= line["measure_fid"] <= line["measure_fid_high"]
        assert {"measure_kid", "measure_is", "measure_fid_patch", "measure_is_patch"} < line.keys()
    assert measured[0]["measure_fid"] != measured[150]["measure_fid"]


def test_pictures_are_made_while_training(run: Path) -> None:
    """From before the first step on, one for each prompt, at the size asked for, with the prompt below."""
    sheets = {path.name: np.asarray(Image.open(path)) for path in (run / "samples").iterdir()}
    assert sorted(sheets) == ["step-0000000.png", "step-0000150.png"]
    first, last = (sheets[name] for name in sorted(sheets))
    shown = [(GAP, GAP + 256), (GAP + 256 + LINE + GAP, GAP + 256 + LINE + GAP + 256)]
    for top, bottom in shown:
        picture = last[top:bottom, GAP : GAP + 256]
        assert picture.shape == (256, 256, 3) and (picture != first[top:bottom, GAP : GAP + 256]).any()
        label = last[bottom : bottom + LINE, GAP : GAP + 256]
        assert (label == first[bottom : bottom + LINE, GAP : GAP + 256]).all()
        assert 0.01 < (label < 128).mean() < 0.3, "letters"
    assert last.shape == (shown[1][1] + LINE + GAP, 256 + 2 * GAP, 3)


def test_command_line_samples_from_the_run(run: Path, tmp_path: Path) -> None:
    options = ["--checkpoint", str(run), "--size", "256x256", "--output", str(tmp_path), "--quiet"]
    assert sample.main([*options, "--prompt", "a red picture", "--prompt", "a blue picture"]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert [picture.shape for picture in pictures] == [(256, 256, 3)] * 2
    assert (pictures[0] != pictures[1]).any()
