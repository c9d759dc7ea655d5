"""How long commands take until they do something: help, refusals, the first picture, the first step.

    python -m benchmarks.start_up [--repeat 3] [--json FILE]

Every line is a command in a process of its own, timed as a whole, and the median of some. With the tiny
cascade, whose one step of each stage costs next to nothing: what remains is starting, loading and compiling,
once with an empty cache of compiled programs (`cold`) and then with what that left there (`warm`). To be run
from the project's directory.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import Row, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import whole
from ultrapixel_jax.errors import UserError

COLUMNS = (("what", "command"), ("cold_s", "cold, s"), ("seconds", "warm, s"))
SHORT = {
    "import ultrapixel_jax": (0, ["-c", "import ultrapixel_jax"]),
    "sample.py --help": (0, ["sample.py", "--help"]),
    "sample.py, a bad argument": (2, ["sample.py", "--size", "17"]),
    "train.py PRESET --help": (0, ["train.py", "configs/train/tiny.py", "--help"]),
    "train.py, a bad argument": (2, ["train.py", "configs/train/tiny.py", "--stpes", "3"]),
    "convert --help": (0, ["-m", "convert", "--help"]),
}
"""What is measured: the exit code and the arguments of Python."""


def timed(arguments: Sequence[str], cache: Path, code: int = 0) -> float:
    """Seconds of a command of Python's whose compiled programs lie in `cache`.

    Raises:
        UserError: it ended with another code.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode != code:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        raise UserError(f"{' '.join(arguments)} ended with code {done.returncode}: {last}")
    return seconds


def measure(repeat: int, work: Path) -> list[Row]:
    """All rows; `work` is an empty directory."""
    cache = work / "cache"
    rows: list[Row] = []
    for what, (code, arguments) in SHORT.items():
        times = [timed(arguments, cache, code) for _ in range(repeat + 1)]
        rows.append({"what": what, "seconds": statistics.median(times[1:])})

    data = work / "data"
    timed(["-m", "ultrapixel_jax.demo.world.build", str(data), "--count", "16", "--side", "256"], cache)
    picture = ["sample.py", "--prompt", "a lighthouse", "--size", "512x512", "--steps", "1", "--steps-b", "1"]
    picture += ["--config", "configs/tiny.py", "--quiet"]
    step = ["train.py", "configs/train/tiny.py", "--data.path", str(data), "--steps", "1"]
    long = {"the first picture, 512x512": picture, "the first training step": step}
    for what, arguments in long.items():
        cache = work / what
        times = []
        for i in range(repeat + 1):
            output = work / f"{what} {i}"
            times.append(timed([*arguments, "--output", str(output)], cache))
        rows.append({"what": what, "cold_s": times[0], "seconds": statistics.median(times[1:])})
    return rows


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m benchmarks.start_up", __doc__)
    p.option("--repeat", whole(1, 100), "runs that are timed, after one more", 3)
    p.option("--json", Path, "write what was measured", metavar="FILE")
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if not Path("train.py").is_file():
        raise UserError("no train.py here; run this from the project's directory")
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(o.repeat, Path(directory))
    print(table(COLUMNS, rows))
    keep(o.json, rows)


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
