"""Writing in the background: in order, with its failures, and with nothing lost."""

from __future__ import annotations

import threading

import pytest

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling.writer import Writer


def failing():
    raise UserError("the disk is full")


def test_results_come_in_order_while_more_is_added():
    out, here = [], threading.get_ident()
    gate = threading.Event()

    def slow():
        gate.wait(10)
        return 0

    with Writer(lambda n: out.append((n, threading.get_ident() == here))) as writer:
        writer.add(slow)
        writer.add(lambda: 1)
        assert out == []  # nobody waited
        gate.set()
        for n in range(2, 6):
            writer.add(lambda n=n: n)
        assert len(out) >= 3  # no more wait than two and the one that was added
    assert out == [(n, True) for n in range(6)]


def test_a_failure_is_raised_and_what_was_added_is_done():
    done = []
    writer = Writer(done.append, pending=1)
    with pytest.raises(UserError, match="full"):
        writer.add(failing)
        writer.add(lambda: 1)
        writer.add(lambda: 2)
    writer.add(lambda: 3)
    writer.close()
    assert done[-1] == 3 and done == sorted(done)


def test_at_the_latest_at_the_end():
    with pytest.raises(UserError, match="full"), Writer(lambda _: None) as writer:
        writer.add(failing)


def test_an_interruption_loses_nothing():
    done = []
    with pytest.raises(KeyboardInterrupt), Writer(done.append) as writer:
        writer.add(lambda: 1)
        writer.add(lambda: 2)
        raise KeyboardInterrupt
    assert done == [1, 2]
