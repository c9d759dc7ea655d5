"""What steers pictures, before any network: files, values, metadata, batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import arguments, condition_keys, conditions, given, pictures
from ultrapixel_jax.sampling.conditions import (
    Conditions,
    Control,
    ImagePrompt,
    Inpaint,
    Lora,
    Start,
    Token,
)
from ultrapixel_jax.sampling.prompts import read_prompts
from ultrapixel_jax.sampling.requests import Entry, Request, make_requests, plan
from ultrapixel_jax.sizes import LR_SIDE

RUN = pictures.Run("weights-1", "config-1", "float32", 1, {}, lr_side=12)
SIZE = {"height": 256, "width": 256, "stage_c": DiffusionConfig(), "stage_b": DiffusionConfig()}


def drawn(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def files(tmp_path):
    """Two pictures, a mask and a LoRA."""
    for name in ("a.png", "b.png"):
        drawn(ord(name[0])).save(tmp_path / name)
    Image.fromarray(np.eye(48, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    (tmp_path / "lora.safetensors").write_bytes(b"numbers")
    return tmp_path


@pytest.fixture
def everything(files) -> Conditions:
    a, b, mask = (given.picture(files / name) for name in ("a.png", "b.png", "mask.png"))
    return Conditions(
        (Control("canny", a, thresholds=(50, 90), passes="both"), Control("inpainting", a, mask, start=0.5)),
        (ImagePrompt(b), ImagePrompt(a, 0.5)),
        Start(a, 0.5, 0.25),
        Inpaint(b, mask, 3),
        (Lora(given.file(files / "lora.safetensors"), -0.5),),
        (Token("[cat]", "^cat</w>"),),
    )


def request(own: Conditions, **more) -> Request:
    return Request("a", "", 0, 256, 256, DiffusionConfig(), DiffusionConfig(), conditions=own, **more)


def test_a_file_is_known_by_its_content(files):
    one = given.picture(files / "a.png")
    assert one.checksum == hashlib.sha256((files / "a.png").read_bytes()).hexdigest()[:16]
    assert (one.height, one.width) == (48, 48) and hash(one)
    np.testing.assert_array_equal(np.asarray(one.image()), np.asarray(drawn(ord("a"))))
    drawn(5).save(files / "a.png")
    other = given.picture(files / "a.png")
    assert other != one
    given._decoded.cache_clear()
    with pytest.raises(UserError, match="has changed since the command began"):
        one.image()


def test_every_kind_of_picture_in_memory_is_read_in_one_way(tmp_path):
    rgb = drawn(1)
    array = np.asarray(rgb)
    plain = given.picture(rgb)
    assert plain == given.picture(array) == given.picture(array / 255.0)
    turned = rgb.copy()
    turned.getexif()[0x0112] = 6  # to be turned by a quarter to the right
    np.testing.assert_array_equal(np.asarray(given.picture(turned).image()), np.rot90(array, -1))
    clear = Image.fromarray(np.dstack([array, np.zeros((48, 48), np.uint8)]))
    assert np.asarray(given.picture(clear).image()).min() == 255  # over white
    palette = rgb.quantize(16)
    np.testing.assert_array_equal(
        np.asarray(given.picture(palette).image()), np.asarray(palette.convert("RGB"))
    )
    wide = Image.fromarray((array[..., 0].astype(np.uint16) << 8) + 7)
    np.testing.assert_array_equal(np.asarray(given.picture(wide).image())[..., 1], array[..., 0])
    wide.save(tmp_path / "wide.png")
    np.testing.assert_array_equal(
        np.asarray(given.picture(tmp_path / "wide.png").image())[..., 1], array[..., 0]
    )
    for bad in (array[..., :2], array.astype(np.int32), array / 100.0, np.zeros((48, 48), object)):
        with pytest.raises(UserError):
            given.picture(bad)


def test_files_that_cannot_be_used_are_a_line(files, monkeypatch):
    (files / "text.png").write_text("no picture")
    (files / "cut.png").write_bytes((files / "a.png").read_bytes()[:300])
    drawn(1, 15, 400).save(files / "thin.png")
    for name, message in [
        ("none.png", "does not exist"), ("text.png", "cannot be used"), ("cut.png", "cannot be used"),
        ("thin.png", "400x15 pixels; it takes 16"), ("", "cannot be read"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as error:
            given.picture(files / name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(given, "MAX_MEGAPIXELS", 1)
    huge = Image.new("L", (1000, 1010))
    huge.save(files / "huge.png")
    for source in (files / "huge.png", huge):
        with pytest.raises(UserError, match="more than the 1 megapixels"):
            given.picture(source)


def test_values_out_of_range_are_a_line(files):
    a, mask = given.picture(files / "a.png"), given.picture(files / "mask.png")
    small = given.picture(drawn(1, 32, 48))
    for make, message in [
        (lambda: Control("canny", a, strength=-1.0), "control strength -1 is outside 0 to 10"),
        (lambda: Control("canny", a, strength=float("nan")), "control strength nan"),
        (lambda: Control("canny", a, start=0.5, until=0.5), "from 0.5 until 0.5 has no steps"),
        (lambda: Control("canny", a, mask), "takes no mask"),
        (lambda: Control("inpainting", a), "needs a mask"),
        (lambda: Control("super_resolution", a, ready=True), "canny alone"),
        (lambda: Control("canny", a, thresholds=(200, 100)), "thresholds 200,100"),
        (lambda: Control("inpainting", a, small), r"mask .* has 32x48 .* 48x48; .* one size"),
        (lambda: Inpaint(a, small), "one size"),
        (lambda: ImagePrompt(a, 11.0), "weight of an image prompt 11"),
        (lambda: Start(a, 0.0, 1.0), "strength 0 must be above 0"),
        (lambda: Start(a, 0.5, 1.5), "strength 1.5"),
        (lambda: Conditions(start=Start(small, 0.5, 0.5)).check(256, 256), "32x48 .* another aspect ratio"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            make()
    Conditions(start=Start(small, 0.5, 0.5)).check(512, 768)


def test_conditions_come_back_from_a_pictures_metadata(everything, files):
    metadata = json.loads(json.dumps(pictures.describe(request(everything), RUN)))
    assert metadata["format"] == 2 and pictures.recorded(metadata)[0].conditions == everything
    plain = pictures.describe(request(conditions.NONE), RUN)
    assert plain["format"] == 1 and "conditions" not in plain
    assert not pictures.same_picture(metadata, plain)
    assert pictures.recorded(plain)[0].conditions == conditions.NONE
    # Moved: found beside the picture; it is the same picture.
    away = files / "away"
    away.mkdir()
    for name in ("a.png", "b.png", "mask.png", "lora.safetensors"):
        (files / name).rename(away / name)
    with pytest.raises(UserError, match=r"a\.png' \(checksum .*\), which is missing"):
        pictures.recorded(metadata)
    found = pictures.recorded(metadata, away)[0]
    assert pictures.same_picture(json.loads(json.dumps(pictures.describe(found, RUN))), metadata)
    drawn(9).save(away / "b.png")
    with pytest.raises(UserError, match=r"b\.png' of checksum .* has changed"):
        pictures.recorded(metadata, away)
    in_memory = pictures.describe(request(Conditions(start=Start(given.picture(drawn(1)), 0.5, 0.5))), RUN)
    with pytest.raises(UserError, match="given in Python"):
        pictures.recorded(in_memory)


def test_what_runs_in_one_batch(everything):
    """Values of pictures may differ within a batch; their number, kind and shape may not."""
    canny, inpainting = everything.controls
    c = conditions.NONE
    same = [
        dataclasses.replace(c, controls=(dataclasses.replace(canny, strength=s, until=u),))
        for s, u in ((0.1, 1.0), (2.0, 0.5))
    ]
    others = [
        c, everything, dataclasses.replace(c, controls=(inpainting,)),
        dataclasses.replace(c, controls=(canny,) * 2),
        dataclasses.replace(c, image_prompts=everything.image_prompts),
        dataclasses.replace(c, start=everything.start),
        dataclasses.replace(c, inpaint=everything.inpaint), dataclasses.replace(c, loras=everything.loras),
        dataclasses.replace(c, tokens=everything.tokens),
    ]  # fmt: skip
    batches = plan([request(own, index=i) for i, own in enumerate([*same, *others])], 4, LR_SIDE)
    assert [[r.index for r in batch.requests] for batch in batches] == [[0, 1], *([i] for i in range(2, 11))]
    assert c == Conditions() and not c and everything and len(list(everything.files())) == 9


def test_the_command_line_says_what_a_line_of_a_list_does_not(files):
    listed = files / "p.jsonl"
    lines = [{"prompt": "a", "lora": "lora.safetensors:0.5"}, {"prompt": "b", "lora": ["lora.safetensors"]}]
    listed.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "c"}])))
    entries = read_prompts(listed)
    of_all = {"lora": ((files / "lora.safetensors", 2.0),), "token": (("[x]", ""),)}
    made = [r.conditions for r in make_requests(entries, **SIZE, conditions=of_all)]
    assert [own.loras[0].scale for own in made] == [0.5, 1.0, 2.0]
    assert {own.loras[0].file.path for own in made} == {str(files / "lora.safetensors")}
    assert {own.tokens for own in made} == {(Token("[x]"),)}
    (files / "p.csv").write_text("prompt,lora\na,lora.safetensors:3\n")
    assert make_requests(read_prompts(files / "p.csv"), **SIZE)[0].conditions.loras[0].scale == 3
    for value, message in [
        (7, "does not exist"),
        ({}, "must be FILE"),
        (True, "must be FILE"),
        ([], "one value or"),
    ]:
        listed.write_text(json.dumps({"prompt": "a", "lora": value}))
        with pytest.raises(UserError, match=message):
            make_requests(read_prompts(listed), **SIZE)


def test_arguments_in_python(files):
    path = files / "lora.safetensors"
    own = arguments.conditions({"lora": [(path, 0.8), path], "token": {"[cat]": "^cat</w>"}})
    assert [lora.scale for lora in own.loras] == [0.8, 1.0] and own.tokens == (Token("[cat]", "^cat</w>"),)
    assert arguments.conditions({"lora": path}) == arguments.conditions({"lora": (path, 1.0)})
    assert arguments.conditions({}) == conditions.NONE
    entry = Entry("a", conditions=own)
    assert make_requests([entry], **SIZE)[0].conditions == own


def test_what_is_written_wrong_is_a_line(files):
    a, mask = str(files / "a.png"), str(files / "mask.png")
    for name, value, message in [
        ("control", "cany:x.png", "did you mean 'canny'"), ("control", "depth:x.png", "KIND is canny, "),
        ("control", "x.png", "not KIND:IMAGE"), ("control", "inpainting:x.png", "has no mask"),
        ("control", "canny:", "names no file"), ("control_map", "inpainting:x:y", "no map of edges"),
        ("control_strength", "1,x", "'x' is not a number"), ("control_until", 2, "0 and at most 1"),
        ("canny_thresholds", "5", "not LOW,HIGH"), ("control_pass", "low", "use lr, hr, both"),
        ("strength", 0, "above 0"), ("inpaint", "a.png", "not IMAGE:MASK"), ("feather", -1, "outside 0"),
        ("image", ["x", "y"], "image takes one value"), ("inpaint", ["x"] * 3, "inpaint takes one value"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            condition_keys.read(name, value)
    path = Path(a)
    two = (("canny", path, None), ("inpainting", path, Path(mask)))
    for values, message in [
        ({"control": two, "control_strength": (1.0,) * 3}, "3 values for 2 controls"),
        ({"image": path, "upscale": path}, "image and upscale do not go together"),
        ({"inpaint": (path, files / "none.png")}, "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            condition_keys.conditions_of(values)
    made = condition_keys.conditions_of(
        {
            "control": two,
            "control_strength": (0.5, 2.0),
            "control_until": (0.5,),
        }
    ).controls
    assert [(c.strength, c.until, c.ready) for c in made] == [(0.5, 0.5, False), (2.0, 0.5, False)]
    for steering, message in [
        ({"mask": mask}, "mask needs the image"), ({"image": a, "upscale": a}, "do not go together"),
        ({"image": a, "strength": "far"}, "'far' is not a number"),
        ({"image": a, "strength": 2}, "at most 1"),
        ({"image": a, "mask": mask, "feather": 0.5}, "feather 0.5 is not a whole number"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            arguments.conditions(steering)
    of_all = {"image": path, "strength": 0.5}
    assert condition_keys.merged(of_all, {"upscale": path}) == {"upscale": path, "strength": 0.5}
