"""Two and four real processes whose devices are scattered over the mesh, against one process.

    JAX_PLATFORMS=cpu python -m tests.training.scattered

Prints a table: the largest relative difference of what the log says of any step, and
of trained parameters the largest absolute one. Takes some minutes; test_machines.py has one of the cases.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.training.tiny_run import Launcher, Started, metrics, trained, write_latents

STEPS = 12
DATA = ("--checkpoints.every", "6")


@dataclasses.dataclass(frozen=True)
class Case:
    """Processes, and where their devices lie."""

    devices: tuple[int, ...]
    """Of each process."""
    order: str
    """Of all of them in the mesh."""
    mesh: tuple[str, ...]


TWO = Case((2, 2), "0,3,1,2", ("--mesh.fsdp", "2"))
TWO_TENSOR = Case((2, 2), "2,0,1,3", ("--mesh.tensor", "2"))
FOUR = Case((1, 1, 1, 1), "2,0,3,1", ("--mesh.data", "4"))
RUNS: dict[str, tuple[tuple[Case, int], ...]] = {
    "2 processes of 2 devices": ((TWO, STEPS),),
    "the same, then 4 of 1 from step 6 on": ((TWO, STEPS // 2), (FOUR, STEPS)),
    "4 of 1, then 2 of 2 with `tensor`": ((FOUR, STEPS // 2), (TWO_TENSOR, STEPS)),
}


def start(launcher: Launcher, case: Case, run: Path, data: Path, steps: int) -> list[Started]:
    """All processes of `case`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    machines = ["--machines.coordinator", where, "--machines.process-count", str(len(case.devices))]
    scattered = dataclasses.replace(launcher, order=case.order)
    return [
        scattered.start(
            run, data, "--steps", str(steps), *DATA, *case.mesh, *machines, "--machines.process-id", str(i),
            devices=devices,
        )
        for i, devices in enumerate(case.devices)
    ]  # fmt: skip


def differences(run: Path, one: Path) -> tuple[float, float]:
    """Of the log, relative; of parameters, absolute."""
    lines, others = metrics(run), metrics(one)
    assert [line["step"] for line in lines] == [other["step"] for other in others]
    log = max(
        float(np.max(np.abs(1 - np.array(list(a.values())) / np.array(list(b.values())))))
        for a, b in ((
            {k: v for k, v in x.items() if k in ("loss", "gradient_norm", "parameter_norm")} for x in pair
        ) for pair in zip(lines, others, strict=True))
    )  # fmt: skip
    arrays, expected = trained(run), trained(one)
    # A key's bias changes nothing: see `assert_close`.
    names = [name for name in arrays if not name.endswith("['key']['bias']")]
    return log, max(float(np.max(np.abs(arrays[n] - expected[n]))) for n in names)


def main(wanted: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_latents(root / "data")
        launcher = Launcher(root / "cache")
        one = root / "one"
        reference = launcher.start(one, data, "--steps", str(STEPS), *DATA, *TWO.mesh, devices=4)
        code, said = reference.finish(1800)
        assert code == 0, said
        print("| | log | parameters |\n|---|---|---|")
        for i, (name, parts) in enumerate(RUNS.items()):
            if wanted and str(i) not in wanted:
                continue
            run = root / f"run{i}"
            for case, steps in parts:
                ends = [process.finish(1800) for process in start(launcher, case, run, data, steps)]
                assert {code for code, _ in ends} == {0}, ends
            log, parameters = differences(run, one)
            print(f"| {name} | {log:.0e} | {parameters:.0e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
