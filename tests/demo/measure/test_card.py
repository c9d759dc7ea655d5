"""The card's table is what the logs say."""

import json
from pathlib import Path

import pytest

from ultrapixel_jax.demo.measure import card
from ultrapixel_jax.training.config import StageCTask, TrainConfig, config_to_json


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 1 to 200, of which the last hundred were done twice."""
    from configs.demo.stage_c import config

    assert isinstance(config, TrainConfig) and isinstance(config.task, StageCTask)
    directory = tmp_path / "c1"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_to_json(config)))
    steps = [(100, 2.0, 0.5), (200, 1.0, 9.0), (200, 0.25, 1.5)]
    lines = [json.dumps({"step": s, "loss": loss, "step_seconds": t}) for s, loss, t in steps]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def test_a_row_is_what_the_log_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = card.row(run)
    assert (row["run"], row["task"], row["steps"], row["batch"]) == ("c1", "StageC", "200", "32")
    assert (row["images"], row["loss"]) == ("6,400", "2.0000 to 0.2500")
    assert row["hours"] == f"{(100 * 0.5 + 100 * 1.5) / 3600:.2f}"
    assert card.main([str(run), str(run)]) == 0
    assert capsys.readouterr().out.count("| c1 | StageC |") == 2


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.main([str(tmp_path)]) == 2
    (run / "metrics.jsonl").write_text("")
    assert card.main([str(run)]) == 2
    (run / "metrics.jsonl").write_text("{")
    assert card.main([str(run)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "has not logged a step" in errors[1]
