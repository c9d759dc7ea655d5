"""`--dry-run` reckons as arithmetic does, refuses what a run would refuse, and writes nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from tests.training.tiny_run import PRESETS, STAGE_C
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import device_bytes
from ultrapixel_jax.training import dry_run as module
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import GuidanceTask, OptimizerConfig, TrainConfig, ValidationConfig
from ultrapixel_jax.training.dry_run import dry_run
from ultrapixel_jax.training.options import dry_run_of
from ultrapixel_jax.training.tasks import make_task


def test_it_says_what_would_run_and_leaves_nothing(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.path", str(latents), "--output", str(tmp_path / "run"), "--mesh.data", "1"]
    options += ["--mesh.fsdp", "2", "--mesh.tensor", "4", "--validation.share", "0.2", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    assert train.main([str(STAGE_C), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "8 x cpu, fsdp=2, tensor=4; 1 process(es)"
    assert lines[3] == "6 more are held out, of which 6 are validated on"
    assert lines[-1] == f"would train 20 steps into {tmp_path / 'run'}, with a checkpoint every 1"
    assert sorted(tmp_path.rglob("*")) == before

    assert dry_run_of(["a", "--dry-run", "compile", "--b"]) == (["a", "--b"], "compile")
    assert dry_run_of(["a", "--dry-run=compile"]) == (["a"], "compile")
    assert dry_run_of(["compile", "--dry-run", "--b", "compile"]) == (["compile", "--b", "compile"], "")


def config_of(name: str, latents: Path, output: Path) -> TrainConfig:
    from ultrapixel_jax.config import load_config

    preset = load_config(PRESETS / f"{name}.py", TrainConfig)
    return dataclasses.replace(
        preset, data=dataclasses.replace(preset.data, path=str(latents)), output=str(output)
    )


def test_whose_weights_a_run_takes_is_said(latents: Path, tmp_path: Path) -> None:
    """Of several sources with one network, the last counts, which nobody sees from the command alone."""
    config = config_of("guidance", latents, tmp_path / "run")
    config = dataclasses.replace(config, start_from_sources=True)
    sources = Sources(())
    sources.fill_with_random(config.model, 0)
    for name, origin in (("stage_c", "NEW"), ("guidance", "OLD")):
        entry = dataclasses.replace(sources.entries["stage_c"], origin=origin)
        sources.entries[name] = dataclasses.replace(entry, config=getattr(config.model, name))
    task = make_task(config)
    assert task.frozen[0] == "stage_c"
    said = states.origins(task, sources, fresh=True)
    assert said.startswith("stage_c from NEW") and said.endswith("guidance, to begin with, from OLD")
    assert "OLD" not in states.origins(task, sources, fresh=False)
    eight = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    line = next(line for line in dry_run(eight) if line.startswith("weights: "))
    assert line.startswith("weights: stage_c from random numbers")


def test_memory_of_a_sharded_state(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes by the arrays that are really on a device, of everything that a run holds."""
    from ultrapixel_jax.training.tasks import make_task

    config = config_of("guidance", latents, tmp_path / "run")
    assert isinstance(config.task, GuidanceTask)
    config = dataclasses.replace(
        config, mesh=dataclasses.replace(config.mesh, data=2, fsdp=4),
        optimizer=OptimizerConfig(ema_decay=0.9),
        data=dataclasses.replace(config.data, batch_size=8), scanned=True, dtype="bfloat16",
    )  # fmt: skip
    mesh = jax.make_mesh((2, 4, 1, 1), ("data", "fsdp", "tensor", "rows"))
    task = make_task(config)
    like = states.abstract(task, "stage_c", mesh, states.frozen_dtype(task, "stage_c"))
    arrays = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), like)
    held = sum(
        shard.data.nbytes
        for x in jax.tree.leaves(arrays)
        for shard in x.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert device_bytes(like) == held < sum(x.nbytes for x in jax.tree.leaves(arrays))
    assert {x.dtype for x in jax.tree.leaves(like)} == {np.dtype("bfloat16")}

    said: dict[str, int] = {}
    monkeypatch.setattr(module, "memory_line", lambda sizes: said.update(sizes) or "")
    dry_run(config)
    trained = said["trained parameters"]
    assert said["moving average"] == trained
    assert 2 * trained <= said["optimizer"] <= 2 * trained + 64, "two moments and a few counters"
    assert said["frozen networks"] == held
    examples = 8 // 8  # of a batch, on each device
    lr, text = math.prod((4, 7)), 3 * config.model.stage_c.c_clip_text
    values = (4 * 6 + lr) * config.model.stage_c.c_latent + text
    values += config.model.stage_c.c_clip_text_pooled + config.model.stage_c.c_clip_img
    assert said["a batch of the largest bucket"] == 2 * examples * values

    monkeypatch.setattr(module, "device_memory", lambda: (0, sum(said.values()) - 1))
    with pytest.raises(UserError, match=r"takes .* on each device, which has .*--mesh\.fsdp"):
        dry_run(config)
    assert not (tmp_path / "run").exists()


def test_it_refuses_what_a_run_refuses(refusal: Callable[..., str], latents: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "run", "--mesh.data", "1", "--mesh.tensor", "8", "--dry-run")
    rest = (STAGE_C, "--data.path", latents, *output)
    assert "does not exist" in refusal(STAGE_C, "--data.path", tmp_path / "none", *output)
    assert "does not exist" in refusal(*rest, "--sources", tmp_path / "none")
    assert "needs 64 devices" in refusal(*rest, "--mesh.data", "8")
    assert "holds out none" in refusal(*rest, "--validation.share", "1e-9")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "holiday.txt").touch()
    assert "is not empty and no run" in refusal(*rest)
    assert ValidationConfig().share == 0
