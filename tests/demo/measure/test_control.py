"""What steers the demo's pictures: its measures, and going on; drawings stand for a model's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.demo.measure import control
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render

SIDE = 256


def test_agreement_is_f1_by_hand() -> None:
    truth = np.zeros((30, 30), bool)
    truth[10] = True  # 30 pixels
    for down, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        assert control.agreement(np.roll(truth, down, 0), truth) == expected
    half = truth.copy()
    half[10, 15:] = False  # all of it is right; 17 of 30 pixels of the truth are near it
    np.testing.assert_allclose(control.agreement(half, truth), 2 * (17 / 30) / (1 + 17 / 30))
    none = np.zeros_like(truth)
    assert control.agreement(none, truth) == 0 and control.agreement(none, none) == 1


def model_of(scene_of: Any) -> Any:
    """Draws a scene that `scene_of` gives for the prompt and what it is steered by."""

    def draw(prompt: str, side: int, seed: int, **steering: Any) -> np.ndarray:
        drawn = render(scene_of(prompt, seed, steering), side, side)
        if "mask" in steering:
            inside = steering["mask"][..., None] > 0
            return np.where(inside, drawn, steering["image"])
        return drawn

    return draw


def test_a_model_that_obeys_is_right_and_one_that_does_not_is_wrong(tmp_path: Path) -> None:
    """With its control, it draws the scene; without, another one."""

    def obedient(prompt: str, seed: int, steering: Any) -> scenes.Scene:
        del prompt
        return scenes.sample(0 if "control" in steering else 5, seed, "held_out")

    lines = control.measure(model_of(obedient), tmp_path, "edges", SIDE, 2)
    assert [line["F1"] for line in lines] == [1, 1] and [line["all right"] for line in lines] == [1, 1]
    assert max(line["F1 without"] for line in lines) < 0.7
    assert not any(line["all right without"] for line in lines)
    # A larger count adds scenes; what is there is not drawn again.
    drawn: list[int] = []

    def noted(prompt: str, seed: int, steering: Any) -> scenes.Scene:
        drawn.append(seed)
        return obedient(prompt, seed, steering)

    again = control.measure(model_of(noted), tmp_path, "edges", SIDE, 3)
    assert again[:2] == lines and set(drawn) == {2}


def test_painting_changes_nothing_outside_and_is_right_inside(tmp_path: Path) -> None:
    wanted = {
        plain_caption(scene): scene
        for index in range(2)
        for scene in [control.changed(scenes.sample(0, index, "held_out"), "colour", 2 * index)]
    }
    lines = control.measure(model_of(lambda prompt, *_: wanted[prompt]), tmp_path, "inpainting", SIDE, 2)
    assert lines == [{"outside unchanged": 1, "all right": 1}] * 2

    def careless(prompt: str, side: int, seed: int, **_: Any) -> np.ndarray:
        del prompt
        return render(scenes.sample(9, seed), side, side)

    worse = control.measure(careless, tmp_path / "other", "inpainting", SIDE, 2)
    assert worse == [{"outside unchanged": 0, "all right": 0}] * 2


def test_the_sheet_and_the_table_show_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(prompt: str, side: int, seed: int, **steering: Any) -> np.ndarray:
        del prompt
        if steering.get("strength") == 0.3:
            return steering["image"]
        return render(scenes.sample(0, seed, "held_out"), side, side)

    lines = control.measure(draw, tmp_path, "start", SIDE, 1)
    assert lines[0]["distance at 0.3"] == 0 < lines[0]["distance at 0.9"]
    assert lines[0]["all right at noise"] == 1 and lines[0]["all right at 0.3"] == 0
    file = tmp_path / "sheet.webp"
    options = [str(tmp_path), "--proof", "start", "--side", str(SIDE), "--count", "0", "--sheet", str(file)]
    assert control.main(options) == 0
    assert "| start-256 | distance at 0.3 | 1 | 0.000 |" in capsys.readouterr().out
    shown = Image.open(file)
    assert shown.width > 5 * 256 and shown.height < 400
    assert control.main([str(tmp_path / "none"), "--count", "0", "--sheet", str(file)]) == 2
    assert control.main([str(tmp_path), "--proof", "edges"]) == 2
    assert "needs a ControlNet" in capsys.readouterr().err


def test_drawing_larger_is_measured_beside_bicubic(tmp_path: Path) -> None:
    lines = control.measure(
        model_of(lambda prompt, seed, _: scenes.sample(0, seed, "held_out")), tmp_path, "upscale", 768, 1
    )
    (line,) = lines
    assert line["layout kept"] == 1 and line["edges"] > 3 * line["edges bicubic"]
    assert line["width"] < line["width bicubic"]
