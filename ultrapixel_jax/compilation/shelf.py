"""Compiled programs in memory, as many as the process has room for.

Linux allows a process so many memory maps (`vm.max_map_count`, 65,530 by default). A program that XLA has
compiled for a CPU takes hundreds of them, a training step 2,400, and LLVM ends a process that asks for more.
So the programs that were used longest ago are given up before.
"""

from __future__ import annotations

import gc
import itertools
import logging
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import jax

log = logging.getLogger(__name__)

LIMIT, MAPS = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
AT_LEAST = 1000
"""Maps that are kept free for a program, and for all else."""


class Shelf:
    """Programs by what they were compiled for. All shelves of a process share its room."""

    _shelves: ClassVar[weakref.WeakSet[Shelf]] = weakref.WeakSet()
    _clock = itertools.count()
    _largest = AT_LEAST
    """Maps that one program has taken."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Any] = {}
        self._used: dict[Hashable, int] = {}
        self.compilations = 0
        """Programs that were put here, those too that were given up since."""
        Shelf._shelves.add(self)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The program of `key`, which `make` compiles where it is not here."""
        if key not in self._programs:
            before = make_room(Shelf._largest)
            self._programs[key] = make()
            self.compilations += 1
            Shelf._largest = max(Shelf._largest, (maps_in_use() or 0) - before)
        self._used[key] = next(Shelf._clock)
        return self._programs[key]

    def _give_up(self, key: Hashable) -> None:
        del self._programs[key], self._used[key]


def maps_in_use() -> int | None:
    """Memory maps of this process; None where the system does not say."""
    try:
        with MAPS.open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return None


def make_room(wanted: int) -> int:
    """Give up the half of all programs that was used longest ago where fewer maps than `wanted` are left.

    Returns the number of maps in use.
    """
    used = maps_in_use()
    try:
        limit = int(LIMIT.read_text())
    except (OSError, ValueError):
        return used or 0
    if used is None or used + wanted + AT_LEAST <= limit:
        return used or 0
    kept = [(tick, key, shelf) for shelf in Shelf._shelves for key, tick in shelf._used.items()]
    kept.sort(key=lambda one: one[0])
    oldest = kept[: (len(kept) + 1) // 2]
    for _, key, shelf in oldest:
        shelf._give_up(key)
    jax.clear_caches()  # it holds programs too
    gc.collect()
    if oldest:
        log.warning(
            "%d of %d compiled programs are given up, and made again when they are needed: the system allows "
            "a process %d memory maps (vm.max_map_count). To keep them: sudo sysctl -w vm.max_map_count=%d",
            len(oldest), len(kept), limit, 16 * limit,
        )  # fmt: skip
    return maps_in_use() or 0
