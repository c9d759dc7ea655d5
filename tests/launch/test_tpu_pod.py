"""tpu_pod.sh against a `gcloud` that answers what the test wants, and hosts that are a directory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from tests.training.tiny_run import ROOT

FAKES = {
    # States are answered in turn, the last for ever; "NOT_FOUND" and "TIMEOUT" are errors.
    "gcloud": r"""
echo "$*" | head -n 1 >> "$FAKE/called"
case $* in
    *"queued-resources describe"*"format=yaml"*) echo "code: QUOTA" ;;
    *"queued-resources describe"*)
        state=$(head -n 1 "$FAKE/states")
        [ "$(wc -l < "$FAKE/states")" = 1 ] || sed -i 1d "$FAKE/states"
        case $state in NOT_FOUND|TIMEOUT) echo "ERROR: $state" >&2; exit 1 ;; esac
        echo "$state" ;;
    *"tpu-vm ssh"*) all=$*; cd "$FAKE/host" && bash -c "${all#*--command=}" ;;
    *"storage cp"*) mkdir "${*: -1}" && touch "${*: -1}/whole" && test ! -e "$FAKE/broken" ;;
esac
""",
    "git": 'mkdir "$3" && touch "$3/whole" && test "$1" = clone\n',
    "python3": 'mkdir -p .venv/bin && cp "$FAKE/bin/python" "$FAKE/bin/pip" .venv/bin\n',
    "pip": "touch .venv/whole\n",
    "python": 'echo "$*" > trained\n',
    "sleep": 'echo "sleep $1" >> "$FAKE/called"\n',
}


@dataclasses.dataclass
class Pod:
    """Where the script runs."""

    directory: Path

    def run(self, *states: str) -> tuple[int, str]:
        """Exit code and what it said."""
        (self.directory / "states").write_text("".join(f"{state}\n" for state in states))
        (self.directory / "called").write_text("")
        variables = {"PROJECT": "p", "ZONE": "z", "REPOSITORY": "https://r", "CHECKPOINT": "gs://c",
                     "DATA": "gs://d", "RUN": "gs://r", "FAKE": str(self.directory)}  # fmt: skip
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", ROOT / "configs" / "launch" / "tpu_pod.sh"], capture_output=True, text=True, timeout=100,
            env={**os.environ, **variables, "PATH": path}, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    def called(self) -> list[str]:
        """What was asked of gcloud, without its options, and how often was waited."""
        lines = (self.directory / "called").read_text().splitlines()
        lines = [line.removeprefix("compute tpus ").removeprefix("queued-resources ") for line in lines]
        return [" ".join(line.split()[:2]) for line in lines]

    @property
    def host(self) -> Path:
        return self.directory / "host" / "ultrapixel"


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    (tmp_path / "bin").mkdir()
    (tmp_path / "host").mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\nset -eu\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    return Pod(tmp_path)


LOOK, WAIT, GO = "describe ultrapixel", "sleep 60", "tpu-vm ssh"


def test_a_slice_that_is_there_trains(pod: Pod) -> None:
    assert pod.run("ACTIVE") == (0, "queued resource ultrapixel: ACTIVE\n")
    assert pod.called() == [LOOK, GO, "storage cp"]
    assert "--sources checkpoint --data.path gs://d --output gs://r" in (pod.host / "trained").read_text()
    assert pod.run("ACTIVE")[0] == 0
    assert pod.called() == [LOOK, GO], "what is there is not copied again"


def test_a_slice_is_made_and_waited_for(pod: Pod) -> None:
    waits = ("ACCEPTED", "WAITING_FOR_RESOURCES", "CREATING", "PROVISIONING")
    code, said = pod.run("NOT_FOUND", *waits, "PROVISIONING", "ACTIVE")
    assert code == 0
    assert said.splitlines() == [f"queued resource ultrapixel: {s}" for s in ("ABSENT", *waits, "ACTIVE")]
    assert pod.called()[:3] == [LOOK, "create ultrapixel", LOOK]
    assert pod.called().count(WAIT) == 5
    assert pod.called().count("create ultrapixel") == 1


@pytest.mark.parametrize("before", [("SUSPENDED",), ("SUSPENDING", "SUSPENDED", "DELETING")])
def test_a_slice_that_was_taken_away_is_made_again(before: tuple[str, ...], pod: Pod) -> None:
    code, _ = pod.run(*before, "NOT_FOUND", "PROVISIONING", "ACTIVE")
    assert code == 0
    asked = [line for line in pod.called() if line not in (LOOK, WAIT)]
    assert asked[:3] == ["delete ultrapixel", "create ultrapixel", GO]


def test_a_slice_that_failed_ends_with_the_reason(pod: Pod) -> None:
    code, said = pod.run("PROVISIONING", "FAILED")
    assert code == 1
    assert "code: QUOTA" in said
    assert said.splitlines()[-1].startswith("error: no slice came; when the reason is mended: gcloud ")
    assert GO not in pod.called()


def test_answers_that_do_not_come(pod: Pod) -> None:
    code, said = pod.run("TIMEOUT", "TIMEOUT", "ACTIVE")
    assert code == 0
    assert "ERROR: TIMEOUT" in said
    code, _ = pod.run("TIMEOUT")
    assert code == 1, "not for ever"
    assert pod.called().count(LOOK) == 10


def test_what_is_half_made_is_made_again(pod: Pod) -> None:
    """Killed while it cloned, installed or copied, by name of what it leaves."""
    (pod.directory / "broken").touch()
    assert pod.run("ACTIVE")[0] != 0
    assert not (pod.host / "checkpoint").exists()
    (pod.directory / "broken").unlink()
    (pod.host / ".venv" / "installed").unlink()
    (pod.host / ".venv" / "half").touch()
    assert pod.run("ACTIVE")[0] == 0
    assert (pod.host / "checkpoint" / "whole").exists()
    assert not (pod.host / ".venv" / "half").exists()
    (pod.directory / "host" / "ultrapixel.partial").mkdir()
    pod.host.rename(pod.directory / "host" / "away")
    assert pod.run("ACTIVE")[0] == 0
    assert (pod.host / "whole").exists()
