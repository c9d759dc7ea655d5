"""The files in configs/launch/ are well formed; their and the manual's commands are ones of `train.py`."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.training.tiny_run import ROOT
from ultrapixel_jax.training.config import GuidanceTask
from ultrapixel_jax.training.options import dry_run_of, parse

FILES = sorted((ROOT / "configs" / "launch").iterdir())
SHELL = [path for path in FILES if path.suffix == ".sh"]


def arguments(command: str) -> list[str]:
    """What follows `train.py` in a shell command, as far as it goes; variables become their default, or some
    value."""
    preset = re.search(r"^preset=\$\{PRESET:-(.*)\}$", command, re.MULTILINE)
    command = command.replace("$preset", preset[1]) if preset else command
    command = re.sub(r"\\\n", " ", command).partition("train.py ")[2].partition("\n")[0]
    return [re.sub(r"\$\w+", "1000", word) for word in shlex.split(command) if word not in ("$@", "&")]


def commands() -> dict[str, list[str]]:
    out = {path.name: arguments(path.read_text()) for path in SHELL}
    job = yaml.safe_load((ROOT / "configs" / "launch" / "gke.yaml").read_text())
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    out["gke.yaml"] = arguments(pod["containers"][0]["command"][-1])
    return out


def test_every_file_is_tested() -> None:
    assert {path.name for path in FILES} == commands().keys() == {"slurm.sh", "tpu_pod.sh", "gke.yaml"}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("name", commands())
def test_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse(commands()[name])
    assert isinstance(config.task, GuidanceTask)
    assert config.machines.distributed
    assert config.output
    assert config.sources
    # 16 devices: each has its share of every part of a batch.
    assert config.data.batch_size // config.optimizer.accumulate % 16 == 0


MANUAL = (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("command", MANUAL.replace("\\\n", " ").split("python train.py")[1:])
def test_commands_of_the_manual(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = command.partition("\n")[0].partition("`")[0].partition("#")[0].split()
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code == 0
    else:
        assert parse(dry_run_of(words)[0]).output


def test_overrides_of_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = re.findall(r"^\| `(--.*?)` \|", MANUAL, re.MULTILINE)
    assert len(rows) == 9
    for row in rows:
        parse(["configs/train/guidance.py", "--data.path", "x", "--output", "y", *row.split()])


def test_hosts_and_chips_of_the_slice() -> None:
    job = yaml.safe_load((ROOT / "configs" / "launch" / "gke.yaml").read_text())
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert spec["parallelism"] == spec["completions"] == int(rows) * int(columns) / chips
