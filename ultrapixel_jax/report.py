"""Time and peak memory by stage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

STAGES = ("load", "compile", "clip", "C low", "C high", "B", "A")


class Report:
    """Sums of seconds and largest memory, by stage, in the order of `STAGES`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peak: dict[str, int | None] = {}
        self._open: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside to `name`; a stage inside another counts to itself alone."""
        _reset_peak()
        start = time.perf_counter()
        self._open.append(name)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._open.pop()
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            if self._open:
                outer = self._open[-1]
                self._seconds[outer] = self._seconds.get(outer, 0.0) - seconds
            peak = peak_bytes()
            known = self._peak.get(name)
            self._peak[name] = peak if known is None else max(known, peak or 0)

    def rows(self) -> list[tuple[str, float, int | None]]:
        """(stage, seconds, peak bytes) of every stage that ran."""
        order = {name: i for i, name in enumerate(STAGES)}
        names = sorted(self._seconds, key=lambda n: order.get(n, len(order)))
        return [(name, self._seconds[name], self._peak.get(name)) for name in names]


def peak_bytes() -> int | None:
    """Peak memory: of the fullest accelerator, or on CPUs of this process; None where unknown."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def device_memory() -> tuple[int, int] | None:
    """Bytes in use on the fullest local accelerator, and how many it has; None where devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [(s["bytes_in_use"], s["bytes_limit"]) for s in stats if s.get("bytes_limit")]
    return max(known, key=lambda pair: pair[0] / pair[1]) if known else None


def _reset_peak() -> None:
    """Forget the process's peak, where the system can (Linux); accelerators keep theirs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def matmul_rate(dtype: str, devices: int = 1, seconds: float = 0.2) -> float:
    """FLOP/s of square matrix products on `devices` devices: what a step is compared with.

    Measured on the first local one. CPU devices of one process share its cores, so that they count once.
    """
    device = jax.local_devices()[0]
    side = 1024 if device.platform == "cpu" else 8192
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32).astype(a.dtype))
    with jax.set_mesh(jax.make_mesh((), (), devices=[device])):  # in place of that of the caller
        x = jnp.ones((side, side), dtype)
        product(x, x).block_until_ready()
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            product(x, x).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best * (jax.process_count() if device.platform == "cpu" else devices)
