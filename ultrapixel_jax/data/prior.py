"""Batches of two datasets in turn: what is learned, and what must not be forgotten ("prior preservation").

A batch is of one of them alone, so that each has its own buckets, captions and order. Which is a function of
the batch's number: batches come in pairs of one dataset, since a task may treat every second one in another
way (`PersonalTask` has two resolutions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ultrapixel_jax.data.buckets import HW
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.files import fingerprint


def loader_of(
    config: DataConfig, *, rows: Sequence[int] | np.ndarray | None = None, held_out: float = 0.0
) -> Loader:
    """The batches of `config`, with those of `config.prior` among them where there is one.

    Raises:
        UserError: as `Loader`.
    """
    kind = WithPrior if config.prior else Loader
    return kind(config, rows=rows, held_out=held_out)


class WithPrior(Loader):
    """Endless batches of `config.path`, and a share of `config.prior`, of which nothing is held out."""

    def __init__(
        self,
        config: DataConfig,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        held_out: float = 0.0,
    ) -> None:
        """Open both; see `Loader`."""
        super().__init__(config, rows=rows, held_out=held_out)
        self._prior = Loader(dataclasses.replace(config, path=config.prior, prior=""), rows=rows)
        self._number = 0
        self.identity = fingerprint([self.identity, self._prior.identity, config.prior_share])

    def of_prior(self, step: int) -> int:
        """How many of the first `step` batches are of the prior dataset."""
        pairs, odd = divmod(step, 2)
        before, after = (int(n * self.config.prior_share) for n in (pairs, pairs + 1))
        return 2 * before + odd * (after - before)

    @property
    def step(self) -> int:
        """Number of the batch that comes next, of both datasets."""
        return self._number

    def bucket_counts(self) -> dict[HW, int]:
        """Number of examples of both in each bucket that has some."""
        counts, more = super().bucket_counts(), self._prior.bucket_counts()
        return {size: counts.get(size, 0) + more.get(size, 0) for size in {**counts, **more}}

    def seek(self, step: int) -> None:
        """Go to batch `step`, at no cost."""
        of_prior = self.of_prior(step)
        super().seek(step - of_prior)
        self._prior.seek(of_prior)
        self._number = step

    def size_of(self, step: int) -> HW:
        """Height and width in pixels of batch `step`."""
        of_prior = self.of_prior(step)
        if self.of_prior(step + 1) > of_prior:
            return self._prior.size_of(of_prior)
        return super().size_of(step - of_prior)

    def __next__(self) -> dict[str, Any]:
        prior = self.of_prior(self._number + 1) > self.of_prior(self._number)
        batch = next(self._prior) if prior else super().__next__()
        self._number += 1
        return batch

    def close(self) -> None:
        """End threads and worker processes of both; the next batch starts them again."""
        super().close()
        self._prior.close()
