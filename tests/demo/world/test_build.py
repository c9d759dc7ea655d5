"""The dataset of drawn pictures: read by the loader, the same however it is made."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.demo.world import build as build_module
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.build import build, main, parser
from ultrapixel_jax.demo.world.captions import caption
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError

SETTINGS: dict[str, Any] = {"count": 6, "size": ((64, 64),), "shard_images": 2, "quiet": True}


def settings(**changes: Any) -> dict[str, Any]:
    return {**SETTINGS, **changes}


def read(path: Path, count: int, area: int = 64) -> dict[str, tuple[str, np.ndarray]]:
    """Caption and picture by id, as training sees them."""
    config = DataConfig(
        path=str(path), areas=(area,), ratios=("1/1",), batch_size=2, lr_latent=2, caption_dropout=0.0
    )
    with Loader(config) as loader:
        batches = [next(loader) for _ in range(count // 2)]
    return {
        id_: (text, image)
        for batch in batches
        for id_, text, image in zip(batch["ids"], batch["caption"], batch["image"])
    }


def assert_same(a: Path, b: Path) -> None:
    left, right = read(a, 6), read(b, 6)
    assert left.keys() == right.keys()
    for id_, (text, image) in left.items():
        assert text == right[id_][0]
        np.testing.assert_array_equal(image, right[id_][1])


def test_the_loader_reads_what_was_drawn(tmp_path):
    report = build(str(tmp_path / "data"), **SETTINGS)
    assert report["examples"] == 6
    examples = read(tmp_path / "data", 6)
    assert set(examples) == {f"train-{i:07d}" for i in range(6)}
    for i in range(6):
        scene = scenes.sample(0, i)
        text, image = examples[f"train-{i:07d}"]
        assert text == caption(scene, 0, i)
        np.testing.assert_array_equal(image, render(scene, 64, 64))


def test_held_out_scenes_from_another_seed_and_start(tmp_path):
    build(str(tmp_path / "data"), split="held_out", seed=3, first=10, **settings(count=2))
    examples = read(tmp_path / "data", 2)
    assert set(examples) == {"held_out-0000010", "held_out-0000011"}
    scene = scenes.sample(3, 11, "held_out")
    np.testing.assert_array_equal(examples["held_out-0000011"][1], render(scene, 64, 64))


def test_tiles_are_parts_of_pictures_of_several_sizes(tmp_path):
    sizes = (96, 96), (128, 128)
    build(str(tmp_path / "data"), tile=64, **settings(size=sizes))
    met = set()
    for id_, (_, tile) in read(tmp_path / "data", 6).items():
        scene = scenes.sample(0, int(id_.split("-")[1]))
        for side, _ in sizes:
            whole = render(scene, side, side)
            places = range(side - 64 + 1)
            if any((whole[y : y + 64, x : x + 64] == tile).all() for y in places for x in places):
                met.add((id_, side))
    assert len({id_ for id_, _ in met}) == 6
    assert {side for _, side in met} == {96, 128}


def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    build(str(tmp_path / "whole"), **SETTINGS)
    make, made = build_module._make_shard, []

    def interrupted(job: build_module._Job) -> int:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(job.index)
        return make(job)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_make_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(str(tmp_path / "parts"), **SETTINGS)

    def counted(job: build_module._Job) -> int:
        made.append(job.index)
        return make(job)

    monkeypatch.setattr(build_module, "_make_shard", counted)
    build(str(tmp_path / "parts"), **SETTINGS)
    assert made == [0, 1, 2]
    assert_same(tmp_path / "whole", tmp_path / "parts")
    build(str(tmp_path / "parts"), **SETTINGS)
    assert made == [0, 1, 2]  # finished: nothing is drawn again


def test_worker_processes_change_nothing(tmp_path):
    build(str(tmp_path / "here"), **SETTINGS)
    build(str(tmp_path / "there"), workers=2, **SETTINGS)
    assert_same(tmp_path / "here", tmp_path / "there")


def test_other_settings_are_refused_where_a_dataset_is(tmp_path):
    build(str(tmp_path / "data"), **SETTINGS)
    with pytest.raises(UserError):
        build(str(tmp_path / "data"), **settings(seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": ((8, 64),)}, "size 8x64"),
        ({"tile": 65}, "size 64x64 is outside 65"),
        ({"encoding": "gif"}, "format 'gif'"),
        ({"split": "all"}, "split 'all'"),
    ],
)
def test_bad_values_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(str(tmp_path / "data"), **settings(**changes))


def test_command_line(tmp_path, capsys):
    options = parser().read(["out", "--side", "512", "96x64", "--tile", "32"])
    assert options.size == [(512, 512), (96, 64)] and options.tile == 32
    assert set(vars(options)) - {"ratios"} == set(inspect.signature(build).parameters)
    assert main([str(tmp_path / "data"), "--count", "2", "--side", "64", "--workers", "0", "--quiet"]) == 0
    assert "2 examples" in capsys.readouterr().out
    assert main([str(tmp_path / "data"), "--side", "1x2x3"]) == 2
    assert "--side '1x2x3'" in capsys.readouterr().err


def test_a_job_is_all_that_a_worker_needs():
    job = build_module._Job("d", 0, 1, 0, 1, "train", 0, ((64, 64),), 0, "jpeg")
    (example,) = build_module._examples(job)
    assert (example["height"], example["width"]) == (64, 64)
    assert example["image"].read(3) == b"\xff\xd8\xff"
    (other,) = build_module._examples(dataclasses.replace(job, seed=1))
    assert other["caption"] != example["caption"]


def test_ratios_add_pictures_of_the_same_area():
    from fractions import Fraction

    from ultrapixel_jax.demo.world.build import of_ratios

    assert of_ratios([(288, 288), (64, 96)], [Fraction(1)]) == [(288, 288), (64, 96)]
    found = of_ratios([(288, 288), (64, 96)], [Fraction(1), Fraction(4, 5), Fraction(1, 2)])
    assert found == [(192, 384), (256, 320), (288, 288), (320, 256), (384, 192), (64, 96)]
