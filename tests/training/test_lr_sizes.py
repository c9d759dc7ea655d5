"""The model's configuration decides how large low-resolution pictures are; what does not agree is refused."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path

import jax
import pytest

from tests.conftest import ROOT
from tests.training.tiny_run import PRESETS
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.config import load_config
from ultrapixel_jax.data.buckets import lr_size
from ultrapixel_jax.data.cache import lr_latent_of
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.sizes import Bucket
from ultrapixel_jax.training.changes import differences
from ultrapixel_jax.training.config import TrainConfig, config_to_json
from ultrapixel_jax.training.inputs import Inputs
from ultrapixel_jax.training.tasks import make_task


def preset(path: Path) -> TrainConfig:
    return load_config(path, TrainConfig)


@pytest.mark.parametrize(
    ("name", "positions"),
    [("train/guidance", 24), ("train/guidance_lite", 24), ("demo/guidance", 9), ("train/tiny", 6)],
)
def test_training_reads_what_sampling_draws(name: str, positions: int) -> None:
    """Square pictures have the low-resolution latent of the sampler, with and without cached latents."""
    for cached in (True, False):
        config = preset(ROOT / "configs" / f"{name}.py")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cached=cached))
        assert config.model.guidance is not None
        assert config.reading.lr_latent == positions
        lr = Bucket.of(1024, 1024, config.model.guidance.lr_side).lr
        assert tuple(side // 32 for side in lr_size(1024, 1024, config.reading.lr_latent)) == lr
    assert lr_latent_of(types.SimpleNamespace(config=config.model, entries={})) == positions
    assert lr_latent_of(types.SimpleNamespace(config=None, entries={})) == 0
    guidance = types.SimpleNamespace(config=dataclasses.replace(config.model.guidance, lr_side=16))
    assert lr_latent_of(types.SimpleNamespace(config=None, entries={"guidance": guidance})) == 12


def test_what_does_not_agree_is_refused(latents: Path) -> None:
    config = preset(PRESETS / "guidance.py")
    with pytest.raises(UserError, match=r"data\.lr_latent 24 is not the model's: .*lr_side 8 makes 6"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, lr_latent=24))
    agreeing = dataclasses.replace(config, data=dataclasses.replace(config.data, lr_latent=6))
    assert agreeing.reading == config.reading

    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with Loader(dataclasses.replace(config.data, path=str(latents))) as loader:
        batch = next(loader)
    Inputs(make_task(config), BYTE_TOKENIZER, mesh)(batch)
    assert config.model.guidance is not None
    guidance = dataclasses.replace(config.model.guidance, lr_side=12)
    larger = dataclasses.replace(config, model=dataclasses.replace(config.model, guidance=guidance))
    with pytest.raises(
        UserError, match=r"has low-resolution latents of .* cache the images again with --lr-latent 9"
    ):
        Inputs(make_task(larger), BYTE_TOKENIZER, mesh)(batch)


def test_a_run_that_has_the_earlier_name_goes_on() -> None:
    config = preset(ROOT / "configs" / "train" / "guidance.py")
    old = json.loads(json.dumps(config_to_json(config)))
    del old["data"]["lr_latent"]
    for side, expected in ((24, []), (12, ["data.lr_latent was 12, is 0"])):
        old["data"]["lr_side"] = side
        assert differences(old, config) == expected
        assert old["data"]["lr_side"] == side
