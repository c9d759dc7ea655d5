"""The table of mutants fits the program: every text is there exactly once, and every named test exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.table import MUTANTS


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))


def test_every_mutant_can_be_made() -> None:
    for mutant in MUTANTS:
        assert mutant.new != mutant.old, mutant.name
        ast.parse(mutant.applied((ROOT / mutant.path).read_text()))


def test_every_mutant_has_tests_or_a_reason_to_have_none() -> None:
    for mutant in MUTANTS:
        assert bool(mutant.tests) != bool(mutant.equivalent), mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert (
                Path(file).name.startswith("test_") and f"def {name or 'test_'}" in (ROOT / file).read_text()
            )


@pytest.mark.parametrize("old", ["not in the file", "import"])
def test_a_text_that_is_not_there_once_is_refused(old: str) -> None:
    mutant = Mutant("strange", "training/step.py", old, "")
    with pytest.raises(ValueError, match=r"'strange' replaces .* occurs [0-9]+ times in .*step\.py"):
        mutant.applied((ROOT / mutant.path).read_text())
