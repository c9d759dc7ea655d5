"""Batches of images: the same for any number of workers, processes and restarts."""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import AREAS, RATIOS, SIZES, encoded, write_folder
from ultrapixel_jax.controls import canny_map
from ultrapixel_jax.data import images
from ultrapixel_jax.data import loader as loader_module
from ultrapixel_jax.data.buckets import Buckets, lr_size
from ultrapixel_jax.data.build import build
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.data.records import open_dataset
from ultrapixel_jax.errors import UserError

Batch = dict[str, Any]


def config(path: Path, **changes: Any) -> DataConfig:
    base = DataConfig(path=str(path), areas=AREAS, ratios=RATIOS, batch_size=4, lr_latent=2)
    return dataclasses.replace(base, **changes)


def read(settings: DataConfig, count: int, start: int = 0, rows: Sequence[int] | None = None) -> list[Batch]:
    with Loader(settings, rows=rows) as loader:
        loader.seek(start)
        return [next(loader) for _ in range(count)]


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert set(x) == set(y)
        for name in x:
            assert type(x[name]) is type(y[name]), name
            assert np.array_equal(x[name], y[name]), name


def test_a_batch_has_one_size_and_the_right_pixels(records: Path) -> None:
    buckets = Buckets(AREAS, RATIOS)
    for batch in read(config(records, caption_dropout=0.0), 14):
        assert (batch["image"].shape, batch["image"].dtype) == ((4, *batch["bucket"], 3), np.uint8)
        assert batch["image_lr"].shape == (4, *lr_size(*batch["bucket"], 2), 3)
        for id_, caption, image, low in zip(
            batch["ids"], batch["caption"], batch["image"], batch["image_lr"]
        ):
            i = int(Path(id_).stem)
            assert caption == f"caption {i}"
            assert buckets.sizes[buckets.assign(*SIZES[i % len(SIZES)])] == batch["bucket"]
            kind = ("JPEG", "PNG", "WEBP")[i % 3]
            whole = images.pixels(images.cover(images.decode(encoded(i, kind=kind)), batch["bucket"]))
            h, w = batch["bucket"]
            places = [(y, x) for y in range(len(whole) - h + 1) for x in range(whole.shape[1] - w + 1)]
            assert any(np.array_equal(whole[y : y + h, x : x + w], image) for y, x in places)
            again = images.low_resolution(images.Image.fromarray(image), low.shape[:2], "bilinear")
            assert np.array_equal(images.pixels(again), low)


def test_workers_change_nothing(records: Path) -> None:
    settings = config(records, clip_image_size=28, image_vector_probability=0.5)
    expected = read(settings, 7, start=3)
    assert_same(read(dataclasses.replace(settings, workers=2), 7, start=3), expected)
    for batch in expected:
        assert np.array_equal(batch["use_image"], np.any(batch["image_clip"] != 0, axis=(1, 2, 3)))


def test_control_maps_are_those_of_the_pictures(records: Path) -> None:
    """Edges of the very crop; a mask drawn anew each time that a picture is met, by any number of workers."""
    plain = read(config(records), 3)
    for batch, expected in zip(read(config(records, control="canny"), 3), plain, strict=True):
        assert np.array_equal(batch["image"], expected["image"])
        assert np.array_equal(batch["control"], np.stack([canny_map(image) for image in batch["image"]]))
    painted = config(records, control="inpainting")
    batches = read(painted, 14)
    masks: dict[str, list[bytes]] = {}
    for batch in batches:
        mask = batch["control"][..., 3] == 255
        assert np.array_equal(batch["control"][~mask][:, :3], batch["image"][~mask])
        assert (batch["control"][mask] == 255).all()
        for id_, one in zip(batch["ids"], mask, strict=True):
            assert one.any() and not one.all()
            masks.setdefault(id_, []).append(one.tobytes())
    assert any(len(found) > 1 for found in masks.values())
    assert all(len(set(found)) == len(found) for found in masks.values())
    assert_same(read(dataclasses.replace(painted, workers=1), 2, start=3), batches[3:5])
    small = read(config(records, control="super_resolution"), 1)[0]
    assert "control" not in small and np.array_equal(small["image"], plain[0]["image"])


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0, 3], [1, 2]], [[1], [0, 2, 3]]])
def test_processes_share_the_same_batches(records: Path, parts: list[list[int]]) -> None:
    whole = read(config(records), 10)
    for rows in parts:
        for batch, part in zip(whole, read(config(records), 10, rows=rows)):
            assert part["bucket"] == batch["bucket"]
            for name in ("ids", "caption"):
                assert part[name] == [batch[name][row] for row in rows]
            for name in ("image", "image_lr", "use_image"):
                assert np.array_equal(part[name], batch[name][rows])


