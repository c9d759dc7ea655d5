"""What a run says: a progress line, `metrics.jsonl` and TensorBoard, with the same names and values."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.report import device_memory, peak_bytes
from ultrapixel_jax.training.checkpoints import disk_errors
from ultrapixel_jax.training.config import LogConfig, TrainConfig, config_to_json
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.step import BANDS, band_name
from ultrapixel_jax.training.tasks.base import Task

METRICS = "metrics.jsonl"
STEP = "the step"
"""What is compiled for every bucket, as `compiling` calls it."""

_ENDS = ("_low", "_high")


class Log:
    """Collects the metrics of every step and writes their means every `config.every` steps.

    Written by process 0 alone. Sums are kept on the host; nothing here waits for the device.
    """

    def __init__(
        self, directory: epath.Path, config: LogConfig, *, steps: int, start: int, batch_size: int
    ) -> None:
        """Go on after step `start` in what was written; lines of later steps are dropped.

        Args:
            directory: of the run.
            config: what to write.
            steps: of the whole run.
            start: updates that are done.
            batch_size: images per step.
        """
        self._config, self._batch_size = config, batch_size
        self._main = jax.process_index() == 0
        self._sums: dict[str, Any] = collections.defaultdict(float)
        self._count = 0
        """Steps in the sums."""
        self._timed = 0
        """Of these, steps of this process."""
        self._flops = 0.0
        self._waited = 0.0
        self._since = time.perf_counter()
        self._validated: int | None = None
        self._compilations: list[float] = []
        """Seconds that each one took."""
        self._to_compile = 0
        """Buckets of the training step that are still to be met."""
        self.matmul_rate: float | None = None
        """FLOP/s of a matrix product on all devices, to compare with; None leaves utilisation out."""
        if not self._main:
            return
        from tqdm import tqdm

        with disk_errors(str(directory)):
            self._file = directory / METRICS
            self._lines = _lines_up_to(self._file, start)
            self._board = None
            if config.tensorboard:
                from tensorboardX import SummaryWriter  # which imports torch where it is installed

                self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
        # Its own ETA would count what is compiled once.
        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(),
            bar_format=form,
        )  # fmt: skip

    def describe(self, task: Task, state: TrainState, mesh: Mesh, loader: Loader, weights: str) -> None:
        """Say what runs, on what, from whose `weights`; the configuration goes to TensorBoard."""
        for line in describe(task, state, mesh, loader, int(state.step), weights):
            self.say(line)
        self._to_compile = len(loader.bucket_counts()) * task.kinds
        if self._main and self._board is not None:
            for name, text in _texts(task.config).items():
                self._board.add_text(name, text, int(state.step))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here counts as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here (compiling, validation, pictures) counts for nothing."""
        began, since = time.perf_counter(), self._since
        yield
        self._since = since + time.perf_counter() - began  # once, where one is within another

    @contextlib.contextmanager
    def compiling(self, what: str, number: int, count: int) -> Iterator[None]:
        """Say that `what` is compiled, and how long it took: bucket `number` of `count`."""
        self.say(f"compiling {what} ({number} of {count}) …")
        began = time.perf_counter()
        with self.paused():
            yield
        seconds = time.perf_counter() - began
        if what.startswith(STEP):
            self._compilations.append(seconds)
            self._to_compile = max(0, count - number)
        left = f"; {count - number} still to compile, when they come" if count > number else ""
        self.say(f"compiled in {seconds:.1f} s{left}")

    def add(self, step: int, metrics: Mapping[str, np.ndarray], flops: int) -> None:
        """Take the metrics of update number `step`, and write if it is time to."""
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + np.asarray(value, np.float64)
        self._count += 1
        self._timed += 1
        self._flops += flops
        if self._main:
            self._bar.update()
        if step % self._config.every == 0:
            self.write(step)

    def write(self, step: int) -> None:
        """Write the means since the last line."""
        if not self._count:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        line = self._means()
        line |= {
            "images_per_second": self._timed * self._batch_size / seconds,
            "step_seconds": seconds / max(self._timed, 1),
            "data_wait": self._waited / seconds,
        }
        if self._flops:
            line["tflops"] = self._flops / seconds / 1e12
            if self.matmul_rate:
                line["utilisation"] = self._flops / seconds / self.matmul_rate
        if peak := peak_bytes():
            line["memory_gb"] = peak / 1e9
        if self._main:
            self._put(step, line)
            self._progress(step, line)
        self._sums.clear()
        self._count = self._timed = 0
        self._flops, self._waited, self._since = 0.0, 0.0, now

    def state(self) -> dict[str, Any]:
        """What was taken since the last line, JSON-able; `restore` takes it."""
        sums = {name: np.asarray(value).tolist() for name, value in self._sums.items()}
        return {"sums": sums, "count": self._count, "validated": self._validated}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on with what `state()` told, so that the next line is the mean over all its steps."""
        if state is None:
            return
        self._sums.update({name: np.asarray(value, np.float64) for name, value in state["sums"].items()})
        self._count = state["count"]
        self._validated = state.get("validated")

    def _means(self) -> dict[str, float]:
        sums = dict(self._sums)
        losses, counts = sums.pop("band_loss", None), sums.pop("band_count", None)
        line = {name: float(value) / self._count for name, value in sums.items()}
        if losses is not None and counts is not None:
            for i, (low, high) in enumerate(itertools.pairwise(BANDS)):
                if counts[i]:
                    line[band_name(low, high)] = float(losses[i] / counts[i])
        return line

    def _put(self, step: int, line: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step, **line}))
        with disk_errors(str(self._file)):
            if "://" in str(self._file):  # a bucket's objects are written whole
                self._file.write_text("\n".join(self._lines) + "\n")
            else:
                with self._file.open("a") as file:
                    file.write(self._lines[-1] + "\n")
                self._lines.clear()
            if self._board is not None:
                for name, value in line.items():
                    self._board.add_scalar(name, value, step)

    def _progress(self, step: int, line: Mapping[str, float]) -> None:
        """Say a line of the log, in short, and when the run will end."""
        eta = f"ETA {_duration((self._bar.total - step) * line['step_seconds'])}"
        if self._to_compile and self._compilations:
            each = sum(self._compilations) / len(self._compilations)
            eta += f" + {self._to_compile} bucket(s) to compile, {each:.0f} s each"
        memory = device_memory()
        text = (
            f"loss {line['loss']:.4f}  |g| {line['gradient_norm']:.3g}  "
            f"{line['images_per_second']:.3g} img/s  data {line['data_wait']:.0%}  "
            + (f"memory {memory[0] / 1e9:.1f}/{memory[1] / 1e9:.1f} GB  " if memory else "")
            + eta
        )
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            self.say(f"step {step}/{self._bar.total}  {text}")

    def validated(self, step: int, line: dict[str, float]) -> None:
        """Write the losses on held-out examples after `step`."""
        self._validated = step
        if self._main and line:
            self._put(step, line)
            self.say(f"step {step}/{self._bar.total}  validation loss {line['validation_loss']:.4f}")

    def measured(self, step: int, line: dict[str, float]) -> None:
        """Write what pictures that were drawn after `step` measure."""
        if self._main and line:
            self._put(step, line)
            told = [f"{name} {value:.4g}" for name, value in line.items() if not name.endswith(_ENDS)]
            self.say(f"step {step}/{self._bar.total}  {'  '.join(told)}")

    @property
    def validated_step(self) -> int | None:
        """After which step the last validation was; None where there was none."""
        return self._validated

    def pictures(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture, uint8 (h, w, 3), in TensorBoard."""
        if self._main and self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Print a line above the progress line."""
        if self._main:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush everything."""
        if self._main:
            self._bar.close()
            if self._board is not None:
                with disk_errors(str(self._file)):
                    self._board.close()


