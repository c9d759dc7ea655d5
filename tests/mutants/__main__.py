"""Run the mutants: each in a copy of the project, with the tests that are to notice it.

    python -m tests.mutants                # all of them
    python -m tests.mutants GRN optimizer  # those whose name or file contains one of the words
    python -m tests.mutants --only GRN     # without running the tests on the program as it is first

One after the other, in little more than the time of the tests: each runs in a fork of a process that has
imported the libraries, and compiled programs are shared. The tests are run once without any mutant first.
Ends with 1 if one lived that is not known to be equivalent.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.table import MUTANTS

COPIED = ("ultrapixel_jax", "tests", "convert", "configs", "benchmarks", "pyproject.toml")
LIBRARIES = (
    "jax", "jax.experimental.pallas.tpu", "flax.linen", "optax", "optax.contrib", "orbax.checkpoint", "grain",
    "tensorflow_datasets", "diffusers", "torch", "hypothesis", "beartype", "tyro", "tokenizers", "PIL.Image",
)  # fmt: skip
HANGS = 1200
"""Seconds after which a mutant counts as noticed."""


def main(words: list[str]) -> int:
    """Run the mutants that `words` choose; exit code."""
    only, words = "--only" in words, [word for word in words if word != "--only"]
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.name} {m.file}" for word in words)]
    running = [m for m in chosen if not m.equivalent]
    lived = []
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = Path(directory) / "project"
        copy_project(copy)
        if not only:
            code, said, seconds = run_tests(copy, sorted({test for m in running for test in m.tests}))
            if code:
                print(said)
                print("the tests fail without any mutant")
                return 2
            print(f"without a mutant: passed in {seconds:.0f} s", flush=True)
        for number, mutant in enumerate(running, start=1):
            code, said, seconds = with_mutant(copy, mutant, number)
            what = {0: "LIVED", 1: "killed"}.get(code, f"exit code {code}")
            print(f"{what:7} {seconds:5.1f} s  {mutant.file}: {mutant.name}  {by(said)}", flush=True)
            if code != 1:
                lived.append(mutant)
            if code > 1:
                print(said)
    for mutant in chosen:
        if mutant.equivalent:
            print(f"equivalent       {mutant.file}: {mutant.name}, since {mutant.equivalent}")
    print(f"{len(running) - len(lived)} of {len(running)} killed, {len(chosen) - len(running)} equivalent")
    return int(bool(lived))


def copy_project(copy: Path) -> None:
    """What the tests need."""
    copy.mkdir()
    leave = shutil.ignore_patterns("__pycache__", ".*")
    for path in (*(ROOT / name for name in COPIED), *ROOT.glob("*.py")):
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=leave)
        else:
            shutil.copy2(path, copy / path.name)


def with_mutant(copy: Path, mutant: Mutant, number: int) -> tuple[int, str, float]:
    """Run the mutant's tests with it; the copy is as before afterwards."""
    file = copy / mutant.path
    before, when = file.read_text(), file.stat().st_mtime
    try:
        file.write_text(mutant.applied(before))
        # Compiled bytecode is told apart by the second of its source.
        os.utime(file, (when + number, when + number))
        return run_tests(copy, mutant.tests)
    finally:
        file.write_text(before)
        os.utime(file, (when, when))


def run_tests(copy: Path, tests: Iterable[str]) -> tuple[int, str, float]:
    """pytest's exit code, what it said, and seconds."""
    said = copy.parent / "said.txt"
    began = time.perf_counter()
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        child = os.fork()  # JAX has no threads before it is first used
    if child == 0:
        os._exit(_run_here(copy, tests, said))
    ended, status = 0, 1 << 8
    while not ended and time.perf_counter() - began < HANGS:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = 1 << 8
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), time.perf_counter() - began


def _run_here(copy: Path, tests: Iterable[str], said: Path) -> int:
    """pytest in this process, with the project of `copy`."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "TESTS_COMPILED": str(copy.parent / "compiled")}
    options = ["-x", "-q", "--tb=line", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *tests]))


def import_libraries() -> None:
    """What tests import, but nothing of this project."""
    for name in LIBRARIES:
        importlib.import_module(name)


def by(said: str) -> str:
    """The test that failed first."""
    found = re.search(r"^FAILED tests/(\S+)", said, re.MULTILINE)
    return f"by {found[1]}" if found else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
