"""jax's settings in the environment: those that cannot work are one line, in a command and from Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ultrapixel_jax.commands.surroundings import explaining
from ultrapixel_jax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
CODE = """
import sys
from ultrapixel_jax import commands
sys.exit(commands.run(lambda: __import__("jax").devices() and None, interrupted=""))
"""

REFUSED = [
    ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS='cuda', or install jax[cuda13] on a machine"),
    ({"JAX_PLATFORM_NAME": "gpu", "JAX_PLATFORMS": ""}, "JAX_PLATFORM_NAME='gpu'"),
    ({"JAX_NUM_CPU_DEVICES": "0"}, "JAX_NUM_CPU_DEVICES='0'"),
    ({"JAX_NUM_CPU_DEVICES": "many"}, "unset JAX_NUM_CPU_DEVICES='many'"),
    ({"XLA_FLAGS": "--xla_nonsense=1"}, "Unknown flag in XLA_FLAGS: --xla_nonsense=1; correct or unset"),
]


@pytest.mark.parametrize(("setting", "message"), REFUSED)
def test_a_setting_that_cannot_work_is_one_line(setting: dict[str, str], message: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env={**kept, **setting}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_settings_for_debugging_that_cannot_work() -> None:
    with jax.disable_jit(), pytest.raises(UserError, match="JAX_DISABLE_JIT is set"), explaining():
        jax.jit(lambda x: x).lower(1.0).compile()(1.0)
    with jax.transfer_guard("disallow"), pytest.raises(UserError, match="JAX_TRANSFER_GUARD"), explaining():
        jax.jit(lambda x: x + np.float32(1))(np.ones(3))
    with pytest.raises(ZeroDivisionError), explaining():
        raise ZeroDivisionError
