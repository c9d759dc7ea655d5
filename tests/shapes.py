"""Checks of shapes: of functions that take or give arrays, once for the shapes that each is called with.

Tracing calls the layers of a network hundreds of times with the same shapes, and functions that know no
arrays, whose types are pyright's to check, are called millions of times: to check all of that takes a fifth
of all time.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Hashable
from typing import Any

import beartype
import jax
import jaxtyping
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


def takes_arrays(function: Callable[..., Any]) -> bool:
    """Whether a type of `function` is one of arrays, or has one in it; yes where that cannot be told."""
    left: list[Any] = list(function.__annotations__.values())
    while left:
        hint = left.pop()
        try:
            hint = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except Exception:  # of a name that only type checkers import, or that is yet to come
            return True
        if isinstance(hint, type) and (
            issubclass(hint, ARRAYS) or hint.__module__.startswith(jaxtyping.__name__)
        ):
            return True
        parts = hint if isinstance(hint, list) else typing.get_args(hint)  # a list: of what a Callable takes
        left += [part for part in parts if not isinstance(part, str)]
    return False


def of_arrays(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, which leaves functions without arrays as they are."""
    if function is None:
        return functools.partial(of_arrays, typechecker=typechecker)
    if inspect.isfunction(function) and not takes_arrays(function):
        return function
    return jaxtyped(function, typechecker=typechecker)


jaxtyped = jaxtyping.jaxtyped
jaxtyping.jaxtyped = of_arrays  # which `--jaxtyping-packages` puts before every function
