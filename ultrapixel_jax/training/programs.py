"""Compiled programs of a run, one for each bucket, and the word that is said of each."""

from __future__ import annotations

from typing import Any

import jax

from ultrapixel_jax.compilation.shelf import Shelf
from ultrapixel_jax.training.log import STEP, Log


class Programs:
    """Compiles a jitted function for the shapes of each bucket when it is met, and says so."""

    def __init__(self, log: Log, buckets: int, kinds: int = 1) -> None:
        """Of data in so many buckets, each of which has so many programs that are a step (`Task.kinds`)."""
        self._log, self._buckets, self._kinds = log, buckets, kinds
        self._compiled = Shelf()
        self._numbers: dict[Any, int] = {}
        """Of what was met, in order, among those of the same name."""

    def run(self, what: str, function: Any, arguments: tuple[Any, ...], bucket: tuple[int, int]) -> Any:
        """`function(*arguments)`, whose last one is a batch's arrays by name; `what` names the function."""
        shapes = (what, *(x.shape for x in jax.tree.leaves(arguments[-1])))
        if shapes not in self._numbers:
            self._numbers[shapes] = 1 + sum(known[0] == what for known in self._numbers)

        def make() -> Any:
            height, width = bucket
            count = self._buckets * (self._kinds if what == STEP else 1)
            with self._log.compiling(f"{what} for bucket {height}x{width}", self._numbers[shapes], count):
                return function.lower(*arguments).compile()

        return self._compiled.get(shapes, make)(*arguments)
