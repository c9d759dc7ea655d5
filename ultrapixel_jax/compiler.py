"""What the compiler is told beyond its defaults."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_KINDS = {"float32": "", "bfloat16": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""What is left to YNNPACK, by dtype; by default products and sums are."""


def compiler_options(dtype: Any) -> dict[str, Any] | None:
    """For `Lowered.compile` of a sampling program that computes in `dtype`; None for the defaults.

    On CPUs, XLA's own kernels instead of YNNPACK's for sums, which otherwise keep every tap of a
    depthwise convolution in memory (four times the temporaries of stage B), and for float32 products,
    5 to 30 % faster for whole networks. bfloat16 products stay with YNNPACK, which is faster there
    (docs/measurements.md).
    """
    kind = _KINDS.get(jnp.dtype(dtype).name)
    if jax.default_backend() == "cpu" and kind is not None and _known():
        return {_OPTION: kind}
    return None


@functools.cache
def _known() -> bool:
    """Whether the installed compiler has the option; it is experimental there."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={_OPTION: ""})
    except jax.errors.JaxRuntimeError:
        return False
    return True
