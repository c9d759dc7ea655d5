"""The ablations' commands and their table."""

import json
from pathlib import Path

import pytest

from ultrapixel_jax.demo.measure import ablations, evaluate
from ultrapixel_jax.training import options

ROW = dict.fromkeys(ablations.COLUMNS, 0.5)


def test_every_variant_trains_another_model_and_is_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])  # the presets are found from there
    latents, output = Path("latents"), Path("out")
    runs, judged = {}, {}
    todo = ablations.recipe(
        latents, output, sources=[Path("a"), Path("b")], steps=7, batch_size=3, seeds=2, count=5,
        sizes=[(768, 768)], dtype="bfloat16",
    )  # fmt: skip
    for what, command in todo:
        if command[1] == "train.py":
            config = options.parse(command[2:])
            assert config.steps == 7 and config.output not in runs, what
            assert config.data.path == "latents" and config.sources == ("a", "b")
            assert config.data.batch_size == 3
            runs[config.output] = config
        else:
            o = evaluate.parser().parse_args(command[3:])
            assert str(o.checkpoint) in runs and o.preview and o.count == 5 and o.sizes == [(768, 768)]
            assert o.dtype == "bfloat16"
            judged[o.output] = o
    assert [config.seed for config in runs.values()] == [0] * 5 + [1] * 5
    assert len({config.model for config in runs.values()}) == 5
    assert list(judged) == [ablations.evaluation(output, v, s) for s in range(2) for v in ablations.VARIANTS]
    for seed in range(2):  # the same scenes and noise for all variants, others for the next seed
        scenes = {judged[ablations.evaluation(output, v, seed)].scene_seed for v in ablations.VARIANTS}
        assert scenes == {seed}
    off = judged[ablations.evaluation(output, "off", 1)]
    assert off.guidance == "off" and off.checkpoint == output / "full-1" / "run"


def test_the_table_has_mean_and_spread(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.7)):
        for name in ablations.VARIANTS:
            directory = ablations.evaluation(tmp_path, name, seed)
            directory.mkdir(parents=True)
            row = {**ROW, "size": [768, 768], "all": share if name == "full" else 0.2, "layout": None}
            (directory / "table.json").write_text(json.dumps({"rows": [row]}))
    lines = ablations.table(tmp_path, seeds=2, sizes=[(768, 768)]).splitlines()
    assert len(lines) == 2 + len(ablations.VARIANTS)
    full = lines[2].split(" | ")
    assert full[0] == "| 768×768" and full[7:9] == ["60.0 ± 14.1", "–"]
    assert "| 20.0 ± 0.0 | – |" in lines[3]
    assert len(ablations.table(tmp_path, 2, [(768, 768)], ["inr", "bilinear"]).splitlines()) == 4


def test_list_prints_the_commands_and_runs_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ablations.main([str(tmp_path / "latents"), str(tmp_path / "out"), "--list", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.count("train.py") == 5
    assert not list(tmp_path.iterdir())


def test_some_variants_and_other_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        str(tmp_path / "latents"),
        str(tmp_path / "out"),
        "--list",
        "--seeds",
        "2",
        "--sizes",
        "1152",
        "544x1088",
    ]
    assert ablations.main([*words, "--variants", "inr", "bilinear", "--drawing-steps", "9"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("train.py") == listed.count("--sizes 1152x1152 544x1088 --steps 9 ") == 4
    assert ablations.main([*words, "--variants", "off"]) == 2
    assert "add full" in capsys.readouterr().err
