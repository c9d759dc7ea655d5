"""Runs that train ControlNets, in this process: a dry run, going on after a stop, and pictures meanwhile."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training.test_controlnet import FRESH, kind_of
from tests.training.tiny_run import metrics
from ultrapixel_jax.compilation import cache as compilation_cache
from ultrapixel_jax.config import PreviewerConfig
from ultrapixel_jax.controls import canny_map, inpainting_map
from ultrapixel_jax.data.build import build
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.sampling import canvas
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training import loop, machines
from ultrapixel_jax.training.dry_run import dry_run
from ultrapixel_jax.training.pictures import control_of

SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures."""
    root = tmp_path_factory.mktemp("controlled")
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(6):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(root / "pictures" / f"{i}.png")
        (root / "pictures" / f"{i}.txt").write_text(f"picture {i}")
    build(str(root / "pictures"), str(root / "data"), quiet=True)
    return root / "data"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One device, and the tests' own cache of compiled programs."""
    mesh = make_mesh({}, jax.devices()[:1])
    monkeypatch.setattr(machines, "mesh_of", lambda config: mesh)
    monkeypatch.setattr(compilation_cache, "use", lambda: Path("unused"))


def run_of(kind: str, data: Path, output: Path, steps: int, **changes: Any) -> cfg.TrainConfig:
    model = dataclasses.replace(kind_of(kind), guidance=None, previewer=PreviewerConfig(channels=(8, 8, 8, 8)))
    return cfg.TrainConfig(
        task=dataclasses.replace(FRESH, offset_noise=0.1),
        model=model,
        data=DataConfig(
            str(data), areas=(SIDE,), ratios=("1/1",), batch_size=2, image_vector_probability=0.0,
            caption_dropout=0.0,
        ),
        output=str(output), random_frozen=True, steps=steps, dtype="float32", scanned=False,
        optimizer=cfg.OptimizerConfig(learning_rate=1e-2),
        checkpoints=cfg.CheckpointConfig(every=1),
        log=cfg.LogConfig(every=1, tensorboard=False),
        **changes,
    )  # fmt: skip


@pytest.mark.usefixtures("alone")
def test_inpainting_is_reckoned_and_goes_on_as_if_it_had_not_stopped(data: Path, tmp_path: Path) -> None:
    whole = run_of("inpainting", data, tmp_path / "whole", 2)
    lines = dry_run(whole, compiled=True)
    assert not (tmp_path / "whole").exists()
    assert lines[0].startswith("trains controlnet: ") and "frozen: stage_c, clip_text" in lines[0]
    assert any(line.startswith(f"the compiler's reckoning for {SIDE}x{SIDE}: ") for line in lines)
    loop.train(whole)
    loop.train(run_of("inpainting", data, tmp_path / "parts", 1))
    loop.train(run_of("inpainting", data, tmp_path / "parts", 2))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) == 2


@pytest.mark.usefixtures("alone")
def test_super_resolution_shows_held_out_pictures_beside_what_it_draws(data: Path, tmp_path: Path) -> None:
    shown = cfg.PicturesConfig(every=1, preview=True)
    held_out = cfg.ValidationConfig(share=0.4, every=100)
    out = tmp_path / "run"
    loop.train(run_of("super_resolution", data, out, 1, pictures=shown, validation=held_out))
    sheets = [np.asarray(Image.open(path)) for path in sorted((out / "samples").iterdir())]
    assert len(sheets) == 2  # before the first step and after the last
    # 2×2 latent positions are 85 pixels: to the left every second pixel of a held-out picture, enlarged.
    assert all(np.array_equal(sheets[0][8:93, 8:93], sheet[8:93, 8:93]) for sheet in sheets)
    assert sheets[0][8:93, 93:178].std() > 1
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(line["validation_loss"]) and np.isfinite(line["loss"])


def test_the_control_of_a_training_picture_is_its_own_map() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (SIDE, 96, 3), np.uint8)
    mask = np.zeros((SIDE, 96), bool)
    mask[10:30, 5:50] = True
    seen = {
        "canny": canny_map(picture),
        "inpainting": inpainting_map(picture, mask),
        "super_resolution": picture,
    }
    for kind, control in seen.items():
        own = control_of(kind, control)
        found = canvas.control_image(own, (SIDE, 96), SIDE)
        expected = {"canny": np.round(255 * seen["canny"]), "super_resolution": picture[::2, ::2]}
        np.testing.assert_array_equal(found, expected.get(kind, control))
        assert own.strength == 1
