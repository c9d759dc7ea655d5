"""Runs of `train.py` in processes of their own, on a few cached latents of random numbers."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from configs.tiny import config as tiny
from ultrapixel_jax.checkpoints.runs import CHECKPOINTS, RunWeights
from ultrapixel_jax.data import records
from ultrapixel_jax.data.buckets import lr_size
from ultrapixel_jax.data.examples import EMPTY_PROMPT
from ultrapixel_jax.training.log import METRICS

stage_c = tiny.stage_c
ROOT = Path(__file__).resolve().parent.parent.parent
PRESETS = ROOT / "tests" / "training" / "presets"
STAGE_C = PRESETS / "stage_c.py"
SIZES = ((128, 128), (128, 192))
"""Height and width of two buckets; latents are 32 times smaller."""
CLOCK = ("images_per_second", "step_seconds", "data_wait", "tflops", "utilisation", "memory_gb")
"""What a line of the metrics says about time and memory, which no two runs have in common."""
PROGRESS = (
    "trains ", "weights: ", "1 x cpu", "4 x cpu", "8 x cpu", "24 examples", "continues after", "compil",
    "step ",
)  # fmt: skip
"""How the lines start that a run says before anything is wrong."""


def write_latents(
    directory: Path,
    count: int = 24,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    poisoned: int | None = None,
) -> Path:
    """A cached dataset of `count` examples for the tiny networks; the latent of one may be poisoned."""
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(records.BF16)

    def example(i: int) -> dict[str, Any]:
        height, width = sizes[i % len(sizes)]
        latent = values(height // 32, width // 32, stage_c.c_latent)
        if i == poisoned:
            latent[1, 1, 1] = np.nan
        return {
            "latent": latent,
            "latent_lr": values(*(side // 32 for side in lr_size(height, width, 6)), stage_c.c_latent),
            "text_states": values(3, stage_c.c_clip_text),
            "text_pooled": values(stage_c.c_clip_text_pooled),
            "image_vector": values(stage_c.c_clip_img),
            "caption": f"caption {i}",
            "id": f"example-{i}",
            "height": height,
            "width": width,
        }

    path, plan, report = epath.Path(directory), {"source": "random"}, records.ShardReport()
    records.start(path, plan)
    records.write_shard(records.CachedLatents, path, 0, 1, map(example, range(count)), report)
    empty = io.BytesIO()
    np.savez(
        empty,
        text_states=np.zeros((3, stage_c.c_clip_text)),
        text_pooled=np.zeros(stage_c.c_clip_text_pooled),
    )
    records.finish(records.CachedLatents, path, plan, [report], {EMPTY_PROMPT: empty.getvalue()})
    return directory


@dataclasses.dataclass
class Started:
    """A run that goes on in its own process."""

    directory: Path
    process: subprocess.Popen[bytes]
    said: Path
    """What it writes to standard error."""

    def wait_for(self, happened: Callable[[Path], bool], seconds: float = 600) -> None:
        """Return as soon as `happened(directory)`; the run must be alive until then."""
        end = time.monotonic() + seconds
        while not happened(self.directory):
            assert self.process.poll() is None, f"ended before: {self.said.read_text()}"
            assert time.monotonic() < end, f"did not happen in {seconds} s: {self.said.read_text()}"
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def finish(self, seconds: float = 900) -> tuple[int, str]:
        """Exit code and standard error."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        return code, self.said.read_text()


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts runs that share compiled programs."""

    cache: Path
    order: str = ""
    """Of the devices in the mesh; see `permuted.py`."""

    def start(
        self,
        directory: Path,
        data: Path,
        *options: str,
        preset: Path = STAGE_C,
        devices: int = 1,
        said: Path | None = None,
    ) -> Started:
        """`train.py` on so many CPU devices; what it says goes to `said`, else beside its directory."""
        said = Path(tempfile.mkstemp(suffix=".txt", dir=said or directory.parent)[1])
        script = "tests/training/permuted.py" if self.order else "train.py"
        command = [sys.executable, script, os.path.relpath(preset, ROOT)]
        command += ["--data.path", str(data), "--output", str(directory), *options]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "ORDER": self.order,
            "XDG_CACHE_HOME": str(self.cache),  # where `compilation_cache` keeps programs
        }
        with said.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
        return Started(directory, process, said)

    def run(self, directory: Path, data: Path, *options: str, **more: Any) -> tuple[int, str]:
        """Start and finish."""
        return self.start(directory, data, *options, **more).finish()

    def succeed(self, directory: Path, data: Path, *options: str, **more: Any) -> str:
        """Start and finish with exit code 0; what it said."""
        code, said = self.run(directory, data, *options, **more)
        assert code == 0, said
        return said


def metrics(directory: Path) -> list[dict[str, float]]:
    """Lines of the log, without what is different each time."""
    lines = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def logged(step: int) -> Callable[[Path], bool]:
    """Whether the log has the line of `step`."""

    def happened(directory: Path) -> bool:
        file = directory / METRICS
        return file.exists() and f'{{"step": {step},' in file.read_text()

    return happened


def being_saved(step: int) -> Callable[[Path], bool]:
    """Whether the checkpoint of `step` is being written: Orbax renames a directory when it is whole."""
    return lambda directory: (directory / CHECKPOINTS / f"{step}.orbax-checkpoint-tmp").exists()


def saved(directory: Path) -> list[int]:
    """Steps of the checkpoints."""
    return sorted(int(path.name) for path in (directory / CHECKPOINTS).iterdir() if path.name.isdigit())


def trained(directory: Path) -> dict[str, np.ndarray]:
    """Parameters and their moving average in the newest checkpoint, by name."""
    run = RunWeights.open(directory)
    both = {
        kind: {name: run.restore(name, ema=ema) for name in run.manifest.stacked}
        for kind, ema in (("params", False), ("ema", True))
    }
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(both)}


def assert_close(run: Path, expected: Path) -> None:
    """The same log and parameters but for the rounding of another order of additions."""
    for line, other in zip(metrics(run), metrics(expected), strict=True):
        assert line.keys() == other.keys()
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-4)
    arrays, others = trained(run), trained(expected)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        # The softmax does not see a bias of the keys: its gradient is rounding, which Adam makes large.
        if not name.endswith("['key']['bias']"):
            np.testing.assert_allclose(array, others[name], rtol=0, atol=2e-4, err_msg=name)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def only_line(said: str) -> str:
    """The one line `error: …` that a refusal consists of."""
    lines = [line for line in said.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: "), said
    return lines[0]
