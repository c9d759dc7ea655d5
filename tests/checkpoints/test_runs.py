"""What a run has trained leaves it: to the released layout, to a checkpoint, to another run."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open

import convert.__main__ as convert
import sample
from configs.tiny import config as tiny
from convert.collect import trained_on
from tests.training.steps import config_of, with_
from ultrapixel_jax.checkpoints.checksum import checksum
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo, read_manifest, restore
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS, CONFIG, RUN_MANIFEST, RunWeights
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.checkpoints import RunCheckpoints
from ultrapixel_jax.training.config import (
    ControlNetTask,
    GuidanceTask,
    LoraTask,
    OptimizerConfig,
    StageBTask,
    StageCTask,
    TextTask,
)
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.tasks import make_task

SIZES = [(192, 384), (288, 288), (576, 576), (512, 640)]
"""Of a run's pictures, as its encoder sees them."""


def make_run(
    directory: Path, task: Any, *, steps: Sequence[int] = (3,), **changes: Any
) -> tuple[Path, dict[str, Any]]:
    """A run with checkpoints, in which average and parameters differ; the last one's average, unstacked."""
    config = with_(config_of(task), output=str(directory), **changes)
    config = with_(config, optimizer=OptimizerConfig(ema_decay=0.9))
    trainer = make_task(config)
    state = jax.jit(states.creator(trainer, make_optimizer(config.optimizer)))({})
    random = np.random.default_rng(0)
    checkpoints = RunCheckpoints(config.output, config.checkpoints)
    checkpoints.describe(config, SIZES)
    with checkpoints:
        for step in steps:
            state = state._replace(
                step=np.int32(step),
                params=jax.tree.map(
                    lambda x: random.standard_normal(x.shape).astype(np.float32), state.params
                ),
                ema=jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), state.ema),
            )
            checkpoints.save(jax.tree.map(jax.numpy.asarray, state), {"step": step}, wait=True)
    return directory, state.ema


