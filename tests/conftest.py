"""Every test sees 8 virtual CPU devices; implicit rank promotion is an error.

Most of the time goes into compiling. So all processes of a run share a cache of compiled programs, which is
new for each run; LLVM does not optimise; and where XLA has two emitters of fused loops, the older one, which
does not begin an MLIR context for every loop, saves a fifth of the rest. Flags that are given are kept:
`XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"` compiles as outside of
tests.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # convert/, configs/ and the scripts are used from the checkout
    sys.path.insert(0, str(ROOT))

import tests.shapes  # noqa: E402, F401  by name the checker of `--jaxtyping-packages`

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and child processes inherit the first process's
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    # Several runs of `tests.mutants` share one.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("TESTS_COMPILED", COMPILED.name)
    FAST = {"--xla_backend_optimization_level": "0"}
    if jax.__version_info__ < (0, 11):  # an unknown flag ends the process, and later ones have one emitter
        FAST["--xla_cpu_use_fusion_emitters"] = "false"
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"{flag}={value}" for flag, value in FAST.items() if flag not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
# Tracing makes hundreds of thousands of objects that live on; looking among them for garbage every 700 takes
# a twentieth of all time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


LONGEST = (
    "sampling/test_pipeline",
    "training/test_start_from_sources",
    "training/test_tasks",
    "training/test_machines",
    "training/test_resume",
    "demo/test_demo",
    "training/test_overfit",
    "sampling/test_end_to_end",
    "checkpoints/test_runs",
    "models/test_scan",
    "convert/test_formats",
    "training/test_gradients",
    "diffusion/test_two_branch",
    "training/test_pictures",
    "measure/test_detect",
    "models/test_stage_c",
    "training/test_muon",
    "training/test_finite_differences",
    "models/test_rows",
)
"""Files that take a minute or more of a core, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Workers take files in the order below, not by how many tests there are in them."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left with one when the other has none."""
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return places.get("/".join(item.path.with_suffix("").parts[-2:]), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def golden():
    """Reader of the recordings: `golden("stage_c")` gives (inputs and outputs, metadata)."""
    from tests.recordings import load

    return load


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory whose subdirectories are the buckets gs://NAME."""
    from etils.epath.backend import fsspec_backend
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.registry import _registry

    root = tmp_path_factory.mktemp("remote")

    class Buckets(LocalFileSystem):
        cachable = False

        def __init__(self, **_: Any) -> None:
            super().__init__(auto_mkdir=True)

        @classmethod
        def _strip_protocol(cls, path: Any) -> str:
            return super()._strip_protocol(str(path).replace("gs:/", str(root)).replace("//", "/"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_registry, "gcs", Buckets)
        patch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
        fsspec_backend._get_filesystem.cache_clear()
        yield root
    fsspec_backend._get_filesystem.cache_clear()