def test_restored_equals_uninterrupted(records: Path) -> None:
    expected = read(config(records), 12)
    with Loader(config(records)) as loader:
        for _ in range(5):
            next(loader)
        state = loader.state()
        assert state["step"] == 5
        assert_same([next(loader) for _ in range(2)], expected[5:7])
        loader.restore(state)
        assert_same([next(loader)], expected[5:6])
    with Loader(config(records, workers=0), rows=[2, 3]) as half:
        half.restore(state)
        assert next(half)["ids"] == expected[5]["ids"][2:]
    for change in ({"seed": 1}, {"batch_size": 2}, {"areas": (64,)}):
        with Loader(config(records, **change)) as other, pytest.raises(UserError, match="batch_size, seed"):
            other.restore(state)


def test_an_epoch_meets_every_example(records: Path) -> None:
    with Loader(config(records, batch_size=1)) as loader:
        assert sum(loader.bucket_counts().values()) == 26
        ids = [next(loader)["ids"][0] for _ in range(52)]
    assert sorted(ids[:26]) == sorted(ids[26:]) == sorted(set(ids))
    assert ids[:26] != ids[26:]


def test_captions_and_vectors_are_dropped_as_often_as_said(records: Path) -> None:
    batches = read(config(records, caption_dropout=0.3, image_vector_probability=0.2), 200)
    captions = [caption for batch in batches for caption in batch["caption"]]
    used = np.concatenate([batch["use_image"] for batch in batches])
    assert captions.count("") / 800 == pytest.approx(0.3, abs=0.06)
    assert used.mean() == pytest.approx(0.2, abs=0.06)
    for batch in read(config(records, caption_dropout=0.0, image_vector_probability=1.0), 3):
        assert "" not in batch["caption"]
        assert batch["use_image"].all()


class Damaged:
    """A source in which one image is cut."""

    def __init__(self, inner: Any, victim: bytes) -> None:
        self.inner, self.victim = inner, victim

    def __getitem__(self, index: int) -> Any:
        record = self.inner[index]
        cut = record["image"] == self.victim
        return {**record, "image": self.victim[: len(self.victim) // 2]} if cut else record


def test_a_broken_example_is_named_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(str(write_folder(tmp_path / "images", 12)), str(tmp_path / "records"), quiet=True)
    expected = read(config(tmp_path / "records"), 9)

    def open_damaged(*arguments: Any) -> Any:
        dataset = open_dataset(*arguments)
        return dataclasses.replace(dataset, source=Damaged(dataset.source, encoded(3)))

    monkeypatch.setattr(loader_module, "open_dataset", open_damaged)
    with Loader(config(tmp_path / "records")) as loader, caplog.at_level(logging.WARNING):
        batches = [next(loader) for _ in range(9)]
        met = [id_ for batch in expected for id_ in batch["ids"]].count("part1/003.jpeg")
        assert loader.replaced == ["part1/003.jpeg"] * met
        assert met > 0
    for batch, intact in zip(batches, expected):
        # 003 and 009 are all that is in their bucket.
        assert batch["ids"] == [id_.replace("003", "009") for id_ in intact["ids"]]
    assert "part1/003.jpeg is broken (" in caplog.text


def test_damaged_or_missing_datasets_are_one_line(records: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Loader(config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no dataset"):
        Loader(config(tmp_path))
    for name in ("sizes.npy", "dataset_info.json", "captioned_images-train.array_record-00001-of-00004"):
        copy = tmp_path / name
        shutil.copytree(records, copy)
        (copy / name).write_bytes(b"damaged")
        with pytest.raises(UserError, match="damaged"):
            Loader(config(copy))
    with pytest.raises(UserError, match=r"not cached_latents; training takes it with --data\.no-cached"):
        Loader(config(records, cached=True))
