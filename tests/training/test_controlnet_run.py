"""Runs that train ControlNets, in this process: a dry run, going on after a stop, and pictures meanwhile."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training.test_controlnet import FRESH, kind_of
from tests.training.tiny_run import metrics
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.compilation import cache as compilation_cache
from ultrapixel_jax.config import PreviewerConfig
from ultrapixel_jax.controls import canny_map, inpainting_map
from ultrapixel_jax.data.build import build
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.sampling import canvas
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training import loop, machines
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.dry_run import dry_run
from ultrapixel_jax.training.inputs import Inputs
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.pictures import control_of
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task

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
    model = kind_of(kind)
    encoder = dataclasses.replace(model.effnet_encoder, backbone=model.controlnet.backbone)  # half as deep
    previewer = PreviewerConfig(channels=(8, 8, 8, 8))
    model = dataclasses.replace(model, guidance=None, effnet_encoder=encoder, previewer=previewer)
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
def test_super_resolution_draws_while_it_trains_and_goes_on_as_if_it_had_not_been_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Validation", lambda *_: lambda *_: {})  # which others test, and it compiles
    out = tmp_path / "run"
    shown = cfg.PicturesConfig(every=2, preview=True)
    run = run_of("super_resolution", data, out, 2, pictures=shown, validation=cfg.ValidationConfig(share=0.4))
    loop.train(run)
    sheets = [np.asarray(Image.open(path)) for path in sorted((out / "samples").iterdir())]
    assert len(sheets) == 2  # before the first step and after the last: of the same held-out pictures
    seen, drawn = ([sheet[8:264, start : start + 256] for sheet in sheets] for start in (8, 264))
    np.testing.assert_array_equal(seen[0], seen[1])
    # Of 64 pixels every second one, enlarged to the 256 that are drawn: its squares are 64 pixels wide.
    assert seen[0].std() > 20 and np.abs(np.diff(seen[0].astype(int), axis=1)[:, 24:40]).max() < 4
    assert drawn[0].std() > 1 and drawn[0].shape == (256, 256, 3)

    expected, last = metrics(out), out / CHECKPOINTS / "2"
    assert [line["step"] for line in expected] == [1, 2] and last.is_dir()
    shutil.rmtree(last)  # killed before it was written
    loop.train(dataclasses.replace(run, pictures=cfg.PicturesConfig()))
    assert metrics(out) == expected and last.is_dir()


@pytest.mark.usefixtures("alone")
def test_inpainting_is_reckoned_and_its_step_takes_what_is_read(data: Path, tmp_path: Path) -> None:
    run = run_of("inpainting", data, tmp_path / "run", 2)
    lines = dry_run(run)
    assert lines[0].startswith("trains controlnet: ") and "frozen: stage_c, effnet_encoder" in lines[0]
    assert any("frozen networks" in line and "a batch of the largest bucket" in line for line in lines)
    assert not (tmp_path / "run").exists()

    task, optimizer = make_task(run), make_optimizer(run.optimizer)
    mesh = machines.mesh_of(run.mesh)
    with Loader(run.reading) as loader:
        arrays = Inputs(task, Sources(()).tokenizer, mesh)(next(loader))
    assert arrays["control"].shape == (2, SIDE, SIDE, 4)
    state = jax.eval_shape(states.creator(task, optimizer), {})
    frozen = {name: states.abstract(task, name, mesh, np.dtype("float32")) for name in task.frozen}
    after, found = jax.eval_shape(make_step(task, optimizer), state, frozen, np.float32(0), arrays)
    assert jax.tree.map(lambda a, b: a.shape == b.shape, after, state) and found["loss"].shape == ()


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
