"""Applying a name table in either direction, strictly, one tensor at a time.

Every tensor of a file must match exactly one row, every path of ours must be filled exactly once, and
every shape must agree; whatever does not is collected, and all of it is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.rows import Row, fill, regex

LONGEST = 1400
"""Characters of problems that one message has."""

Shapes = Mapping[str, tuple[int, ...]]
Variables = dict[str, Any]


class TableError(UserError):
    """Tensors that do not fit a table; `problems` has one line for each."""

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        room, shown = LONGEST, []
        for problem in self.problems:
            room -= len(problem) + 2
            if room < 0:
                break
            shown.append(problem)
        self.left_out = len(self.problems) - len(shown)
        """How many the message has no room for."""
        more = [f"and {self.left_out} more"] if self.left_out else []
        super().__init__(f"{what:.400}: {len(self.problems)} problem(s): " + "; ".join([*shown, *more]))


@dataclasses.dataclass(frozen=True)
class Step:
    """One tensor's way: file key, its row, and the full paths of ours that it fills."""

    key: str
    row: Row
    paths: tuple[str, ...]


def full_path(path: str) -> str:
    """`path` with its collection: `params/` unless it names another."""
    return path if path.startswith(("batch_stats/", "unused/")) else f"params/{path}"


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts to `{"params/a/kernel": leaf}`, in sorted order."""
    return dict(sorted(traverse_util.flatten_dict(dict(variables), sep="/").items()))


def plan_import(rows: Sequence[Row], keys: Shapes, paths: Shapes, what: str) -> list[Step]:
    """Match every key of a file with its row and check all of it against our paths.

    Args:
        rows: the table.
        keys: shape of every tensor in the file.
        paths: shape of every array of ours, by full path.
        what: how error messages call the file.

    Raises:
        TableError: a key left over, a path not filled or filled twice, a wrong shape.
    """
    problems: list[str] = []
    steps: list[Step] = []
    filled: dict[str, str] = {}
    exact, patterns = _by_pattern([(row.source, row) for row in rows])
    for key, shape in keys.items():
        matches = [(row, {}) for row in exact.get(key, ())]
        matches += [(row, found) for row in patterns if (found := row.match_source(key)) is not None]
        if len(matches) != 1:
            kind = "unexpected" if not matches else f"matched by {len(matches)} rows"
            problems.append(f"{kind}: {key} {tuple(shape)}")
            continue
        row, numbers = matches[0]
        targets = tuple(full_path(fill(t, numbers)) for t in row.targets)
        if unknown := [t for t in targets if t not in paths]:
            problems.append(f"unexpected: {key} {tuple(shape)} (would be {unknown[0]})")
            continue
        for target in targets:
            if target in filled:
                problems.append(f"filled twice: {target} by {filled[target]} and {key}")
            filled[target] = key
        # The file's shape itself: some layouts would take another, such as (out, in) for (out, in, 1, 1).
        expected = _expected_source_shape(row, [paths[t] for t in targets]) if targets else tuple(shape)
        if tuple(shape) != expected:
            problems.append(f"shape: {key} is {tuple(shape)}, expected {expected}")
        steps.append(Step(key, row, targets))
    missing = [path for path in paths if path not in filled]
    problems += [f"missing: {source}" for source in _sources_of(rows, missing)]
    if problems:
        raise TableError(what, list(dict.fromkeys(problems)))
    return steps


def import_tensors(
    steps: Sequence[Step], read: Callable[[str], np.ndarray], dtype: np.dtype | None = None
) -> tuple[Variables, dict[str, np.ndarray]]:
    """Read the planned tensors one by one.

    Returns our variables, and the tensors that are no parameters, by key. Floating tensors are cast
    to `dtype` where one is given.
    """
    flat: dict[str, np.ndarray] = {}
    aside: dict[str, np.ndarray] = {}
    for step in steps:
        tensor = read(step.key)
        if not step.paths:
            aside[step.key] = tensor
            continue
        for path, array in zip(step.paths, step.row.layout.forward(tensor), strict=True):
            keep = dtype is None or path.startswith("batch_stats/")
            flat[path] = _contiguous(array, None if keep else dtype)
    return traverse_util.unflatten_dict(flat, sep="/"), aside


def plan_export(rows: Sequence[Row], paths: Shapes, what: str) -> list[Step]:
    """Match every path of ours with its row, the other way round.

    Raises:
        TableError: a path that no row knows, or several do.
    """
    problems: list[str] = []
    steps: list[Step] = []
    done: set[str] = set()
    exact, patterns = _by_pattern(
        [(full_path(t), (row, Row("", full_path(t)))) for row in rows for t in row.targets]
    )
    for path in paths:
        if path in done:
            continue
        matches = [(row, {}) for row, _ in exact.get(path, ())]
        matches += [
            (row, found) for row, target in patterns if (found := target.match_target(path)) is not None
        ]
        if len(matches) != 1:
            problems.append(f"{len(matches)} rows for {path}")
            continue
        row, numbers = matches[0]
        targets = tuple(full_path(fill(t, numbers)) for t in row.targets)
        if absent := [t for t in targets if t not in paths]:
            problems.append(f"{path} needs {absent[0]} beside it")
            continue
        done.update(targets)
        steps.append(Step(fill(row.source, numbers), row, targets))
    if problems:
        raise TableError(what, problems)
    return steps


def export_specs(steps: Sequence[Step], flat: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every tensor that an export will write, from anything with both."""
    out = {}
    for step in steps:
        arrays = [flat[p] for p in step.paths]
        shape = step.row.layout.inverse(*(_placeholder(a.shape) for a in arrays)).shape
        out[step.key] = (shape, arrays[0].dtype)
    return out


def export_tensors(steps: Sequence[Step], flat: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(key, tensor)` in the released layout, one at a time."""
    for step in steps:
        arrays = [np.asarray(flat[p]) for p in step.paths]
        yield step.key, _contiguous(step.row.layout.inverse(*arrays))


def _by_pattern(named: Sequence[tuple[str, Any]]) -> tuple[dict[str, list[Any]], list[Any]]:
    """What has a name without placeholders by it, and the rest: tables of hundreds of names are looked up."""
    exact: dict[str, list[Any]] = {}
    patterns = []
    for name, value in named:
        if "{" in name:
            patterns.append(value)
        else:
            exact.setdefault(name, []).append(value)
    return exact, patterns


def _contiguous(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """`array` as it lies in files; NumPy's own would give a scalar a dimension."""
    return np.ascontiguousarray(array, dtype).reshape(np.shape(array))


def _placeholder(shape: Sequence[int]) -> np.ndarray:
    """An array of `shape` that takes no memory: layouts run on it as on data."""
    return np.broadcast_to(np.zeros((), np.int8), tuple(shape))


def _expected_source_shape(row: Row, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return row.layout.inverse(*(_placeholder(s) for s in shapes)).shape


def _sources_of(rows: Sequence[Row], paths: Sequence[str]) -> Iterator[str]:
    """The file keys that would fill `paths`, for messages."""
    targets = [(row.source, full_path(target)) for row in rows for target in row.targets]
    exact = {target: source for source, target in reversed(targets) if "{" not in target}
    patterns = [(source, regex(target)) for source, target in targets if "{" in target]
    for path in paths:
        found = ((source, m.groupdict()) for source, r in patterns if (m := r.fullmatch(path)))
        if (source := exact.get(path)) is not None:
            yield source
        elif (match := next(found, None)) is not None:
            yield fill(*match)
        else:
            yield f"nothing in the table fills {path}"
