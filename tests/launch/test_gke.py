"""gke.yaml has no field that Kubernetes or JobSet does not know, and a pod that is stopped is no success."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.tiny_run import ROOT

FILE = ROOT / "configs" / "launch" / "gke.yaml"
POD = {
    "metadata": {"annotations": {str: str}},
    "spec": {
        "restartPolicy": str, "terminationGracePeriodSeconds": int, "serviceAccountName": str,
        "nodeSelector": {str: str},
        "containers": [{
            "name": str, "image": str, "workingDir": str, "command": [str],
            "env": [{"name": str, "value": str}],
            "ports": [{"containerPort": int}],
            "resources": {"requests": {str: int}, "limits": {str: int}},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }],
        "volumes": [{"name": str, "csi": {"driver": str, "volumeAttributes": {str: str}}}],
    },
}  # fmt: skip
RULE = {
    "action": ("FailJob", "FailIndex", "Ignore", "Count"),
    "onExitCodes": {"containerName": str, "operator": ("In", "NotIn"), "values": [int]},
    "onPodConditions": [{"type": ("DisruptionTarget",), "status": ("True", "False", "Unknown")}],
}
JOB = {
    "spec": {
        "parallelism": int, "completions": int, "backoffLimit": int, "podFailurePolicy": {"rules": [RULE]},
        "template": POD,
    },
}  # fmt: skip
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {"name": str, "annotations": {str: str}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{
                "name": str,
                "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                "onJobFailureReasons": [("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                                         "MaxFailedIndexesExceeded", "PodFailurePolicy")],
            }],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": JOB}],
    },
}  # fmt: skip
"""What the file may hold, of Kubernetes 1.31 (batch/v1) and JobSet v1alpha2, as their references say: the
kind of a value, the values of an enumeration, the fields of an object, what a list is made of."""


def problems(value: Any, schema: Any, path: str = "") -> list[str]:
    """Where `value` is not as `schema` says."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path} is no object"]
        found = []
        for key, inner in value.items():
            known = schema.get(key, schema.get(str))
            found += problems(inner, known, f"{path}.{key}") if known else [f"{path}.{key} is not known"]
        return found
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [p for i, inner in enumerate(value) for p in problems(inner, schema[0], f"{path}[{i}]")]
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{path} is {value!r}"]
    return [] if type(value) is schema else [f"{path} is {value!r}"]


def job_set() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_fields() -> None:
    assert problems(job_set(), JOBSET) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicies"), {}),
        (("spec", "failurePolicy", "maxRestarts"), "10"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "action"), "Fail"),
        (("spec", "replicatedJobs", 0, "template", "spec", "restartPolicy"), "Never"),
    ],
)
def test_other_fields_would_be_seen(path: tuple[Any, ...], value: Any) -> None:
    job = inner = job_set()
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert len(problems(job, JOBSET)) == 1


def test_what_belongs_together() -> None:
    """As the API server asks: pod failure policies need pods that are not restarted, names that are there."""
    spec = job_set()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    names = {container["name"] for container in pod["containers"]}
    codes = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert all(code["containerName"] in names and 0 not in code["values"] for code in codes)
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {
        mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
    } == volumes
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]


PYTHON = """#!/bin/bash
trap 'echo heard >> "$HERE/said"; exit ${STOPPED:-0}' TERM
echo "$*" > "$HERE/said"
if [ -n "${WAIT-}" ]; then for _ in $(seq 200); do sleep 0.05; done; fi
exit $CODE
"""


@pytest.mark.parametrize(
    ("code", "done", "term", "expected"),
    [
        (0, True, False, 0),
        (0, False, False, 75),  # stopped by another pod's signal
        (0, False, True, 75),
        (0, True, True, 0),  # the signal came after the last step
        (2, False, False, 2),
        (1, True, False, 1),
        (134, False, False, 134),
    ],
)
def test_exit_code_of_a_pod(code: int, done: bool, term: bool, expected: int, tmp_path: Path) -> None:
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "run").mkdir()
    lines = [f'{{"step": {step}, "loss": 0.5}}\n' for step in (10, 150, 15001, *([15000] if done else []))]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    container = job_set()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
        0
    ]
    command = [word.replace("/bucket/run", str(tmp_path / "run")) for word in container["command"]]
    variables = {e["name"]: e["value"] for e in container["env"]}
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HERE": str(tmp_path), "CODE": str(code)}
    process = subprocess.Popen(command, env={**os.environ, **variables, **({"WAIT": "1"} if term else {})})
    if term:
        while not (tmp_path / "said").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == expected
    said = (tmp_path / "said").read_text()
    assert "--steps 15000" in said
    assert ("heard" in said) == term