@pytest.fixture(scope="module")
def guidance(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return make_run(tmp_path_factory.mktemp("guidance") / "run", GuidanceTask(), random_frozen=True)


def equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_export_goes_to_the_released_layout_and_back(guidance, tmp_path: Path) -> None:
    run, ema = guidance
    assert convert.main(["--export", str(run), str(tmp_path / "released")]) == 0
    file = tmp_path / "released" / "guidance.safetensors"
    arguments = [str(file), str(tmp_path / "back"), "--config", "configs/tiny.py"]
    assert convert.main(arguments) == 0
    equal(restore(tmp_path / "back", "guidance")["params"], ema["guidance"])


@pytest.mark.parametrize("kind", ["canny", "super_resolution"])
def test_a_controlnet_goes_to_the_released_layout_and_back(kind: Any, tmp_path: Path) -> None:
    """Under the name of its kind, its statistics too; as a source, it is found under that name."""
    config = dataclasses.replace(tiny.controlnet, kind=kind)
    model = dataclasses.replace(tiny, controlnet=config)
    run, ema = make_run(tmp_path / "run", ControlNetTask(backbone="nothing"), model=model)
    name = f"controlnet_{kind}"
    assert convert.main(["--export", str(run), str(tmp_path / "released")]) == 0
    assert convert.main([str(tmp_path / "released"), str(tmp_path / "back")]) == 0
    back = restore(tmp_path / "back", name)
    equal(back["params"], ema["controlnet"])
    of_run = Sources([run]).load("controlnet", config)
    equal(back, of_run)
    assert set(of_run) == ({"params", "batch_stats"} if kind == "canny" else {"params"})
    assert list(Sources([run]).entries) == [name]
    other = dataclasses.replace(config, kind="inpainting")
    assert Sources([run]).has("controlnet", config) and not Sources([run]).has("controlnet", other)


def test_one_of_several_checkpoints(tmp_path: Path, capsys) -> None:
    """RUN@STEP wherever a run is a source; another step is refused with those that there are."""
    run, newest = make_run(tmp_path / "run", TextTask(), steps=(3, 7))
    found = {
        step: RunWeights.open(f"{run}{step}").restore("clip_text")["params"] for step in ("", "@3", "@7")
    }
    equal(found["@7"], newest["clip_text"])
    equal(found[""], newest["clip_text"])
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (found["@3"], found["@7"]))))
    for source in (f"{run}@3", epath.Path(f"{run}@3")):
        equal(Sources([source]).load("clip_text", tiny.clip_text)["params"], found["@3"])
    assert len({Sources([f"{run}{at}"]).identity for at in ("@3", "@7")}) == 2
    assert Sources([f"{run}@7"]).identity == Sources([run]).identity

    for options, output in ((["--export"], "released"), ([], "gathered")):
        assert convert.main([*options, f"{run}@3", str(tmp_path / output)]) == 0
    equal(restore(tmp_path / "gathered", "clip_text")["params"], found["@3"])
    with safe_open(tmp_path / "released" / "clip_text.safetensors", "numpy") as file:
        exported = file.get_tensor("text_model.embeddings.position_embedding.weight")
    assert any(np.array_equal(exported, x) for x in jax.tree.leaves(found["@3"]))

    with pytest.raises(UserError, match=r"run .*/run has no checkpoint of step 5; it has those of 3, 7"):
        Sources([f"{run}@5"])
    capsys.readouterr()
    assert convert.main(["--export", f"{run}@5", str(tmp_path / "none")]) == 2
    assert sample.main(["--checkpoint", f"{run}@5", "--prompt", "x", "--output", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("no checkpoint of step 5; it has those of 3, 7") == 2
    with pytest.raises(
        UserError, match=r"caching needs clip_vision, .*; or do without: --without clip_vision$"
    ):
        Sources([run]).require(["clip_vision"], "caching", {"clip_vision": "--without clip_vision"})
    for name in ("run@here", "other@3"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            Sources([tmp_path / name])
    shutil.copytree(run, tmp_path / "run@3")  # a directory of that name is meant as it is
    equal(RunWeights.open(tmp_path / "run@3").restore("clip_text")["params"], newest["clip_text"])


def test_export_names_what_a_run_trains(guidance, tmp_path: Path, capsys) -> None:
    arguments = ["--export", str(guidance[0]), str(tmp_path / "released"), "--component", "stage_c"]
    assert convert.main(arguments) == 2
    assert "no component 'stage_c'; it has guidance" in capsys.readouterr().err
    assert not (tmp_path / "released").exists()


def test_runs_become_one_checkpoint(guidance, tmp_path: Path) -> None:
    stage_c, average = make_run(tmp_path / "stage_c", StageCTask(train_text_encoder=True), scanned=True)
    output = tmp_path / "checkpoint"
    options = ["--dtype", "bfloat16", "--compress"]
    assert convert.main([str(stage_c), str(guidance[0]), str(output), *options]) == 0
    sources = Sources([output])
    assert set(sources.entries) == {"stage_c", "clip_text", "guidance"}
    found = restore(output, "guidance")["params"]
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("bfloat16")}
    equal(found, jax.tree.map(lambda x: x.astype("bfloat16"), guidance[1]["guidance"]))
    text = restore(output, "clip_text", dtype=np.float32)["params"]
    equal(text, jax.tree.map(lambda x: x.astype("bfloat16").astype(np.float32), average["clip_text"]))
    assert (output / "tokenizer" / "vocab.json").is_file()


def test_mantissas_rounded_where_runs_are_gathered(guidance, tmp_path: Path, capsys) -> None:
    sizes = []
    for i, bits in enumerate(([], ["--mantissa-bits", "3"])):
        output = tmp_path / str(i)
        options = [str(guidance[0]), str(output), "--dtype", "bfloat16", "--compress", *bits]
        assert convert.main(options) == 0
        sizes.append(sum(p.stat().st_size for p in (output / "guidance").rglob("*") if p.is_file()))
    assert sizes[1] < sizes[0]
    exact = restore(tmp_path / "0", "guidance", dtype=np.float32)["params"]
    coarse = restore(tmp_path / "1", "guidance", dtype=np.float32)["params"]
    for found, wanted in zip(jax.tree.leaves(coarse), jax.tree.leaves(exact)):
        assert (np.abs(found - wanted) <= np.abs(wanted) / 2**4).all()
        assert (np.rint(np.frexp(found)[0] * 2**4) == np.frexp(found)[0] * 2**4).all()
    for options, message in (
        ([str(guidance[0]), str(tmp_path / "2"), "--mantissa-bits", "24"], "24 is outside 0 to 23"),
        (["--export", str(guidance[0]), str(tmp_path / "2"), "--mantissa-bits", "3"], "no effect on export"),
    ):
        assert convert.main(options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "2").exists()


def test_the_mean_of_what_several_sources_have(guidance, tmp_path: Path, capsys) -> None:
    """Of a run's guidance, and of a checkpoint's."""
    run = guidance[0]
    assert convert.main([str(run), str(tmp_path / "run")]) == 0
    info = read_manifest(tmp_path / "run").components["guidance"]
    own = jax.tree.map(np.asarray, restore(tmp_path / "run", "guidance"))
    moved = jax.tree.map(lambda x: x + np.asarray(0.25, x.dtype), own)
    less = {"params": dict(list(own["params"].items())[1:])}
    for name, arrays in (("moved", moved), ("less", less)):
        with CheckpointWriter(tmp_path / name) as writer:
            writer.add("guidance", arrays, info)
    paths = [str(run), str(tmp_path / "moved")]
    assert convert.main([*paths, str(tmp_path / "mean"), "--mean", "--component", "guidance"]) == 0
    assert "guidance from the mean of 2 sources" in capsys.readouterr().out
    mean = read_manifest(tmp_path / "mean").components["guidance"]
    assert mean.source == f"mean of {run.name}, {info.source}" and mean.config == info.config
    one, other, unknown = ({"trained_sides": s, "trained_ratio": r} for s, r in (
        ([384, 768], 2.0), ([362, 512], 1.0), (None, None)
    ))  # fmt: skip
    assert trained_on([one, other]) == {"trained_sides": [362, 768], "trained_ratio": 2.0}
    assert trained_on([one, unknown]) == unknown and trained_on([{}, {}]) == {}
    found = restore(tmp_path / "mean", "guidance")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y + 0.125, rtol=1e-6, atol=1e-6), found, own)
    assert convert.main([*paths, str(tmp_path / "last"), "--component", "guidance"]) == 0
    equal(restore(tmp_path / "last", "guidance"), moved)
    for words, message in (
        ([str(run), str(tmp_path / "less"), str(tmp_path / "no"), "--mean"], "guidance"),
        (["--export", str(run), str(tmp_path / "no"), "--mean"], "no effect on export"),
    ):
        assert convert.main(words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_a_checkpoint_of_runs_is_sampled_as_they_are(tmp_path: Path) -> None:
    model = config_of(StageCTask()).model
    sampling = DiffusionConfig(steps=3, schedule="stable_diffusion", shift=2.0)
    model = dataclasses.replace(model, sampling_b=sampling)
    run, _ = make_run(tmp_path / "run", StageCTask(), model=model)
    for source, output in ((run, tmp_path / "once"), (tmp_path / "once", tmp_path / "twice")):
        assert convert.main([str(source), str(output)]) == 0
        assert Sources([output]).sampling == {"sampling_c": model.sampling_c, "sampling_b": sampling}


def test_average_or_parameters(guidance) -> None:
    weights = RunWeights.open(guidance[0])
    equal(weights.restore("guidance")["params"], guidance[1]["guidance"])
    plain = weights.restore("guidance", ema=False)["params"]
    first = jax.tree.leaves(plain)[0]
    assert (np.asarray(first) != np.asarray(jax.tree.leaves(guidance[1])[0])).any()


def test_what_a_run_brings_along_replaces_nothing_that_a_source_itself_has(tmp_path: Path) -> None:
    older, _ = make_run(tmp_path / "older", StageCTask(train_text_encoder=True))
    newer, _ = make_run(tmp_path / "newer", StageCTask())
    brings, _ = make_run(tmp_path / "brings", GuidanceTask(), sources=(str(older),))

    def origins(*sources: Path) -> dict[str, str]:
        return {name: Path(entry.origin).name for name, entry in Sources(sources).entries.items()}

    assert origins(brings) == {"clip_text": "older", "stage_c": "older", "guidance": "brings"}
    expected = {"clip_text": "older", "stage_c": "newer", "guidance": "brings"}
    assert origins(newer, brings) == origins(brings, newer) == expected
    assert origins(newer, older)["stage_c"] == "older"  # of two that have it themselves, the later one


def rewritten(run: Path, **changes: Any) -> None:
    """As the same command with other settings leaves its configuration."""
    values = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps({**values, **changes}))


