"""Cached latents are what the encoders give directly."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from configs.tiny import config as tiny
from tests.data.conftest import AREAS, RATIOS
from ultrapixel_jax.checkpoints import named_weights
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, Tokenizer
from ultrapixel_jax.config import (
    EfficientNetConfig,
    EfficientNetStage,
    EffnetEncoderConfig,
    StageCConfig,
    to_dict,
)
from ultrapixel_jax.data import cache as command
from ultrapixel_jax.data import encode
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.encode import NAMES
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components
from ultrapixel_jax.models.clip_text import ClipText

BACKBONE = EfficientNetConfig(
    stem=4,
    stages=tuple(EfficientNetStage("fused", 1, 2, 4, 1) for _ in range(4)),
    head=8,
)
CONFIGS: dict[str, Any] = {
    "effnet_encoder": EffnetEncoderConfig(BACKBONE, c_latent=6),
    "clip_text": dataclasses.replace(tiny.clip_text, positions=24),
    "clip_vision": tiny.clip_vision,
}


def variables_of(name: str) -> dict[str, Any]:
    def make(path: Any, struct: Any) -> np.ndarray:
        keys = [str(k.key) for k in path]
        array = named_weights.tensor(
            f"{name}.{'.'.join(keys)}".replace("scale", "weight"), struct.shape[::-1]
        ).T
        return np.abs(array) + 0.5 if keys[-1] == "var" else np.ascontiguousarray(array)

    return jax.tree_util.tree_map_with_path(make, components.abstract(name, CONFIGS[name]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "encoders"
    with CheckpointWriter(directory) as writer:
        for name in NAMES:
            writer.add(name, variables_of(name), ComponentInfo(config=to_dict(CONFIGS[name])))
        for file in BYTE_TOKENIZER.iterdir():
            writer.add_file(file, f"tokenizer/{file.name}")
    return directory


def arguments(records: Path, checkpoint: Path, output: Path, *more: str) -> list[str]:
    return [
        str(records), str(checkpoint), str(output), "--areas", *map(str, AREAS), "--ratios", *RATIOS,
        "--lr-latent", "2", "--batch-size", "8", "--shard-images", "12", "--quiet", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Encoders are loaded, and so compiled, once for all commands."""
    with pytest.MonkeyPatch.context() as patch:
        load, loaded = encode.load_encoders, {}

        def once(sources: Sources, *settings: Any) -> encode.Encoders:
            key = (sources.identity, *settings)
            loaded[key] = loaded.get(key) or load(sources, *settings)
            return loaded[key]

        patch.setattr(encode, "load_encoders", once)
        yield


