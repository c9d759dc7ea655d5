"""The kernels that a component of sampling spends its time in, on this machine's device, the longest first.

    python -m benchmarks.profiling c-high --config configs/full.py --size 4096x4096 [--json FILE]

jax's profiler records a few runs; the table has the time of each kernel for one run, its share, and how often
it ran. `benchmarks.ahead` says what the same kernels need at least.
"""

from __future__ import annotations

import collections
import gzip
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sampling import COMPONENTS
from benchmarks.tables import Row, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, one_of, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import parse_size

COLUMNS = (("kernel", "kernel"), ("ms", "ms"), ("share", "share"), ("times", "times"))
AROUND = ("while", "conditional", "call")
"""Operations whose time is that of others, which a CPU's trace has too."""
PROFILED = tuple(name for name in COMPONENTS if name not in ("a-tiled", "image"))


def device_events(trace: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """(kernel, microseconds) of all that ran on devices, from a trace in Chrome's format.

    A device is a process of the trace that is named so. The CPU has none: there, what XLA's own threads ran
    counts.
    """
    events = trace.get("traceEvents", [])
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    devices = {pid for pid, name in processes.items() if "/device:" in name}
    for e in events:
        if e.get("ph") != "X":
            continue
        thread = threads.get((e["pid"], e["tid"]), "")
        if devices:
            # A line above the streams says which module and which operation of ours they belong to.
            wanted = e["pid"] in devices and "Stream" in thread
        else:
            wanted = "XLA" in thread and "hlo_op" in e.get("args", {}) and not e["name"].startswith(AROUND)
        if wanted:
            yield e["name"], float(e.get("dur", 0.0))


def longest(trace: Mapping[str, Any], runs: int) -> list[Row]:
    """A row for each kernel, of one of `runs` runs, the longest first."""
    spent: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    for name, microseconds in device_events(trace):
        spent[name] += microseconds  # pyright: ignore[reportArgumentType]
        times[name] += 1
    everything = sum(spent.values())
    return [
        {"kernel": name, "ms": us / 1e3 / runs, "share": us / everything, "times": times[name] / runs}
        for name, us in spent.most_common()
    ]


def read_trace(directory: Path) -> Mapping[str, Any]:
    """The one trace that jax's profiler wrote into `directory`.

    Raises:
        UserError: there is none.
    """
    found = sorted(directory.rglob("*.trace.json.gz"))
    if not found:
        raise UserError("jax's profiler wrote no trace here")
    return json.loads(gzip.decompress(found[-1].read_bytes()))


def profile(o: Any) -> list[Row]:
    """Compile the component, run it under the profiler, and sum up."""
    import jax

    from benchmarks.cases import build
    from ultrapixel_jax.compilation.options import compiler_options
    from ultrapixel_jax.config import load_config

    case = build(o.component, load_config(o.config), o.size, o.dtype, torch=False)
    dtype = "float32" if o.component == "a" else o.dtype
    options = compiler_options(dtype, wide_maps=o.component in ("a", "b"))
    run = jax.jit(case.function).lower(case.variables, *case.inputs).compile(options)
    jax.block_until_ready(run(case.variables, *case.inputs))
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, create_perfetto_trace=False):
            for _ in range(o.repeat):
                jax.block_until_ready(run(case.variables, *case.inputs))
        return longest(read_trace(Path(directory)), o.repeat)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        p = commands.Parser("python -m benchmarks.profiling", __doc__)
        p.argument("component", one_of(PROFILED), "what runs", metavar="COMPONENT")
        p.option("--config", Path, "sizes of the networks", Path("configs/full.py"), metavar="FILE")
        p.option(
            "--size", parse_size, "of the picture", (4096, 4096), shown="4096x4096", metavar="HEIGHTxWIDTH"
        )
        p.option("--dtype", DTYPE, "of computing", "bfloat16")
        p.option("--repeat", whole(1, 1000), "runs that are recorded", 3)
        p.option("--kernels", whole(1, 1000), "rows of the table", 10)
        p.option("--json", Path, "write all of them", metavar="FILE")
        o = p.read(argv)
        rows = profile(o)
        print(table(COLUMNS, rows[: o.kernels]))
        if o.json:
            o.json.write_text(json.dumps({"component": o.component, "kernels": rows}, indent=1) + "\n")

    return commands.run(run, interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
