"""Batches of two datasets in turn: those of each alone, in an order that any step can begin at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_loader import Batch, assert_same, config, read
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.data.prior import WithPrior, loader_of
from ultrapixel_jax.errors import UserError


def both(settings: DataConfig, count: int, start: int = 0) -> list[Batch]:
    with loader_of(settings) as loader:
        loader.seek(start)
        return [next(loader) for _ in range(count)]


@pytest.fixture(scope="module")
def settings(records: Path) -> DataConfig:
    """The same pictures twice: those of the second dataset have another batch size, order and captions."""
    return config(records, prior=str(records), prior_share=0.25)


def test_batches_are_those_of_each_dataset_in_pairs(settings: DataConfig) -> None:
    found = both(settings, 16)
    own = read(dataclasses.replace(settings, prior=""), 12)
    turns = [n // 2 in (3, 7) for n in range(16)]  # every fourth pair
    assert_same([batch for batch, prior in zip(found, turns) if not prior], own)
    assert_same([batch for batch, prior in zip(found, turns) if prior], own[:4])
    for start in (6, 7, 13):
        assert_same(both(settings, 3, start), found[start : start + 3])
    with loader_of(settings) as loader:
        assert [loader.size_of(step) for step in range(16)] == [batch["bucket"] for batch in found]
        with loader_of(dataclasses.replace(settings, prior="")) as alone:
            assert type(alone) is Loader and alone.identity != loader.identity
            counts = alone.bucket_counts()
        assert loader.bucket_counts() == {size: 2 * n for size, n in counts.items()}
        for _ in range(7):
            next(loader)
        with loader_of(settings) as other:
            other.restore(loader.state())
            assert other.step == 7
            assert_same([next(other)], found[7:8])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_the_share_is_kept_from_any_step_on(settings: DataConfig, share: float) -> None:
    with loader_of(dataclasses.replace(settings, prior_share=share)) as loader:
        assert isinstance(loader, WithPrior)
        before = [loader.of_prior(step) for step in range(201)]
    turns = np.diff(before)
    assert before[0] == 0 and set(turns) <= {0, 1} and before[200] == round(200 * share)
    assert np.array_equal(turns[::2], turns[1::2])
    windows = np.convolve(turns, np.ones(20), "valid")
    assert windows.min() >= 20 * share - 2 and windows.max() <= 20 * share + 2


def test_shares_that_are_none(records: Path) -> None:
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            config(records, prior="x", prior_share=share)