@pytest.fixture(scope="module")
def cached(records: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cached") / "latents"
    assert command.main(arguments(records, checkpoint, output)) == 0
    return output


def read(config: DataConfig, count: int) -> list[dict[str, Any]]:
    with Loader(config) as loader:
        return [next(loader) for _ in range(count)]


def by_id(batches: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        batch["ids"][row]: {k: v if k == "bucket" else v[row] for k, v in batch.items()}
        for batch in batches
        for row in range(len(batch["ids"]))
    }


def close(got: np.ndarray, expected: Any) -> None:
    assert got.dtype == ml_dtypes.bfloat16
    expected = np.asarray(expected, np.float32)
    # Rounding to bfloat16, and another order of additions in a batch of another size.
    assert np.abs(got.astype(np.float32) - expected).max() <= 0.005 * np.abs(expected).max()


def test_latents_and_states_equal_direct_encoding(records: Path, checkpoint: Path, cached: Path) -> None:
    direct = DataConfig(
        path=str(records), areas=AREAS, ratios=RATIOS, batch_size=1, lr_latent=2, caption_dropout=0.0,
        image_vector_probability=1.0, clip_image_size=28,
    )  # fmt: skip
    images = by_id(read(direct, 26))  # the first epoch
    stored = by_id(read(dataclasses.replace(direct, path=str(cached), cached=True), 26))
    assert set(images) == set(stored)
    assert len(stored) == 26
    effnet = components.build("effnet_encoder", CONFIGS["effnet_encoder"])
    vision = components.build("clip_vision", CONFIGS["clip_vision"])
    text = ClipText(CONFIGS["clip_text"])
    weights = {name: jax.tree.map(jnp.asarray, variables_of(name)) for name in NAMES}
    latent = jax.jit(lambda x: effnet.apply(weights["effnet_encoder"], x))
    states = jax.jit(lambda i, m: text.apply(weights["clip_text"], i, m))
    vectors = jax.jit(lambda x: vision.apply(weights["clip_vision"], x))
    tokenizer = Tokenizer(BYTE_TOKENIZER, 24)
    for id_ in sorted(images)[::5]:
        image, row = images[id_], stored[id_]
        assert (row["bucket"], row["caption"]) == (image["bucket"], image["caption"])
        close(row["latent"], latent(jnp.asarray(image["image"][None], jnp.float32) / 255)[0])
        close(row["latent_lr"], latent(jnp.asarray(image["image_lr"][None], jnp.float32) / 255)[0])
        expected = states(*tokenizer([image["caption"]]))
        close(row["text_states"], expected[0][0])
        close(row["text_pooled"], expected[1][0])
        close(row["image_vector"], vectors(image["image_clip"][None])[0])


def test_encoders_that_are_missing_give_zeros(
    records: Path, checkpoint: Path, cached: Path, tmp_path: Path
) -> None:
    output = tmp_path / "latents"
    without = ("--without", "clip_text", "clip_vision", "--pictures")
    assert command.main(arguments(records, checkpoint, output, *without)) == 0
    config = DataConfig(path=str(output), cached=True, batch_size=1, caption_dropout=0.0)
    (batch,) = read(config, 1)
    assert batch["caption"][0]
    assert batch["text_states"].shape == (1, 1, 1280)  # of the default cascade: these sources name none
    assert not batch["image_vector"].any() and batch["image_vector"].shape == (1, 768)
    other = by_id(read(dataclasses.replace(config, path=str(cached)), 40))[batch["ids"][0]]
    np.testing.assert_array_equal(batch["latent"][0], other["latent"])
    _controls_are_made_of_cached_pictures(records, config, cached)


def _controls_are_made_of_cached_pictures(records: Path, config: DataConfig, cached: Path) -> None:
    """Pictures are those of the first epoch but for WebP's loss; latents without are refused."""
    config = dataclasses.replace(config, control="super_resolution")
    images = {"areas": AREAS, "ratios": RATIOS, "lr_latent": 2}
    direct = by_id(read(dataclasses.replace(config, path=str(records), cached=False, **images), 26))
    for id_, row in by_id(read(config, 5)).items():
        away = np.abs(row["image"].astype(float) - direct[id_]["image"])
        assert row["image"].dtype == np.uint8 and away.mean() < 8
    canny = read(dataclasses.replace(config, control="canny"), 1)[0]
    assert "image" not in canny and canny["control"].shape == (1, *canny["bucket"], 1)
    with pytest.raises(UserError, match="cache it again with --pictures"):
        Loader(dataclasses.replace(config, path=str(cached)))


def test_zeros_are_as_wide_as_stage_c_takes(checkpoint: Path, tmp_path: Path) -> None:
    stage_c = StageCConfig(c_clip_text=12, c_clip_text_pooled=10, c_clip_img=6)
    with CheckpointWriter(tmp_path / "stage_c") as writer:
        writer.add("stage_c", {"params": {}}, ComponentInfo(config=to_dict(stage_c)))
    sources = Sources([checkpoint, tmp_path / "stage_c"])
    encoders = encode.load_encoders(sources, "float32", ("clip_text", "clip_vision"))
    states, pooled = encoders.text(["a cat"])
    assert states.shape == (1, 1, 12) and pooled.shape == (1, 10)
    assert encoders.image_vectors([Image.new("RGB", (32, 32))]).shape == (1, 6)


def test_dropping_still_works(cached: Path, checkpoint: Path) -> None:
    config = DataConfig(
        path=str(cached), cached=True, batch_size=2, caption_dropout=0.5, image_vector_probability=0.5
    )
    empty = [
        array[0].astype(ml_dtypes.bfloat16)
        for array in encode.load_encoders(Sources([checkpoint]), "float32").text([""])
    ]
    dropped = 0
    for batch in read(config, 20):
        assert batch["latent"].shape == (2, *(side // 32 for side in batch["bucket"]), 6)
        for row in range(2):
            is_empty = np.array_equal(batch["text_states"][row], empty[0])
            assert is_empty == np.array_equal(batch["text_pooled"][row], empty[1])
            assert is_empty == (batch["caption"][row] == "")
            assert batch["image_vector"][row].any() == batch["use_image"][row]
            dropped += is_empty
    assert 8 <= dropped <= 32


def test_an_interrupted_cache_goes_on(
    records: Path, checkpoint: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "latents"
    from ultrapixel_jax.data import records as module

    write, calls = module.write_shard, []

    def once(*arguments: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(write(*arguments))

    monkeypatch.setattr(module, "write_shard", once)
    assert command.main(arguments(records, checkpoint, output)) == 130
    monkeypatch.setattr(module, "write_shard", write)
    assert len(list(output.glob(".build/0*.json"))) == 1
    assert command.main(arguments(records, checkpoint, output, "--seed", "1")) == 2
    assert command.main(arguments(records, checkpoint, output)) == 0
    config = DataConfig(path=str(output), cached=True, batch_size=4)
    for a, b in zip(read(config, 9), read(dataclasses.replace(config, path=str(cached)), 9)):
        assert a["ids"] == b["ids"]
        assert a["latent"].tobytes() == b["latent"].tobytes()
    assert json.loads((output / "report.json").read_text())["examples"] == 26


def test_checkpoints_of_which_nothing_is_taken_are_named(checkpoint: Path, tmp_path: Path) -> None:
    parts = {}
    for name in NAMES:
        with CheckpointWriter(tmp_path / name) as writer:
            writer.add(name, variables_of(name), ComponentInfo(config=to_dict(CONFIGS[name])))
        parts[name] = str(tmp_path / name)
    whole, (first, *_) = str(checkpoint), parts.values()
    words = f"without effect: none of {', '.join(NAMES)} is taken from it"
    assert list(command.without_effect([whole], [])) == []
    assert list(command.without_effect(list(parts.values()), [])) == []
    assert list(command.without_effect([first, whole], [])) == [f"checkpoint {first} {words}"]
    assert (
        list(command.without_effect([whole, first], [])) == []
    )  # the later one's counts, with a tokenizer before
    vision = parts["clip_vision"]
    (line,) = command.without_effect([whole, vision], ["clip_vision"])
    assert line.startswith(f"checkpoint {vision} without effect") and "clip_vision" not in line.split(": ")[1]


def test_bad_arguments(records: Path, cached: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    for values, words in (
        (arguments(records, tmp_path / "none", tmp_path / "a"), "does not exist"),
        (arguments(records, checkpoint, tmp_path / "a", "--ratios", "16:9"), "16:9"),
        (arguments(cached, checkpoint, tmp_path / "a"), "holds cached_latents"),
        (arguments(records, checkpoint, cached, "--lr-latent", "3"), "another dataset"),
        (arguments(records, checkpoint, tmp_path / "a", "--dtype", "float16"), "float16"),
    ):
        assert command.main(values) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match=r"training takes it with --data\.cached"):
        Loader(DataConfig(path=str(cached)))
