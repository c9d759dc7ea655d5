"""Checks of types and shapes, once for each function and the shapes that it is called with.

Tracing calls the layers of a network hundreds of times with the same shapes, and to check them takes a tenth
of all time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import beartype
import jax
import numpy as np

PLAIN = (type(None), bool, int, float, str)
"""Types whose values are all that a check can depend on."""
ARRAYS = (np.ndarray, jax.Array, jax.ShapeDtypeStruct)
"""Types of which it depends on shape and dtype."""


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype.beartype(function)`, which is not asked again about arguments that it has let pass."""
    passed = set[Hashable]()

    @functools.cache
    def checked() -> Callable[..., Any]:  # made when it is called: most functions never are
        return beartype.beartype(function)

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        key = tuple(map(_kind, args)), tuple((name, _kind(value)) for name, value in kwargs.items())
        if key in passed:
            return function(*args, **kwargs)
        out = checked()(*args, **kwargs)
        if _UNKNOWN not in key[0] and all(kind is not _UNKNOWN for _, kind in key[1]):
            passed.add(key)
        return out

    return check


_UNKNOWN = object()


def _kind(value: Any) -> Hashable:
    """What a check of `value` depends on; `_UNKNOWN` where that is more than this knows."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, ARRAYS):
        return type(value), value.shape, value.dtype
    if type(value).__module__.startswith("ultrapixel_jax"):
        return type(value)
    return _UNKNOWN
