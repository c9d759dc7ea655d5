"""The order of training: complete, unmixed, and the same for everyone."""

import collections
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrapixel_jax.data.plan import Plan, shuffled, uniforms

BUCKETS = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(lambda v: np.array(v, np.int32))


@given(BUCKETS, st.integers(1, 9), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_every_example_once_per_epoch_and_no_leftover_lost(
    buckets: np.ndarray, batch: int, seed: int
) -> None:
    plan = Plan(buckets, batch, seed)
    epochs = 2 * batch + 1
    met: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for step in range(plan.batches_before(epochs)):
        b = plan.batch(step)
        assert len(b.examples) == batch
        assert set(buckets[b.examples].tolist()) == {b.bucket}, "sizes are mixed"
        met[b.bucket] += zip(b.epochs.tolist(), b.examples.tolist())
    for bucket in set(buckets.tolist()):
        members = set(np.flatnonzero(buckets == bucket).tolist())
        # In all: what whole batches hold; the rest, fewer than a batch, is carried on.
        assert len(met[bucket]) == epochs * len(members) // batch * batch
        by_epoch = collections.defaultdict(list)
        for epoch, example in met[bucket]:
            by_epoch[epoch].append(example)
        for epoch, examples in by_epoch.items():
            assert len(examples) == len(set(examples)), "an example came twice in an epoch"
            if epoch < max(by_epoch):
                assert set(examples) == members


@given(BUCKETS, st.integers(1, 9), st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_epochs_are_found_from_the_step(buckets: np.ndarray, batch: int, step: int) -> None:
    plan = Plan(buckets, batch, 0)
    epoch = plan.epoch_of(step)
    assert plan.batches_before(epoch) <= step < plan.batches_before(epoch + 1)


def test_a_batch_needs_no_other_one() -> None:
    buckets = np.random.default_rng(0).integers(0, 7, 200)
    plan, again = Plan(buckets, 8, 3), Plan(buckets, 8, 3)
    forward = [plan.batch(k) for k in range(60)]
    for k in (59, 0, 31, 58):
        for a, b in zip(again.batch(k), forward[k]):
            assert np.array_equal(a, b)
    copy = pickle.loads(pickle.dumps(plan))
    assert np.array_equal(copy.batch(42).examples, forward[42].examples)
    far = plan.batch(10**9)
    assert len(far.examples) == 8


def test_epochs_and_seeds_differ() -> None:
    buckets = np.zeros(64, np.int32)

    def epoch(seed: int, number: int) -> list[int]:
        plan = Plan(buckets, 8, seed)
        first = plan.batches_before(number)
        return np.concatenate([plan.batch(first + k).examples for k in range(8)]).tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_batches_of_buckets_are_shuffled_together() -> None:
    plan = Plan(np.repeat([0, 1], 256), 8, 0)
    which = [plan.batch(k).bucket for k in range(64)]
    assert which.count(0) == which.count(1) == 32
    assert sum(a != b for a, b in itertools.pairwise(which)) > 16


def test_random_numbers_are_uniform_and_pinned() -> None:
    values = uniforms(4000, (1, 2, 3))
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    # A run must find its order again after an update of numpy.
    assert shuffled(10, (0, 1, 2)).tolist() == PINNED
    assert uniforms(2, (0, 1, 2)).tolist() == PINNED_UNIFORMS


PINNED = [6, 7, 9, 2, 8, 3, 0, 5, 1, 4]
PINNED_UNIFORMS = [0.790174605053907, 0.9179574015747577]
