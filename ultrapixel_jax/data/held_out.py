"""The share of the examples that is kept for validation, and the batches that it is read in.

Whether an example is held out is decided by a hash of its id alone: so it is the same for images and for
their cached latents, for any number of shards and processes, and whatever else is in the dataset. A larger
share holds out those of a smaller one too.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt64

from ultrapixel_jax.data.plan import Batch


def key_of(id_: str) -> int:
    """The hash of an example's id: 64 bits, of SHA-256's first."""
    return int.from_bytes(hashlib.sha256(id_.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def chosen(keys: UInt64[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """Whether each example is held out: a `share` of all hashes, the lowest."""
    return keys < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


class HeldOut:
    """Batches of held-out examples: always the same ones, each example once.

    As `plan.Plan`, but with an end. A bucket's last batch is filled up with its last example, and
    `Batch.epochs` is 1 for what only fills.
    """

    def __init__(
        self,
        buckets: Int[np.ndarray, " n"],
        keys: UInt64[np.ndarray, " n"],
        share: float,
        most: int,
        batch_size: int,
    ) -> None:
        """Of the examples with `keys` in `buckets`, the `most` with the lowest keys that are held out."""
        held = np.flatnonzero(chosen(keys, share))
        first = held[np.argsort(keys[held], kind="stable")][:most]
        self.count = len(first)
        """Examples that are read."""
        self.buckets: list[int] = np.unique(buckets[first]).tolist()
        ordered = [first[buckets[first] == b] for b in self.buckets]
        self.members: list[Int64[np.ndarray, " m"]] = [np.sort(own) for own in ordered]
        """The examples of each, ascending."""
        self._batches = [
            Batch(bucket, examples, np.arange(start, start + batch_size) // len(own))
            for bucket, own in zip(self.buckets, ordered)
            for start in range(0, len(own), batch_size)
            for examples in [own[np.minimum(np.arange(start, start + batch_size), len(own) - 1)]]
        ]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def batch(self, step: int) -> Batch:
        """Batch number `step`, from 0."""
        return self._batches[step]
