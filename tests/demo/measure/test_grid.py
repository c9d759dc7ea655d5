"""The grid of areas and shapes: its sizes, its table and its plot."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.demo.measure import grid


def test_sizes_have_the_area_and_the_shape():
    for area in grid.AREAS:
        for text in grid.RATIOS:
            ratio = Fraction(text)
            height, width = grid.size_of(area, ratio)
            assert height % 8 == width % 8 == 0
            assert math.isclose(height * width, area * 384**2, rel_tol=0.03)
            assert math.isclose(height / width, ratio, rel_tol=0.03)
    assert grid.size_of(4.0, Fraction(1, 1)) == (768, 768)
    of_grid = {grid.size_of(area, Fraction(ratio)) for area in grid.AREAS for ratio in grid.RATIOS}
    assert set(grid.TRAINED) < of_grid


def test_one_command_makes_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    asked = []

    def draws(commands, *, only_list):
        for _, words in commands:
            asked.append(words[2:])
            off = "off" in words
            sizes = [word for word in words if "x" in word and word[0].isdigit()]
            rows = [
                {
                    "size": [int(s) for s in size.split("x")],
                    "all": 0.9 - off / 2,
                    "layout": None if off else 0.75,
                }
                for size in sizes
            ]
            directory = Path(words[4])
            directory.mkdir(parents=True, exist_ok=True)
            (directory / grid.TABLE).write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(grid, "follow", draws)
    out = tmp_path / "out"
    words = ["DEMO", str(out), "--areas", "1", "4", "--ratios", "1/1", "1/2", "--trained", "384", "768"]
    assert grid.main([*words, "--count", "7"]) == 0
    table = (out / "grid.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    assert (
        "| 4 | 768² | 7 | on | **90, 75** | 90, 75 |" in table
        and "| 1 | 384² | 7 | off | **40, –** | 40, – |" in table
    )
    assert [words[1:3] for words in asked] == [["DEMO", str(out / "on")], ["DEMO", str(out / "off")]]
    assert asked[1][-2:] == ["--guidance", "off"] and "544x1088" in asked[0]
    picture = np.asarray(Image.open(out / "grid.png").convert("RGB"))
    assert grid.main([*words, "--count", "7", "--guidance", "off"]) == 0  # its lines are named, too
    assert not np.array_equal(np.asarray(Image.open(out / "grid.png").convert("RGB")), picture)
    assert picture.shape[1] > 2 * picture.shape[0] and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_areas_can_have_captions_of_their_own(tmp_path: Path, capsys):
    words = ["DEMO", str(tmp_path / "out"), "--list", "--guidance", "on", "--ratios", "1/1"]
    words += ["--areas", "1", "2", "4"]
    assert grid.main([*words, "--count", "9", "3", "9"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "demo.measure.evaluate" in line]
    same, other = listed
    assert "--count 9 " in same and same.endswith("--sizes 384x384 768x768")
    assert "--count 3 " in other and other.endswith("--sizes 544x544")
    assert grid.main([*words, "--count", "9", "3"]) == 2
    assert "--count has 2 numbers for 3 areas; give one, or one for each" in capsys.readouterr().err


def test_guidance_and_steps_can_be_chosen(tmp_path: Path, capsys):
    words = ["DEMO", str(tmp_path / "out"), "--list", "--guidance", "on", "--steps", "9", "--steps-b", "2"]
    assert grid.main([*words, "--dtype", "bfloat16"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("demo.measure.evaluate") == 1 and " --guidance" not in listed
    assert "--dtype bfloat16 --steps 9 --steps-b 2 --sizes 384x384 " in listed


def test_a_size_that_cannot_be_made_is_refused_before_anything_is_drawn(tmp_path: Path, capsys):
    assert grid.main(["DEMO", str(tmp_path / "out"), "--areas", "0.1"]) == 2
    assert "outside 256 to 8192 pixels" in capsys.readouterr().err and not (tmp_path / "out").exists()
