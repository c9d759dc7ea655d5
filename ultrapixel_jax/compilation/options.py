"""What the compiler is told beyond its defaults."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.target import platform

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
_KINDS = {("bfloat16", True): _PRODUCTS, ("float32", True): ""}
"""What is left to YNNPACK, by dtype and whether maps are wide; else, by default, products and sums are."""
UNOPTIMISED = {"xla_backend_optimization_level": 0}
"""Compiles small programs in a third of the time, for those that run once or a few times."""
FEW_VALUES = 30_000_000
"""Random values that are drawn in a few seconds by a program that was not optimised."""


def compiler_options(dtype: Any, *, wide_maps: bool) -> dict[str, Any] | None:
    """For `Lowered.compile` of a sampling program that computes in `dtype`; None for the defaults.

    On CPUs, networks with wide maps of few channels (stages A and B) have XLA's own kernels instead of
    YNNPACK's for sums, which otherwise keep every tap of a depthwise convolution in memory (four times the
    temporaries of stage B), and for float32 products, which takes a quarter off stage A. Others have
    YNNPACK's for both: stage C takes up to 14 % less time by its products, and in bfloat16 attention less
    than half by its sums (docs/measurements.md).
    """
    kind = _KINDS.get((jnp.dtype(dtype).name, wide_maps))
    if platform() == "cpu" and kind is not None and _known():
        return {_OPTION: kind}
    return None


def options_to_initialise(variables: Any) -> dict[str, Any] | None:
    """For `jax.jit` of a program that makes random `variables`, abstract ones here; None for the defaults.

    It runs once. On CPUs, optimising the random numbers of a hundred small arrays takes longer than drawing
    them (2 s instead of 11 s for the tiny cascade's encoder), but for large ones it is worth its time.
    """
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(variables))
    small = platform() == "cpu" and count < FEW_VALUES
    return UNOPTIMISED if small else None


@functools.cache
def _known() -> bool:
    """Whether the installed compiler has the option; it is experimental there."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={_OPTION: ""})
    except jax.errors.JaxRuntimeError:
        return False
    return True