def test_a_run_that_is_moved_is_the_same(guidance, tmp_path: Path) -> None:
    before = Sources([guidance[0]]).identity
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(guidance[0], moved)
    rewritten(moved, output=str(moved), mesh={"data": 4}, log={"every": 1}, pictures={"every": 5}, steps=9)
    assert Sources([moved]).identity == before
    known = RunWeights.open(moved).manifest.model.guidance
    assert known is not None  # and no picture depends on it
    assert (known.trained_sides, known.trained_ratio) == ((362, 768), 2)
    (moved / RUN_MANIFEST).unlink()  # as one that was made before there were any
    assert Sources([moved]).identity == before
    assert Sources([moved], ema=False).identity != before
    position = moved / CHECKPOINTS / "3" / "data" / "metadata"
    saved = json.loads(position.read_text())
    saved["checksums"]["ema/guidance"] += 1
    position.write_text(json.dumps(saved))
    assert Sources([moved]).identity != before
    with pytest.raises(UserError, match=r"not the numbers that were saved.*remove checkpoints/3"):
        RunWeights.open(moved).restore("guidance")


@pytest.mark.parametrize("task", [StageBTask(), StageBTask(train_encoder=False), LoraTask(), TextTask()])
@pytest.mark.parametrize("scanned", [True, False])
def test_the_configuration_says_what_the_manifest_says(task: Any, scanned: bool, tmp_path: Path) -> None:
    config = config_of(task, output=str(tmp_path), scanned=scanned, sources=("a", "b"), random_frozen=scanned)
    checkpoints = RunCheckpoints(config.output, config.checkpoints)
    checkpoints.describe(config, SIZES)
    (tmp_path / CHECKPOINTS / "1" / "data").mkdir(parents=True)
    (tmp_path / CHECKPOINTS / "1" / "data" / "metadata").write_text("{}")
    new = RunWeights.open(tmp_path).manifest
    assert new.model == config.model and new.sources == ("a", "b")
    assert set(new.stacked) == set(make_task(config).trained)
    (tmp_path / RUN_MANIFEST).unlink()
    assert RunWeights.open(tmp_path).manifest == new
    for text in ('{"task_type": "Other", "scanned": true}', "[]", "{", '{"task_type": "LoraTask"}'):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            RunWeights.open(tmp_path)