def describe(task: Task, state: TrainState, mesh: Mesh, loader: Loader, step: int, weights: str) -> list[str]:
    """What runs, on what, after `step`, from whose `weights`; of `state` only the shapes count."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    counts = loader.bucket_counts()
    sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in sorted(counts.items())[:6])
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    lines = [
        f"trains {', '.join(task.trained)}: {count:,} parameters; frozen: {', '.join(task.frozen)}",
        *([f"weights: {weights}"] if weights else []),
        f"{mesh.size} x {jax.devices()[0].device_kind}, {axes}; {jax.process_count()} process(es)",
        f"{sum(counts.values())} examples in {len(counts)} bucket(s): {sizes}{more}",
    ]
    if held := loader.held_out:
        most = task.config.validation.examples
        lines.append(f"{held} more are held out, of which {min(held, most)} are validated on")
    return [*lines, *([f"continues after step {step}"] if step else [])]


def check_finite(step: int, metrics: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
    """Stop on a loss, gradient or parameter that is not finite, before it is saved.

    Raises:
        UserError: naming the step, the bucket and the examples.
    """
    names = ("loss", "gradient_norm", "parameter_norm")
    bad = [name for name in names if not math.isfinite(float(metrics[name]))]
    if bad:
        ids = ", ".join(batch["ids"][:16]) + (" …" if len(batch["ids"]) > 16 else "")
        height, width = batch["bucket"]
        raise UserError(
            f"{bad[0]} is {float(metrics[bad[0]])} at step {step}, bucket {height}x{width}, examples {ids}; "
            "nothing of this step was saved. Lower --optimizer.learning-rate, or look at these examples"
        )


def _lines_up_to(file: epath.Path, start: int) -> list[str]:
    """Lines of `file` of steps up to `start`; a local file is cut to them, a bucket's kept in memory."""
    if not file.exists():
        return []
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            if line.strip():  # a line that a killed process did not finish
                del error
    text = "".join(f"{line}\n" for line in kept)
    if "://" in str(file):
        return kept
    write_whole(file, text)
    return []


def _texts(config: TrainConfig) -> dict[str, str]:
    """The configuration, and the prompts that are drawn, as Markdown."""
    text = json.dumps(config_to_json(config), indent=1, ensure_ascii=False)
    out = {"configuration": "\n".join(f"    {line}" for line in text.splitlines())}
    if config.pictures.every:
        prompts = (f"{i}. {prompt}" for i, prompt in enumerate(config.pictures.prompts, 1))
        out["prompts"] = "\n".join(prompts)
    return out


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
