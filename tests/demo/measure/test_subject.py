"""The new object: its template against correlation by hand, on drawings of it and of others, and going on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.demo.measure import subject as measure
from ultrapixel_jax.demo.measure.proofs import measured
from ultrapixel_jax.demo.world import scenes, subject
from ultrapixel_jax.demo.world.render import render

SIDE = 256


def test_correlation_is_that_of_numpy_at_every_place() -> None:
    rng = np.random.default_rng(0)
    plane, template = rng.standard_normal((12, 14)), rng.standard_normal((5, 5))
    within = rng.random((5, 5)) < 0.7
    found = measure._correlation(plane, template, within.astype(float))
    for y, x in ((2, 2), (6, 9), (9, 11)):
        part = plane[y - 2 : y + 3, x - 2 : x + 3]
        np.testing.assert_allclose(found[y, x], np.corrcoef(part[within], template[within])[0, 1], atol=1e-9)


def test_found_in_its_own_drawings_and_in_no_others() -> None:
    for index in (0, 1):
        values = measure.of_template(measure.no_model, index, SIDE).values
        assert {name for name, value in values.items() if value} == {"found, drawn", "found, blurred"}
        assert len(values) == 6


def test_a_model_that_learnt_it_draws_it_with_the_lora_alone(tmp_path: Path) -> None:
    asked: list[tuple[str, int, bool]] = []

    def draw(prompt: str, side: int, seed: int, used: bool) -> np.ndarray:
        asked.append((prompt, seed, used))
        scene = subject.sample(measure.SEED, seed)
        return subject.draw(scene, side) if used else render(scene, side, side)

    def run(count: int) -> list[dict[str, float]]:
        return measured(lambda n: measure.of_subject(draw, n, SIDE), tmp_path, "subject", count, 1)

    lines = run(2)
    assert [(line["found"], line["found without"]) for line in lines] == [(1, 0)] * 2
    assert "beside it right" not in lines[0] and lines[1]["beside it right"] == 1
    assert asked[0] == ("a [subject] on a textured beige background", 0, True) and not asked[1][2]
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [
        f"subject-000-{n}.png" for n in range(3)
    ]
    del asked[:]
    assert run(3)[:2] == lines and {seed for _, seed, _ in asked} == {2}

    def base(prompt: str, side: int, seed: int, used: bool) -> np.ndarray:
        del prompt
        return render(scenes.sample(0 if used else 5, seed, "held_out"), side, side)

    assert measure.of_base(base, 0, SIDE).values == {"all right": 1, "all right without": 0}


def test_pictures_and_captions_to_learn_it_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert subject.main([str(tmp_path), "--count", "2", "--side", "128"]) == 0
    scene = subject.sample(subject.SEED, 1)
    o, beside = scene.objects[0], scene.objects[1]
    drawn = np.asarray(Image.open(tmp_path / "001.png")).astype(int)
    words = (tmp_path / "001.txt").read_text().strip()
    assert words == f"a [subject] {scene.relation} a striped {beside.colour} {beside.shape}"

    def at(x: float, y: float) -> np.ndarray:
        return drawn[int((o.y + y * o.size) * 128), int((o.x + x * o.size) * 128)]

    for x, name in ((-0.31, "pink"), (0.31, "green")):  # the legs; between them the background
        assert np.abs(at(x, 0.2) - scenes.COLOURS[name]).max() <= 1
    assert np.ptp(at(0, 0.2)) < 40 and at(0, 0.2).min() > 150
    assert measure.main([str(tmp_path / "out"), "--count", "1"]) == 2
    assert "need --lora" in capsys.readouterr().err
    assert measure.main([str(tmp_path / "out"), "--proof", "template", "--count", "1", "--side", "256"]) == 0
    assert "| template-256 | found, drawn | 1 | 1.000 |" in capsys.readouterr().out
