"""The script for the minutes on a GPU, and what reads the profiler's trace."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

from benchmarks import profiling

ROOT = Path(__file__).resolve().parent.parent


def trace(*events: dict) -> dict:
    names = [
        {"name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "Stream #13(Compute)"}},
        {"name": "thread_name", "pid": 1, "tid": 8, "args": {"name": "XLA Modules"}},
        {"name": "thread_name", "pid": 2, "tid": 9, "args": {"name": "tf_XLAEigen/1"}},
    ]
    return {"traceEvents": [*names, *events]}


def test_kernels_of_a_trace_are_summed_up():
    gemm = {"ph": "X", "pid": 1, "tid": 7, "name": "gemm", "dur": 1500}
    fusion = {"ph": "X", "pid": 1, "tid": 7, "name": "fusion_2", "dur": 250}
    module = {"ph": "X", "pid": 1, "tid": 8, "name": "jit_run", "dur": 9999}
    host = {"ph": "X", "pid": 2, "tid": 9, "name": "dot.1", "dur": 777, "args": {"hlo_op": "dot.1"}}
    rows = profiling.longest(trace(gemm, gemm, fusion, fusion, module, host), runs=2)
    assert rows == [
        {"kernel": "gemm", "ms": 1.5, "share": 3000 / 3500, "times": 1.0},
        {"kernel": "fusion_2", "ms": 0.25, "share": 500 / 3500, "times": 1.0},
    ]
    around = {**host, "name": "while.3", "dur": 900, "args": {"hlo_op": "while.3"}}
    without = trace(host, around, {"ph": "X", "pid": 2, "tid": 9, "name": "waiting", "dur": 5})
    without["traceEvents"] = without["traceEvents"][1:]  # no GPU: what XLA's threads ran
    assert [(r["kernel"], r["ms"]) for r in profiling.longest(without, runs=1)] == [("dot.1", 0.777)]


def test_every_part_ends_within_its_time_and_is_told(tmp_path: Path):
    """With an interpreter that writes what it was asked, fails in one part and never ends in another."""
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        '[ "$1" = - ] && exec python3 "$@"\n'
        'case "$2" in *profiling) exit 3;; *training) exec sleep 100;; esac\n'
        'echo "{\\"asked\\": \\"$2 $3\\"}" >"${@: -1}"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), str(tmp_path / "out"), "tiny"],
        env=os.environ | {"PYTHON": str(python), "TOTAL": "10"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    parts = json.loads(done.stdout.splitlines()[-1])
    assert parts["parity"] == {"ended": "done", "seconds": parts["parity"]["seconds"],
                               "found": {"asked": "benchmarks.parity --json"}}  # fmt: skip
    assert parts["picture-large"]["found"] == {"asked": "benchmarks.sampling image"}
    assert (parts["profile"]["ended"], parts["profile"]["found"]) == ("failed with 3", None)
    assert parts["training"]["ended"] == "out of time"
    assert parts["torch-compiled"]["ended"] == "not begun: no time left"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["parts"].keys() == parts.keys()
