"""A few of the sources and prompt files that `fuzz.py` makes, always the same."""

from tests.data import fuzz


def test_whatever_lies_in_a_source_is_taken_or_named() -> None:
    seen = fuzz.run(60, derandomize=True)
    assert seen["built"] >= 5 and seen["refused"] >= 5


def test_whatever_stands_in_a_prompts_file_is_read_or_refused_in_a_line() -> None:
    seen = fuzz.run_prompts(150, derandomize=True)
    assert seen["read"] >= 10 and seen["refused"] >= 20 and seen["steered"]
