"""Programs kept on disk: found again by later processes, and by nobody for whom they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ultrapixel_jax.compilation.executables import PACKAGE, Executables, source_hash
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.report import Report


class Traced:
    """A function that knows how often it was traced."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, weights, x, factor):
        self.times += 1
        return {"y": (jnp.sin(x["a"]) @ weights["w"] * factor, None)}


def program(traced: Traced, directory: Path | None, *, identity: str = "a model", name: str = "f") -> Program:
    kept = None if directory is None else Executables(directory, identity)
    return Program(
        traced, batched=[1], mesh=None, report=Report(), static_argnums=(2,), name=name, executables=kept
    )


WEIGHTS = {"w": jax.random.normal(jax.random.key(0), (5, 3))}
X = {"a": jax.random.normal(jax.random.key(1), (4, 5))}


def times(directory: Path, weights=WEIGHTS, x=X, factor=2.0, **options) -> int:
    """How often a new program traces its function, with a result that is checked."""
    traced = Traced()
    out = program(traced, directory, **options)(weights, x, factor)
    plain = program(Traced(), None)(weights, x, factor)
    assert jax.tree.structure(out) == jax.tree.structure(plain)
    np.testing.assert_array_equal(out["y"][0], plain["y"][0])
    return traced.times


def test_it_is_traced_once_for_all_that_it_depends_on(tmp_path):
    assert times(tmp_path) == 1
    assert times(tmp_path) == 0
    assert times(tmp_path, x={"a": X["a"] + 1}) == 0  # other values
    assert times(tmp_path, x={"a": X["a"][:2]}) == 1  # another shape
    assert times(tmp_path, x={"a": X["a"].astype(jnp.bfloat16)}) == 1
    assert times(tmp_path, factor=3.0) == 1
    assert times(tmp_path, identity="another model") == 1
    assert times(tmp_path, name="g") == 1
    assert times(tmp_path, {**WEIGHTS, "more": X["a"]}) == 1
    assert times(tmp_path / "elsewhere") == 1
    before = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        assert times(tmp_path) == 1  # another setting
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert times(tmp_path) == 0


def test_on_another_device_it_is_another_program(tmp_path):
    assert times(tmp_path) == 1
    weights, x = jax.device_put((WEIGHTS, X), jax.devices()[3])
    assert times(tmp_path, weights, x) == 1
    assert times(tmp_path, weights, x) == 0
    out = program(Traced(), tmp_path)(weights, x, 2.0)["y"][0]
    assert out.devices() == {jax.devices()[3]}


def test_a_damaged_file_is_made_again(tmp_path):
    times(tmp_path)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    for damaged in (b"", data[:100], data[:-1], data[:200] + bytes([data[200] ^ 1]) + data[201:]):
        file.write_bytes(damaged)
        assert times(tmp_path) == 1
        assert times(tmp_path) == 0
    assert [file] == list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_no_mistake(tmp_path):
    (tmp_path / "file").touch()
    assert times(tmp_path / "file") == 1
    assert times(tmp_path / "file") == 1


def test_jaxs_own_cache_is_used_as_before(tmp_path):
    before = jax.config.values["jax_enable_compilation_cache"]
    assert times(tmp_path) == 1
    assert jax.config.values["jax_enable_compilation_cache"] == before
    # What comes from jax's cache could not be kept (on CPUs): the second directory has a program of its own.
    assert times(tmp_path / "second") == 1
    assert times(tmp_path / "second") == 0


@pytest.mark.parametrize(
    "file", ["layout.py", "models/layers.py", "new_room/steps.py", "sampling/deep/er.py"]
)
def test_source_that_changes_counts(tmp_path, file):
    package = tmp_path / "package"
    for name in ("layout.py", "models/layers.py", "data/build.py"):
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text("x = 1\n")
    before = source_hash(package)
    (package / "data/build.py").write_text("x = 2\n")  # of nothing that is traced
    assert source_hash(package) == before
    (package / file).parent.mkdir(exist_ok=True, parents=True)
    (package / file).write_text("x = 2\n")
    assert source_hash(package) != before
    assert source_hash(PACKAGE) == source_hash(PACKAGE) != before


DRAWING = """
import sys, tests.conftest, numpy as np, jax
from pathlib import Path
from configs.tiny import config
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.sampling.pipeline import Cascade
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.compilation.program import Program
programs, image, later = sys.argv[1:]
if later == "later":
    jax.config.update("jax_enable_compilation_cache", False)
    def never(*args): raise AssertionError("traced")
    init = Program.__init__
    def without(self, function, **options): init(self, never, **options)
    Program.__init__ = without
step = DiffusionConfig(steps=2, cfg=1.1)
request = Request("a red circle", "", 1, 256, 256, step, step)
cascade = Cascade.load(None, config=config, preview=True, executables=Path(programs))
np.save(image, cascade.generate([request], batch_size=1)[0].image)
"""


def test_a_later_process_draws_the_same_picture_and_compiles_nothing(tmp_path):
    """The whole cascade; the later process has jax's own cache turned off, and may not lower anything."""

    def draw(programs: str, which: str) -> np.ndarray:
        arguments = [tmp_path / programs, tmp_path / f"{which}.npy", which]
        command = [sys.executable, "-c", DRAWING, *map(str, arguments)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        return np.load(tmp_path / f"{which}.npy")

    expected = draw("programs", "first")
    shutil.copytree(tmp_path / "programs", tmp_path / "copied")
    np.testing.assert_array_equal(draw("copied", "later"), expected)
