"""`--help` of every command, without what takes long to import."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

HEAVY = ("jax", "flax", "torch", "tensorflow_datasets", "grain", "transformers")
FOLDERS = ("ultrapixel_jax", "benchmarks", "convert")
ASK = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv, out, code = [name, "--help"], io.StringIO(), None
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    with contextlib.redirect_stdout(out):
        try:
            run(name, run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code and "usage: " in out.getvalue(), (name, code, out.getvalue())
    heavy = [module for module in {heavy} if module in sys.modules]
    assert not heavy, (name, heavy)
"""


def commands() -> list[str]:
    """Scripts, and modules that can be run."""
    modules = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    run = [p for p in modules if '\nif __name__ == "__main__":' in (ROOT / p).read_text(encoding="utf-8")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in run]
    return ["sample.py", "train.py", *sorted(names)]


def test_every_command_helps_without_jax() -> None:
    names = commands()
    assert {"convert", "ultrapixel_jax.data.build", "benchmarks.sampling"} < set(names)
    # One process for all: what one imports would show in all after it, and the first is named.
    code = ASK.replace("{heavy}", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
