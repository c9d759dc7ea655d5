"""Evaluations: judged, resumed and tabled rightly, whatever draws the pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.tiny import config as tiny
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.demo.measure import evaluate as module
from ultrapixel_jax.demo.measure.detect import Found
from ultrapixel_jax.demo.measure.evaluate import (
    LINES,
    MARKDOWN,
    TABLE,
    Case,
    drawing,
    evaluate,
    low_bucket,
    main,
    parser,
)
from ultrapixel_jax.demo.measure.scores import Drawn, judge, markdown, row, same_contents, same_layout
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import pipeline
from ultrapixel_jax.sampling.pipeline import Cascade

SMALL = (256, 256)
CASES = [Case(SMALL, scene, number) for number in range(2) for scene in range(2)]


class Artist:
    """Draws every scene as it is told, but for those that it should get wrong."""

    def __init__(self, wrong: Sequence[int] = (), low: bool = True, stop: int = 10**9) -> None:
        self.wrong, self.low, self.stop = wrong, low, stop
        self.drawn: list[str] = []

    def __call__(self, cases: Sequence[Case], captions: Sequence[str]) -> list[Drawn]:
        out = []
        for case, caption in zip(cases, captions):
            if len(self.drawn) == self.stop:
                raise KeyboardInterrupt
            assert caption == plain_caption(scenes.sample(0, case.scene, "held_out"))
            self.drawn.append(case.name)
            shown = case.scene + 10 if case.scene in self.wrong else case.scene
            picture = render(scenes.sample(0, shown, "held_out"), *case.size)
            low = render(scenes.sample(0, case.scene, "held_out"), *SMALL) if self.low else None
            out.append(Drawn(picture, low, SMALL))
        return out


def run(artist: Artist, output: Path, cases: Sequence[Case] = CASES, **changes: Any) -> dict[str, Any]:
    changes = {"batch_size": 2, "quiet": True, **changes}
    return evaluate(artist, output, {"model": "artist"}, cases, **changes)


def test_right_pictures_score_full_marks_and_wrong_ones_do_not(tmp_path):
    good = run(Artist(), tmp_path / "good", CASES[:2])["rows"][0]
    assert good["pictures"] == 2 and good["size"] == [256, 256]
    for name in ("colour", "shape", "texture", "relation", "number", "all", "all_low", "layout", "contents"):
        assert good[name] == 1, name
    half = run(Artist(wrong=[1]), tmp_path / "half", CASES[:2])["rows"][0]
    assert half["all"] == half["contents"] == 0.5 and half["all_low"] == 1


def test_files_and_kept_pictures(tmp_path):
    table = run(Artist(), tmp_path / "out", pictures=1)
    assert json.loads((tmp_path / "out" / TABLE).read_text()) == table
    text = (tmp_path / "out" / MARKDOWN).read_text()
    assert text == markdown(table["rows"]) and "| 256×256 | 4 | 100.0 % |" in text
    lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    assert [line["name"] for line in lines] == [case.name for case in CASES]
    assert lines[0]["caption"] == plain_caption(scenes.sample(0, 0, "held_out"))
    kept = {file.name for file in (tmp_path / "out" / "pictures").iterdir()}
    assert kept == {f"256x256-00000-{n}{low}.png" for n in range(2) for low in ("", "-low")}
    picture = np.asarray(Image.open(tmp_path / "out" / "pictures" / "256x256-00000-0.png"))
    np.testing.assert_array_equal(picture, render(scenes.sample(0, 0, "held_out"), *SMALL))


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path):
    whole = run(Artist(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Artist(stop=3), tmp_path / "parts")
    lines = tmp_path / "parts" / LINES
    assert len(lines.read_text().splitlines()) == 2
    with lines.open("a") as file:  # killed within a line
        file.write('{"name": "256x256-000')
    artist = Artist()
    assert run(artist, tmp_path / "parts") == whole
    assert artist.drawn == [case.name for case in CASES[2:]]
    assert sorted(lines.read_text().splitlines()) == sorted(
        (tmp_path / "whole" / LINES).read_text().splitlines()
    )
    again = Artist()
    assert run(again, tmp_path / "parts") == whole and again.drawn == []


def test_more_cases_go_into_the_same_directory_and_other_settings_do_not(tmp_path):
    run(Artist(), tmp_path, CASES[:2])
    artist = Artist()
    rows = run(artist, tmp_path, [*CASES[:3], Case((256, 320), 0, 0)])["rows"]
    assert artist.drawn == [CASES[2].name, "256x320-00000-0"]
    assert [(r["size"], r["pictures"]) for r in rows] == [([256, 256], 3), ([256, 320], 1)]
    with pytest.raises(UserError, match="another scene_seed; give a new directory"):
        run(Artist(), tmp_path, scene_seed=1)
    with pytest.raises(UserError, match="another model"):
        evaluate(Artist(), tmp_path, {"model": "other"}, CASES, quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        run(Artist(), tmp_path / "mine")
    with pytest.raises(UserError, match="file"):
        run(Artist(), tmp_path / "mine" / "file")


def test_worker_processes_change_nothing(tmp_path):
    assert run(Artist(), tmp_path / "here", CASES[:2]) == run(
        Artist(), tmp_path / "there", CASES[:2], workers=1
    )


def test_without_a_low_resolution_pass_nothing_is_said_of_it(tmp_path):
    rows = run(Artist(low=False), tmp_path, [Case((512, 512), 0, 0)])["rows"]
    assert rows[0]["all"] == 1 and rows[0]["sharpness"]["edges"] > 5
    assert rows[0]["layout"] is rows[0]["all_low"] is rows[0]["sharpness_low"]["edges"] is None
    assert "| – | – | – |" in markdown(rows)


def test_sharpness_is_that_of_the_picture_against_the_enlarged_one():
    scene = scenes.sample(0, 0, "held_out")
    small, large = render(scene, *SMALL), render(scene, 512, 512)
    line = judge(scene, Drawn(large, small, SMALL))
    assert line["sharpness"]["edges"] > 2 * line["sharpness_low"]["edges"]
    assert line["sharpness"]["edges"] == pytest.approx(line["sharpness_drawn"]["edges"], rel=0.2)
    json.dumps(line, allow_nan=False)


def test_rows_are_means_over_what_is_known():
    nothing = {"edges": None, "textures": None, "width": None}
    line: dict[str, Any] = dict.fromkeys(("colour", "shape", "texture", "number", "all"), True)
    line |= {"sharpness": nothing, "sharpness_drawn": {**nothing, "edges": 2.0}}
    other = {**line, "all": False, "layout": True, "sharpness": {**nothing, "width": 3.0}}
    known = row([{**line, "relation": None}, {**other, "relation": False}])
    assert (known["relation"], known["all"], known["layout"]) == (0, 0.5, 1)
    assert known["sharpness"] == {**nothing, "width": 3} and known["sharpness_drawn"]["edges"] == 2
    assert row([{**line, "relation": None}])["relation"] is None


def test_layouts_and_contents():
    a = Found("red", "circle", "plain", 0.3, 0.5, 0.3)
    b = Found("blue", "star", "dots", 0.7, 0.5, 0.3)

    def other(**changes: Any) -> list[Found]:
        return [b, dataclasses.replace(a, **changes)]

    assert same_layout([a, b], other()) and same_contents([a, b], other())
    assert same_layout([a, b], other(x=0.34)) and not same_layout([a, b], other(x=0.36))
    assert same_layout([a, b], other(size=0.35)) and not same_layout([a, b], other(size=0.37))
    assert not same_layout([a, b], [a]) and not same_layout([], [a])
    assert not same_layout([a, b], other(outer=0))
    for changes in ({"colour": "green"}, {"shape": "heart"}, {"texture": "rings"}):
        assert same_layout([a, b], other(**changes)) and not same_contents([a, b], other(**changes))
    assert same_layout([], []) is None and same_contents([], []) is None


# ---------------------------------------------------------------------------- with a cascade

assert tiny.guidance is not None
GUIDED = dataclasses.replace(tiny, guidance=dataclasses.replace(tiny.guidance, lr_side=8))


def test_the_cascade_draws_batches_and_its_low_resolution_pass():
    cascade = Cascade.load(None, config=GUIDED)
    one, one_b = DiffusionConfig(steps=1), DiffusionConfig(steps=1, cfg=1.1)
    draw = drawing(cascade, stage_c=one, stage_b=one_b, lr_side=8, batch_size=2)
    cases, size = CASES[:2], (256, 264)
    first = draw([Case(size, c.scene, c.number) for c in cases], ["a red circle", "a blue star"])
    assert [pair.image.shape for pair in first] == [(*size, 3)] * 2
    low = low_bucket(*size, 8).pixels
    assert [pair.low.shape for pair in first if pair.low is not None] == [(*low, 3)] * 2
    # A batch that is not full, with the second case alone, in another place of it: the same picture from
    # the same programs, but for the rounding of products, which differs by place on some processors.
    (alone,) = draw([Case(size, cases[1].scene, cases[1].number)], ["a blue star"])
    assert np.abs(alone.image.astype(int) - first[1].image).max() <= 1
    assert alone.low is not None and first[1].low is not None
    assert np.abs(alone.low.astype(int) - first[1].low).max() <= 1
    assert alone.lr == low


class FakeCascade:
    """Stands for `Cascade` where only its configuration matters."""

    identity = "fake"
    loaded: list[Any]

    @classmethod
    def load(cls, checkpoint: Any, *, config: Any = None, **settings: Any) -> Any:
        cls.loaded.append((config, settings))
        return SimpleNamespace(config=config or GUIDED, identity="fake")


@pytest.fixture
def fake(monkeypatch):
    FakeCascade.loaded = []
    monkeypatch.setattr(pipeline, "Cascade", FakeCascade)
    monkeypatch.setattr("ultrapixel_jax.compilation.cache.use", lambda: Path("cache"))
    return FakeCascade


def options(*more: str) -> argparse.Namespace:
    return parser().read(["model", "out", "--sizes", "256", *more])


def test_options_become_the_cascades_configuration(fake):
    cascade, plain = module._load(options())
    assert cascade.config == GUIDED and plain["guidance"] == 0.05
    assert plain["stage_c"] == dataclasses.asdict(GUIDED.sampling_c)
    met = [plain]
    for value, expected in (("off", "off"), ("synchronized", "synchronized"), ("0.5", 0.5)):
        cascade, settings = module._load(options("--guidance", value))
        assert settings["guidance"] == expected
        assert fake.loaded[-1][0] == cascade.config
        assert getattr(cascade.config.guidance, "timestep", "off") == expected
        met.append(settings)
    cascade, settings = module._load(
        options(
            "--steps",
            "7",
            "--cfg",
            "2.5",
            "--steps-b",
            "3",
            "--cfg-b",
            "1",
            "--cfg-hr",
            "0.5",
            "--no-ema",
            "--dtype",
            "bf16",
        )
    )
    c, b = cascade.config.sampling_c, cascade.config.sampling_b
    assert (c.steps, c.cfg, c.cfg_hr, b.steps, b.cfg, b.cfg_hr) == (7, 2.5, 0.5, 3, 1.0, None)
    kept = {"executables": Path("cache/executables"), "memory": pipeline.Memory()}
    assert fake.loaded[-1][1] == {"dtype": "bfloat16", "ema": False, "preview": False, **kept}
    met += [settings, module._load(options("--preview"))[1]]
    assert fake.loaded[-1][1]["preview"]
    met.append(module._load(options("--int8"))[1])
    assert fake.loaded[-1][1]["memory"].int8
    assert len({json.dumps(s, sort_keys=True) for s in met}) == len(met)


def test_a_low_resolution_picture_that_is_too_small_is_refused(fake):
    with pytest.raises(UserError, match="256x1024: its low-resolution picture is too small"):
        module._load(parser().read(["model", "out", "--sizes", "256x1024"]))


def test_guidance_for_a_model_without_is_refused(fake, monkeypatch):
    unguided = SimpleNamespace(config=dataclasses.replace(GUIDED, guidance=None), identity="fake")
    monkeypatch.setattr(fake, "load", lambda *args, **settings: unguided)
    with pytest.raises(UserError, match="has no guidance"):
        module._load(options("--guidance", "0.5"))
    for arguments in ([], ["--guidance", "off"]):
        settings = module._load(parser().read(["model", "out", *arguments]))[1]
        assert (settings["guidance"], settings["lr_side"]) == ("off", 12)  # the demo's own


def test_command_line(fake, monkeypatch, tmp_path, capsys):
    artist = Artist()
    monkeypatch.setattr(module, "drawing", lambda *args, **settings: artist)
    line = ["model", str(tmp_path / "out"), "--count", "2", "--seeds", "2", "--sizes", "256", "256x256"]
    assert main([*line, "--workers", "0", "--quiet"]) == 0
    assert artist.drawn == [case.name for case in CASES]
    assert "| 256×256 | 4 | 100.0 % |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "12x"], "--sizes '12x'"),
        (["--sizes", "100"], "height 100"),
        (["--guidance", "2"], "--guidance 2 is outside 0 to 1"),
        (["--guidance", "on"], "--guidance 'on' is not a number"),
        (["--cfg", "nan"], "--cfg 'nan' is not a finite number"),
        (["--count", "0"], "--count 0"),
        (["--step", "3"], "did you mean '--steps'"),
        (["--dtype", "float16"], "float16 is not supported"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message, capsys):
    assert main(["model", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_seeds_differ_between_pictures_and_not_between_sizes():
    seeds = {Case(SMALL, scene, number).seed for scene in range(50) for number in range(3)}
    assert len(seeds) == 150
    assert Case(SMALL, 3, 1).seed == Case((512, 512), 3, 1).seed
