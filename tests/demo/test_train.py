"""The demo's recipe: each command is one that its program takes, and finds what earlier ones made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.__main__ import parser as convert_parser
from ultrapixel_jax.data import cache
from ultrapixel_jax.demo import train
from ultrapixel_jax.demo.world import build
from ultrapixel_jax.demo.world.words import words
from ultrapixel_jax.models import components
from ultrapixel_jax.training import options
from ultrapixel_jax.training.tasks import make_task

WORK, CHECKPOINT = Path("work"), Path("checkpoint")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.chdir(Path(__file__).parents[2])  # the presets are found from there
    return train.recipe(WORK, CHECKPOINT, seed=1)


def program_of(command: list[str]) -> tuple[str, list[str]]:
    return (command[2], command[3:]) if command[1] == "-m" else (command[1], command[2:])


def test_every_command_finds_what_it_needs(recipe: Iterator[tuple[str, list[str]]]) -> None:
    networks: dict[str, set[str]] = {}  # by run
    pictures, latents = set(), set()
    for what, command in recipe:
        program, words = program_of(command)
        if program == "train.py":
            config = options.parse(words)
            task = make_task(config)
            brought = set().union(*(networks[source] for source in config.sources))
            assert config.data.path in (latents if config.data.cached else pictures), what
            missing = set(task.frozen) - brought
            assert missing <= ({"clip_text"} if config.random_frozen else set()), what
            assert not config.start_from_sources or brought & set(task.trained), what
            networks[config.output] = brought | set(task.trained)
        elif program == "ultrapixel_jax.demo.world.words":
            networks[words[0]] = set()
        elif program == "ultrapixel_jax.demo.world.build":
            pictures.add(build.parser().parse_args(words).output)
        elif program == "ultrapixel_jax.data.cache":
            o = cache.parser().parse_args(words)
            brought = set().union(*(networks[source] for source in o.checkpoint))
            assert o.dataset in pictures and {"effnet_encoder", "clip_text"} - set(o.without) <= brought, what
            latents.add(o.output)
        else:
            assert program == "convert"
            o = convert_parser().parse_args(words)
            *sources, output = o.paths
            brought = set().union(*(networks[str(source)] for source in sources))
            assert output == CHECKPOINT
            assert set(o.component) <= brought & set(components.CONFIGS)


def test_a_trial_is_the_same_recipe_with_fewer_steps(recipe: Iterator[tuple[str, list[str]]]) -> None:
    trial = train.recipe(WORK, CHECKPOINT, seed=1, scale=0.002)
    for (what, whole), (same, short) in zip(recipe, trial, strict=True):
        assert what == same and program_of(whole)[0] == program_of(short)[0]
        if whole[1] != "train.py":
            continue
        before, after = options.parse(whole[2:]), options.parse(short[2:])
        assert 2 <= after.steps == max(2, round(0.002 * before.steps)), what
        assert after.optimizer.warmup_steps < after.steps
        assert (after.model, after.task, after.sources) == (before.model, before.task, before.sources)


@pytest.mark.parametrize("scale", ["0", "-1", "1.5", "nan", "much"])
def test_a_scale_that_is_none_is_refused(scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["work", "checkpoint", f"--scale={scale}"]) == 2
    assert "--scale" in capsys.readouterr().err


def test_list_prints_the_commands_and_runs_none(
    recipe: Iterator[tuple[str, list[str]]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train.main([str(tmp_path / "work"), str(tmp_path / "checkpoint"), "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"# {what}\n" in printed for what, _ in recipe)
    assert not list(tmp_path.iterdir())


def test_an_existing_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe
) -> None:
    assert train.main([str(tmp_path / "work"), str(tmp_path)]) == 2
    assert "exists; name a new directory" in capsys.readouterr().err


def test_what_its_runs_draw_is_of_its_world(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    known = set(words())
    for preset in sorted(root.glob("configs/demo/*.py")):
        config = options.parse([str(preset), "--output", "any", "--data.path", "any"])
        for prompt in config.pictures.prompts:
            assert set(prompt.split()) <= known, (preset.name, prompt)
