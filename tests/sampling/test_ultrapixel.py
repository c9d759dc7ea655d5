"""The Python API, with tiny networks whose weights are made from names."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs.tiny import config
from tests.conftest import ROOT
from tests.sampling.test_sample import FakeCascade
from ultrapixel_jax import Picture, UltraPixel, UserError
from ultrapixel_jax.checkpoints.weights import natural_dtype
from ultrapixel_jax.config import CascadeConfig, GuidanceConfig, load_config
from ultrapixel_jax.sampling import pictures, ultrapixel
from ultrapixel_jax.sampling.requests import Request

SMALL = {"height": 256, "width": 256, "steps": 2, "steps_b": 1}


@pytest.fixture(scope="module")
def model() -> UltraPixel:
    return UltraPixel.load(config=config, cache=False)


@pytest.fixture(scope="module")
def drawn(model) -> Picture:
    (picture,) = model("a red circle", seed=3, return_latents=True, **SMALL)
    return picture


@pytest.fixture
def fake(monkeypatch) -> UltraPixel:
    monkeypatch.setattr(ultrapixel, "Cascade", FakeCascade)
    monkeypatch.setattr(FakeCascade, "calls", [])
    return UltraPixel.load(cache=False)


def test_it_is_the_cascades_picture(model, drawn):
    c, b = model.settings(steps=2, steps_b=1)
    assert (c.steps, c.cfg, b.steps) == (2, config.sampling_c.cfg, 1)
    request = Request("a red circle", "", 3, 256, 256, c, b)
    (expected,) = model.cascade.generate([request], batch_size=1)
    np.testing.assert_array_equal(np.asarray(drawn), expected.image)
    assert set(drawn.latents) == set(expected.latents) == {"stage_c_low", "stage_c", "stage_b"}


def test_a_plain_save_keeps_how_it_was_made(model, drawn, tmp_path):
    drawn.save(tmp_path / "x.png")
    request, run = pictures.recorded(pictures.read_metadata(tmp_path / "x.png"))
    assert (request.prompt, request.seed, request.stage_b.steps) == ("a red circle", 3, 1)
    assert run == model.run(batch_size=1, tile=None, decode_memory=4.0)
    with Image.open(tmp_path / "x.png") as opened:
        assert "Seed: 3" in opened.info["parameters"] and drawn.info["parameters"]
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(drawn))
    drawn.save(tmp_path / "x.jpg")
    drawn.resize((8, 8)).save(tmp_path / "small.png")  # no longer that picture
    with pytest.raises(UserError, match="no ultrapixel metadata"):
        pictures.read_metadata(tmp_path / "small.png")


def test_watching_changes_no_bit_and_shows_where_it_goes(model, drawn):
    told, seen = [], []

    def callback(stage, step, steps, preview):
        told.append((stage, step, steps))
        if (stage, step) in (("C low", 0), ("C high", 2), ("B", 1)):
            seen.append(np.asarray(preview()[0]))

    (picture,) = model("a red circle", seed=3, callback=callback, **SMALL)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(drawn))
    assert told[0] == ("C low", 0, 2) and told[-1] == ("B", 1, 1)
    (expected,) = model.preview(drawn.latents["stage_c"])
    lr, hr = (8 * n for n in (drawn.latents["stage_c_low"].shape[0], drawn.latents["stage_c"].shape[0]))
    assert [image.shape for image in seen] == [(lr, lr, 3), (hr, hr, 3), (hr, hr, 3)]
    np.testing.assert_array_equal(seen[2], np.asarray(expected))
    assert np.abs(seen[1].astype(int) - np.asarray(expected)).max() <= 8  # little noise is left


def test_latents_go_in_where_they_came_out(model, drawn, tmp_path):
    for name in ("stage_c", "stage_b"):
        given = {name: drawn.latents[name]}
        (again,) = model("a red circle", seed=3, latents=given, **SMALL)
        np.testing.assert_array_equal(np.asarray(again), np.asarray(drawn))
        again.save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match="latents that were given"):  # the prompt alone would not do
            pictures.recorded(pictures.read_metadata(tmp_path / f"{name}.png"))
    with pytest.raises(UserError, match=r"shape .* 256x264 pixels need \(6, 7, "):
        model("a", latents={"stage_c": drawn.latents["stage_c"]}, **{**SMALL, "width": 264})
    with pytest.raises(UserError, match="1 latents for 2 pictures"):
        model(["a", "b"], latents=drawn.latents, **SMALL)
    with pytest.raises(UserError, match="stage_c or stage_b"):
        model("a", latents={"stage_c_low": drawn.latents["stage_c_low"]}, **SMALL)


def test_the_budget_of_decoding_counts_at_every_size_and_changes_no_pixel(model, drawn):
    latents = {"stage_b": drawn.latents["stage_b"]}
    smallest = {"latents": latents, **SMALL}
    (tiled,) = model("a red circle", seed=3, decode_memory=0.01, **smallest)
    assert model.cascade.stage_a.tile(1, 10**7) < 64
    assert np.abs(np.asarray(tiled).astype(int) - np.asarray(drawn)).max() <= 1
    with pytest.raises(UserError, match="too small to decode a tile"):
        model("a red circle", decode_memory=1e-5, **SMALL)
    half, whole = (model.cascade.stage_a.tile(batch, 10**9) for batch in (4, 1))
    assert half < whole


def test_lists_are_grouped_by_size_and_come_in_order(fake):
    made = fake(
        ["a", "b", "c"], negative_prompt=["", "x", ""], seed=[5, 6, 7], height=[256, 512, 256], width=264,
        num_images=2, batch_size=4,
    )  # fmt: skip
    assert [call[1] for call in FakeCascade.calls[1:]] == [
        [("a", 5), ("a", 6), ("c", 7), ("c", 8)], [("b", 6), ("b", 7)],
    ]  # fmt: skip
    assert [(p.metadata["prompt"], p.metadata["seed"]) for p in made] == [
        ("a", 5), ("a", 6), ("b", 6), ("b", 7), ("c", 7), ("c", 8),
    ]  # fmt: skip
    assert [p.size for p in made] == [(264, 256)] * 2 + [(264, 512)] * 2 + [(264, 256)] * 2
    assert made[2].metadata["negative_prompt"] == "x"
    assert [i for i, _ in fake.stream(["a", "a"], height=256, width=256)] == [0, 1]  # the same twice


def test_settings_of_each_prompt_run_in_batches_of_their_own(fake):
    made = fake(
        ["a", "b", "c"],
        steps=[5, 6, 5],
        cfg_b=[2, 2, 2.0],
        sampler="ddim",
        height=256,
        width=264,
        batch_size=3,
    )
    assert [call[1] for call in FakeCascade.calls[1:]] == [[("a", 0), ("c", 0)], [("b", 0)]]
    assert [(p.metadata["stage_c"]["steps"], p.metadata["stage_c"]["sampler"]) for p in made] == [
        (5, "ddim"), (6, "ddim"), (5, "ddim"),
    ]  # fmt: skip
    assert [p.metadata["stage_b"]["cfg"] for p in made] == [2.0] * 3


def test_what_is_wrong_is_said_in_a_line(fake):
    for options, message in [
        ({"stepz": 3}, "did you mean 'steps'"), ({"heigth": 3}, "did you mean 'height'"),
        ({"steps": 0}, "steps 0 is outside"), ({"height": 100}, "height 100 is outside"),
        ({"seed": -1}, "seed -1"), ({"seed": [1, 2]}, "seed has 2 values for 1 prompts"),
        ({"batch_size": 0}, "batch_size 0"), ({"num_images": 0}, "number of images 0"),
        ({"steps": [1, 2]}, "steps has 2 values for 1 prompts"), ({"steps": [0]}, "stage C: steps 0 is"),
        ({"eta_b": 2}, "stage B: eta 2.0 is outside"), ({"stepz": [3]}, "did you mean 'steps'"),
        ({"steps": "ten"}, "steps 'ten' is not a whole number"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            fake("a", **options)
    with pytest.raises(UserError, match="float16"):
        UltraPixel.load(dtype="float16", cache=False)
    with pytest.raises(UserError, match="does not exist"):
        UltraPixel.load("/nowhere/at/all", config=str(ROOT / "configs" / "none.py"), cache=False)
    with pytest.warns(UserWarning, match="cut off is: 'rest'"):
        fake("x" * 200 + "rest", height=256, width=256)


def test_a_size_that_the_model_was_not_trained_on_is_told(fake):
    guidance = GuidanceConfig(trained_sides=(512, 1024), trained_ratio=2.0)
    fake.cascade.config = dataclasses.replace(fake.config, guidance=guidance)
    with pytest.warns(
        UserWarning, match="size 256x256 is not what the model was trained on: areas from 512x"
    ):
        fake("a", height=256, width=256)
    fake("a", height=512, width=1024)
    for nobody_knows in (dataclasses.replace(guidance, trained_sides=None, trained_ratio=None), None):
        fake.cascade.config = dataclasses.replace(fake.config, guidance=nobody_knows)
        fake("a", height=256, width=1024)


def test_a_models_size_decides_the_dtype():
    released = CascadeConfig()
    assert natural_dtype(released) == natural_dtype(load_config(ROOT / "configs" / "lite.py")) == "bfloat16"
    assert natural_dtype(config) == "float32"
    assert natural_dtype(dataclasses.replace(released, stage_c=config.stage_c, stage_b=config.stage_b,
                                             clip_text=config.clip_text, clip_vision=config.clip_vision,
                                             guidance=None, stage_a=config.stage_a)) == "float32"  # fmt: skip


def test_the_package_alone_imports_nothing_of_jax():
    code = "import sys, ultrapixel_jax as u; u.UserError; assert not {'jax', 'numpy'} & set(sys.modules), 1\n"
    code += "assert 'UltraPixel' in dir(u)\ntry: u.Ultrapixel\nexcept AttributeError: pass\nelse: assert 0"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
