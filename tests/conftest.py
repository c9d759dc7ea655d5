"""Every test sees 8 virtual CPU devices; implicit rank promotion is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # convert/, configs/ and the scripts are used from the checkout
    sys.path.insert(0, str(ROOT))

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def golden():
    """Reader of the recordings: `golden("stage_c")` gives (inputs and outputs, metadata)."""
    from tests.recordings import load

    return load
