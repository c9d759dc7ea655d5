"""A profile of some steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import jax
from etils import epath


class Profile:
    """Records steps `first` to `last` of this process into `directory`/profile; nothing without `steps`."""

    def __init__(self, directory: epath.Path, steps: tuple[int, int] | None) -> None:
        """Steps are counted from 1; those that a run has behind it are not recorded."""
        self._directory, self._steps, self._on = directory / "profile", steps, False

    def before(self, step: int) -> None:
        """Start, if it is time."""
        if self._steps is not None and not self._on and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(os.fspath(self._directory))
            self._on = True

    def after(self, step: int, result: Any) -> None:
        """Stop, if it is time, when the device has `result`."""
        if self._on and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._on = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on:
            self._stop()
