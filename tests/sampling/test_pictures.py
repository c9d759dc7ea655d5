from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import load_file

from ultrapixel_jax import __version__
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.picture import Picture
from ultrapixel_jax.sampling.requests import Request

REQUEST = Request(
    prompt='a "quoted" prompt\nwith 猫 and \\',
    negative_prompt="blurry",
    seed=7,
    height=300,
    width=400,
    stage_c=DiffusionConfig(),
    stage_b=DiffusionConfig(steps=3),
    name="x",
)
RUN = pictures.Run("weights-1", "config-1", "float32", 2, {"data": 2}, lr_side=12)
IMAGE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
META = pictures.describe(REQUEST, RUN)


def other(**changes):
    return pictures.describe(dataclasses.replace(REQUEST, **changes), RUN)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# -- metadata


def test_pixels_and_metadata_come_back(tmp_path):
    saved = pictures.save(tmp_path, "x", IMAGE, META)
    assert saved == pictures.Saved(tmp_path / "x.png", new=True)
    assert np.array_equal(pictures.load_pixels(saved.path), IMAGE)
    request, run = pictures.recorded(pictures.read_metadata(saved.path))
    assert run == RUN
    assert request == dataclasses.replace(REQUEST, name=None)
    assert pictures.read_metadata(saved.path)["versions"]["ultrapixel_jax"]
    with Image.open(saved.path) as picture:
        assert "Seed: 7" in picture.info["parameters"]


PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def as_the_web_ui_reads(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings, by the rules of AUTOMATIC1111's web UI."""
    *lines, last = text.strip().split("\n")
    assert len(PARAMETER.findall(last)) >= 3  # else it would be a line of the prompt
    parts, at = [[], []], 0
    for line in lines:
        if line.startswith("Negative prompt:"):
            line, at = line.removeprefix("Negative prompt:"), 1
        parts[at].append(line.strip())
    values = {k: json.loads(v) if v[:1] == '"' == v[-1:] else v for k, v in PARAMETER.findall(last)}
    return "\n".join(parts[0]), "\n".join(parts[1]), values


@pytest.mark.parametrize("negative", ["", "blurry, low: quality\nand (dark)"])
def test_the_web_ui_reads_the_parameters(negative):
    run = dataclasses.replace(RUN, checkpoint='one, "two": three')
    request = dataclasses.replace(
        REQUEST, negative_prompt=negative, prompt="a cat, (asleep:1.2)\nSteps: 3",
        stage_c=DiffusionConfig(cfg=3.5, cfg_hr=1.0),
        stage_b=DiffusionConfig(steps=3, sampler="ddim", eta=0.5),
    )  # fmt: skip
    text = Picture.of(IMAGE, pictures.describe(request, run)).info["parameters"]
    prompt, found, values = as_the_web_ui_reads(text)
    assert (prompt, found) == (request.prompt, negative)
    assert list(values.items()) == [
        ("Steps", "20"), ("Sampler", "ddpm"), ("Schedule type", "cosine"), ("CFG scale", "3.5"),
        ("Seed", "7"), ("Size", "400x300"), ("Model hash", 'one, "two"'), ("Model", "UltraPixel"),
        ("Shift", "1.0"), ("HR CFG scale", "1.0"), ("Stage B Steps", "3"), ("Stage B Sampler", "ddim"),
        ("Stage B CFG scale", "4.0"), ("Stage B Shift", "1.0"), ("Stage B Schedule type", "cosine"),
        ("Stage B Eta", "0.5"), ("Version", f"ultrapixel_jax {__version__}"),
    ]  # fmt: skip


def test_sampling_of_before_is_written_as_before():
    """What was not there is left out where it is the default, so that pictures of then are found again."""
    plain = pictures.describe(REQUEST, RUN)
    names = {"steps", "cfg", "cfg_hr", "shift", "sampler", "eta", "schedule", "cfg_rescale"}
    assert plain["format"] == 1 and set(plain["stage_c"]) == set(plain["stage_b"]) == names
    newer = DiffusionConfig(sampler_hr="dpmpp_2m", steps_hr=8, cfg_until=0.75)
    request = dataclasses.replace(REQUEST, stage_c=newer, stage_b=DiffusionConfig(reuse=2))
    found = json.loads(json.dumps(pictures.describe(request, RUN)))
    assert found["format"] == 3 and set(found["stage_c"]) == names | {"sampler_hr", "steps_hr", "cfg_until"}
    assert pictures.recorded(found)[0] == dataclasses.replace(request, name=None)
    assert "HR Sampler: dpmpp_2m" in Picture.of(IMAGE, found).info["parameters"]
    other = dataclasses.replace(REQUEST, stage_b=DiffusionConfig(sampler="dpmpp_2m_sde"))
    assert pictures.describe(other, RUN)["format"] == 3


@pytest.mark.parametrize("at", [0, 5, 40, 300, 5000, -1, -6, -12])
def test_a_truncated_picture_is_refused_and_not_done(tmp_path, at):
    path = pictures.save(tmp_path, "x", IMAGE, META).path
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(UserError, match=r"x\.png"):
        pictures.read_metadata(path)
    assert pictures.find(tmp_path, "x", META) is None
    assert pictures.save(tmp_path, "x", IMAGE, META) == pictures.Saved(tmp_path / "x-1.png", new=True)


def test_a_flipped_bit_is_refused(tmp_path):
    path = pictures.save(tmp_path, "x", IMAGE, META).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        pictures.read_metadata(path)


def with_text(path, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(pictures.KEY, text)
    Image.fromarray(IMAGE).save(path, pnginfo=info)


def test_what_is_no_picture_of_ours_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(IMAGE).save(tmp_path / "jpeg.png", format="JPEG")
    Image.fromarray(IMAGE).save(tmp_path / "plain.png")
    with_text(tmp_path / "json.png", "{")
    with_text(tmp_path / "list.png", "[]")
    with_text(tmp_path / "newer.png", json.dumps(META | {"format": 4}))
    for name, message in [
        ("none", "does not exist"), ("text", "not a PNG"), ("jpeg", "not a PNG"), ("plain", "no ultrapixel"),
        ("json", "damaged"), ("list", "damaged"), ("newer", "format 4, newer than 3"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            pictures.read_metadata(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="does not exist"):
        pictures.read_metadata(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"seed": "7"}, {"seed": -1}, {"seed": True}, {"prompt": 3}, {"height": 3}, {"preview": 1},
     {"batch_size": 0}, {"mesh": {"data": "2"}}, {"mesh": []}, {"stage_c": {"stepz": 1}},
     {"stage_c": {"steps": "a"}}, {"stage_b": None}, {"tile": 1.5}],
)  # fmt: skip
def test_damaged_values_are_refused(change):
    with pytest.raises(UserError):
        pictures.recorded(META | change)
    with pytest.raises(UserError):
        pictures.recorded({key: value for key, value in META.items() if key not in change})


def test_the_configuration_has_an_identity():
    base = CascadeConfig()
    sampled = dataclasses.replace(base, sampling_c=DiffusionConfig(steps=3))
    bare = dataclasses.replace(base, guidance=None)
    assert pictures.config_identity(base) == pictures.config_identity(sampled)
    assert pictures.config_identity(base) != pictures.config_identity(bare)


# -- files


def test_nothing_is_overwritten_and_the_same_picture_is_not_made_twice(tmp_path):
    first = pictures.save(tmp_path, "x", IMAGE, META)
    before = first.path.read_bytes()
    assert pictures.save(tmp_path, "x", IMAGE, META) == pictures.Saved(first.path, new=False)
    assert pictures.save(tmp_path, "x", IMAGE, other(seed=8)).path.name == "x-1.png"
    assert pictures.save(tmp_path, "x", IMAGE, other(seed=9)).path.name == "x-2.png"
    assert pictures.save(tmp_path, "x", IMAGE, META, again=True).path.name == "x-3.png"
    assert pictures.find(tmp_path, "x", other(seed=9)) == tmp_path / "x-2.png"
    assert pictures.find(tmp_path, "x", other(seed=10)) is None
    assert first.path.read_bytes() == before
    assert names(tmp_path) == ["x-1.png", "x-2.png", "x-3.png", "x.png"]


@pytest.mark.parametrize(
    "change",
    [{"prompt": "b"}, {"negative_prompt": ""}, {"height": 301},
     {"stage_c": DiffusionConfig(cfg=1.0)}, {"stage_b": DiffusionConfig(eta=0.5)}],
)  # fmt: skip
def test_a_picture_of_something_else_is_not_done(tmp_path, change):
    pictures.save(tmp_path, "x", IMAGE, META)
    assert pictures.find(tmp_path, "x", META)
    assert pictures.find(tmp_path, "x", other(**change)) is None


def test_a_picture_depends_on_the_weights_and_not_on_the_mesh(tmp_path):
    pictures.save(tmp_path, "x", IMAGE, META)
    for change, same in [
        ({"checkpoint": "w"}, False), ({"config": "c"}, False), ({"dtype": "bfloat16"}, False),
        ({"preview": True}, False),
        ({"mesh": {}}, True), ({"batch_size": 9}, True),
    ]:  # fmt: skip
        meta = pictures.describe(REQUEST, dataclasses.replace(RUN, **change))
        assert bool(pictures.find(tmp_path, "x", meta)) is same


def test_latents_lie_beside(tmp_path):
    latents = {"stage_c": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    pictures.save(tmp_path, "x", IMAGE, META)
    assert pictures.find(tmp_path, "x", META, latents=True) is None  # without latents it is not whole
    saved = pictures.save(tmp_path, "x", IMAGE, META, latents=latents)
    assert saved.path.name == "x-1.png"
    assert np.array_equal(load_file(tmp_path / "x-1.safetensors")["stage_c"], latents["stage_c"])
    assert pictures.find(tmp_path, "x", META, latents=True) == saved.path
    assert pictures.save(tmp_path, "x", IMAGE, META, latents=latents) == pictures.Saved(saved.path, new=False)


def test_latents_of_another_picture_are_never_joined(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"someone's")
    assert pictures.save(tmp_path, "x", IMAGE, META).path.name == "x-1.png"
    saved = pictures.save(tmp_path, "x", IMAGE, other(seed=1), latents={"a": np.zeros(2)})
    assert saved.path.name == "x-2.png"
    assert (tmp_path / "x.safetensors").read_bytes() == b"someone's"


@pytest.mark.parametrize("links", [True, False])
def test_a_number_that_another_process_takes_meanwhile(tmp_path, monkeypatch, links):
    if not links:  # a file system without hard links

        def refuse(self, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    taken = pictures._is_taken
    monkeypatch.setattr(pictures, "_is_taken", lambda path: path.name == "x-1.png" and taken(path))
    (tmp_path / "x.png").write_bytes(b"another process")
    saved = pictures.save(tmp_path, "x", IMAGE, META, latents={"a": np.ones(2)})
    assert saved == pictures.Saved(tmp_path / "x-1.png", new=True)
    assert names(tmp_path) == ["x-1.png", "x-1.safetensors", "x.png"]
    assert np.array_equal(load_file(tmp_path / "x-1.safetensors")["a"], np.ones(2))
    assert (tmp_path / "x.png").read_bytes() == b"another process"


@pytest.mark.parametrize("latents", [None, {"a": np.zeros(2)}])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, latents):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        pictures.save(tmp_path, "x", IMAGE, META, latents=latents)
    assert names(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pictures.save(tmp_path, "x", IMAGE, META)
    assert names(tmp_path) == []


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    mode = pictures.save(tmp_path, "x", IMAGE, META).path.stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


def test_check_writable(tmp_path):
    assert pictures.check_writable(tmp_path / "a" / "b").is_dir()
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="not writable"):
            pictures.check_writable(bad)
