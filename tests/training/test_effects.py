"""What `train.py` was given and does not use, it says."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import train
from tests.training.tiny_run import STAGE_C
from ultrapixel_jax.config import CascadeConfig, load_config
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training.effects import RULES, without_effect
from ultrapixel_jax.training.options import _options, given

P2 = cfg.DiffusionTraining(loss_weight="p2")
CACHED = {"data": DataConfig(cached=True, path="gs://bucket/data")}
WITH_ENCODER = cfg.PreviewerTask(train_encoder=True, outlier_weight=1.0)
CASES: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("data.areas", CACHED, {}),
    ("data.lr-resize", CACHED, {}),
    ("data.no-cached_text", {}, CACHED),
    ("data.prior-share", {}, {"data": DataConfig(prior="other")}),
    ("data.cache-dir", {"data": DataConfig(path="data")}, CACHED),
    ("data.lr-latent", {"task": cfg.LoraTask()}, {}),
    ("data.caption-dropout", {"task": cfg.StageATask()}, {"task": cfg.StageBTask()}),
    ("data.image-vector-probability", {"task": cfg.TextTask()}, {"task": cfg.StageCTask()}),
    ("optimizer.final-fraction", {}, {"optimizer": cfg.OptimizerConfig(schedule="cosine")}),
    ("task.diffusion.adaptive-buckets", {"task": cfg.GuidanceTask(P2)}, {}),
    ("task.outlier-weight", {"task": cfg.PreviewerTask()}, {"task": WITH_ENCODER}),
    ("task.outlier-limit", {"task": cfg.PreviewerTask(train_encoder=True)}, {"task": WITH_ENCODER}),
    ("pictures.preview", {}, {"pictures": cfg.PicturesConfig(every=5)}),
    ("model.sampling-c.steps", {}, {"pictures": cfg.PicturesConfig(every=5)}),
    (
        "pictures.size",
        {"task": cfg.StageATask(), "pictures": cfg.PicturesConfig(every=5)},
        {"pictures": cfg.PicturesConfig(every=5)},
    ),
    ("validation.examples", {}, {"validation": cfg.ValidationConfig(share=0.1)}),
    ("machines.patience", {}, {"machines": cfg.MachinesConfig(distributed=True)}),
    ("start-from-sources", {"start_from_sources": True}, {"start_from_sources": True, "sources": ("a",)}),
]
"""An option, a configuration in which it has no effect, and one in which it has."""


@pytest.mark.parametrize(("name", "ignored", "used"), CASES)
def test_an_option_without_effect_is_named(name: str, ignored: dict[str, Any], used: dict[str, Any]) -> None:
    base = cfg.TrainConfig(cfg.GuidanceTask(), CascadeConfig())
    assert not without_effect([name, "steps"], dataclasses.replace(base, **used))
    (line,) = without_effect([name, "steps"], dataclasses.replace(base, **ignored))
    assert line.startswith(f"{name} without effect: ") and "\n" not in line


def test_every_rule_is_of_options_that_there_are() -> None:
    known = set()
    for path in sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.py")):
        known |= {option[2:] for option in _options(load_config(path, cfg.TrainConfig))}
    for rule in RULES:
        for pattern in rule.names:
            assert fnmatch.filter(known, pattern), pattern
            cases = (name.replace("no-", "").replace("_", "-") for name, *_ in CASES)
            assert any(fnmatch.fnmatch(name, other) for name in cases for other in rule.names), rule


def test_a_command_says_it(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.path", str(latents), "--output", str(tmp_path / "run"), "--dry-run"]
    options += [
        "--mesh.data",
        "1",
        "--mesh.fsdp",
        "4",
        "--mesh.tensor",
        "2",
        "--data.areas",
        "512",
        "--validation.every=7",
    ]
    assert given(["preset.py", *options])[-2:] == ["data.areas", "validation.every"]
    assert train.main([str(STAGE_C), *options]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "note: data.areas without effect: cached latents have their sizes",
        "note: validation.every without effect: nothing is held out (validation.share)",
    ]