def test_earlier_runs_have_checksums_of_what_all_networks_have_together(tmp_path: Path) -> None:
    run, average = make_run(tmp_path / "run", StageCTask(train_text_encoder=True))
    position = run / CHECKPOINTS / "3" / "data" / "metadata"
    sums = {"ema": int(checksum(jax.tree.map(jax.numpy.asarray, average))), "collections": 0}
    position.write_text(json.dumps({"checksums": sums}))
    equal(RunWeights.open(run).restore("clip_text")["params"], average["clip_text"])
    position.write_text(json.dumps({"checksums": {**sums, "ema": sums["ema"] ^ 1}}))
    with pytest.raises(UserError, match="ema are not the numbers"):
        RunWeights.open(run).restore("clip_text")


def test_gathering_keeps_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"params": {"a": {"kernel": np.ones((2, 3), np.float32)}}}
    aside = {"first": np.asarray(7)}
    config = dataclasses.asdict(tiny.controlnet)
    with CheckpointWriter(tmp_path / "released") as writer:
        writer.add("controlnet_canny", arrays, ComponentInfo(config, layout="released", kept_aside=aside))
        writer.add("of_later", arrays, ComponentInfo({"width": 3}))
    # A ControlNet has 54 million parameters in every configuration; this one is compared with fewer.
    shapes = {("controlnet", tiny.controlnet): arrays}
    monkeypatch.setattr(components, "abstract", lambda name, config: shapes[name, config])
    sources = Sources([tmp_path / "released"], traced=True)
    assert sources.entries["controlnet_canny"].config == tiny.controlnet
    assert convert.main([str(tmp_path / "released"), str(tmp_path / "gathered")]) == 0
    said = capsys.readouterr().out
    assert "of_later from" in said and said.count("no network here") == 1
    infos = read_manifest(tmp_path / "gathered").components
    assert set(infos) == {"controlnet_canny", "of_later"}
    assert infos["controlnet_canny"].layout == "released"
    assert infos["controlnet_canny"].kept_aside["first"] == 7
    equal(restore(tmp_path / "gathered", "of_later"), arrays)
