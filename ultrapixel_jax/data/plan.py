"""Which examples make batch k, for any k: the order of training as a pure function.

Every bucket is an endless stream: its examples in a fresh order in each epoch, one epoch after the
other. Batch j of a bucket is the stream's entries from j·B to (j+1)·B; what does not fill a batch in one
epoch begins the next one's first, so every example is met exactly once per epoch of its bucket and none
is lost. Epoch e of the whole holds the batches that each bucket completes in it, in a shuffled order.

So the state of reading is the number of the next batch and nothing else. No number of processes or
workers enters: processes take rows of the same batches.
"""

from __future__ import annotations

import bisect
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

BATCH_ORDER, EXAMPLE_ORDER, EXAMPLE, HELD_OUT = range(4)
"""Streams of random numbers."""


class Batch(NamedTuple):
    """One batch: all its examples are of one bucket."""

    bucket: int
    """Number of the bucket."""
    examples: Int64[np.ndarray, " b"]
    """Indices of the examples. One example is there twice only where two epochs of its bucket meet."""
    epochs: Int64[np.ndarray, " b"]
    """How often each has been met before."""


class Plan:
    """The order of all batches."""

    def __init__(
        self,
        buckets: Int[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        among: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        """Plan for the examples whose buckets are `buckets`, in batches of `batch_size`; of those `among`
        them that are meant, where not all are.
        """
        self.batch_size, self.seed = batch_size, seed
        order = np.argsort(buckets, kind="stable")
        if among is not None:
            order = order[among[order]]
        numbers, starts = np.unique(buckets[order], return_index=True)
        self.buckets: list[int] = numbers.tolist()
        """Numbers of the buckets that have examples."""
        self.members: list[Int64[np.ndarray, " m"]] = np.split(order, starts[1:])
        """The examples of each, ascending."""
        self._cache()

    def __getstate__(self) -> dict[str, object]:
        """All but the caches, for worker processes."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_order", "_epoch", "batch")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._cache()

    def _cache(self) -> None:
        """Keep what neighbouring batches share: they take from two epochs of every bucket."""
        self._order = functools.lru_cache(2 * len(self.buckets) + 8)(self._make_order)
        self._epoch = functools.lru_cache(4)(self._make_epoch)
        self.batch = functools.lru_cache(16)(self._make_batch)
        """`batch(step)` is batch number `step`, from 0."""

    def batches_before(self, epoch: int) -> int:
        """Number of batches in the epochs before `epoch`."""
        return sum(self._done(i, epoch) for i in range(len(self.buckets)))

    def epoch_of(self, step: int) -> int:
        """The epoch that batch `step` is in."""
        examples = sum(len(m) for m in self.members)
        bound = (step + len(self.buckets) + 1) * self.batch_size // examples + 2
        return bisect.bisect_right(range(bound), step, key=self.batches_before) - 1

    def _make_batch(self, step: int) -> Batch:
        epoch = self.epoch_of(step)
        which, number = self._epoch(epoch)
        place = step - self.batches_before(epoch)
        i, j = int(which[place]), int(number[place])
        size = len(self.members[i])
        entries = np.arange(j * self.batch_size, (j + 1) * self.batch_size, dtype=np.int64)
        epochs = entries // size
        examples = np.empty_like(entries)
        for e in np.unique(epochs).tolist():
            now = epochs == e
            examples[now] = self._order(i, e)[entries[now] % size]
        return Batch(self.buckets[i], examples, epochs)

    def _done(self, i: int, epoch: int) -> int:
        """Batches that the i-th bucket completes before `epoch`."""
        return epoch * len(self.members[i]) // self.batch_size

    def _make_order(self, i: int, epoch: int) -> Int64[np.ndarray, " m"]:
        members = self.members[i]
        return members[shuffled(len(members), (self.seed, EXAMPLE_ORDER, epoch, self.buckets[i]))]

    def _make_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
        """For each batch of `epoch`: which bucket's it is, and its number there."""
        first = [self._done(i, epoch) for i in range(len(self.buckets))]
        count = [self._done(i, epoch + 1) - first[i] for i in range(len(self.buckets))]
        number = np.concatenate([np.arange(f, f + c) for f, c in zip(first, count)])
        which = np.repeat(np.arange(len(self.buckets)), count)
        order = shuffled(len(which), (self.seed, BATCH_ORDER, epoch))
        return which[order], number[order]


def shuffled(n: int, key: tuple[int, ...]) -> Int64[np.ndarray, " n"]:
    """A permutation of 0 … n−1, a function of `key`."""
    return np.argsort(_raw(n, key), kind="stable")


def uniforms(n: int, key: tuple[int, ...]) -> Float64[np.ndarray, " n"]:
    """Random numbers in [0, 1), a function of `key`."""
    return (_raw(n, key) >> np.uint64(11)) * 2.0**-53


def _raw(n: int, key: tuple[int, ...]) -> np.ndarray:
    # Raw bits of a bit generator: numpy promises those for ever, its distributions only per version.
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
