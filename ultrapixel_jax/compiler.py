"""What the compiler is told beyond its defaults."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

_PLAIN_DOTS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(dtype: Any) -> dict[str, Any] | None:
    """For `Lowered.compile` of a program that computes in `dtype`; None for the defaults.

    On CPUs, float32 products by XLA's own kernels instead of YNNPACK's: 5 to 30 % faster for whole
    networks (docs/measurements.md). bfloat16 products stay with YNNPACK, which is faster there.
    """
    if jax.default_backend() == "cpu" and jnp.dtype(dtype) == jnp.float32 and _known():
        return dict(_PLAIN_DOTS)
    return None


@functools.cache
def _known() -> bool:
    """Whether the installed compiler has the option; it is experimental there."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=_PLAIN_DOTS)
    except jax.errors.JaxRuntimeError:
        return False
    return True
