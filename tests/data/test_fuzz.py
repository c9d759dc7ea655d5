"""A few of the sources that `fuzz.py` makes, always the same."""

from tests.data import fuzz


def test_whatever_lies_in_a_source_is_taken_or_named() -> None:
    seen = fuzz.run(60, derandomize=True)
    assert seen["built"] >= 5 and seen["refused"] >= 5
