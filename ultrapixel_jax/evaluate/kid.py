"""Kernel inception distance: the unbiased squared MMD with the kernel (x·y/d + 1)³, in float64.

It expects the same of few pictures as of many, where FID grows as they become fewer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from ultrapixel_jax.evaluate.statistics import SEED, Rows, around

SUBSETS, SIZE = 100, 1000
BLOCK = 1024
"""Rows of the kernel that are in memory at a time."""
MOST = 20_000
"""Rows of a set that are looked at; of more, as many of each picture, evenly spaced."""


@dataclasses.dataclass(frozen=True)
class Kid:
    """What is told of two sets."""

    value: float
    """Mean over the subsets."""
    deviation: float
    """Standard deviation over them; 0 where a subset is the whole set."""
    size: int
    """Rows in a subset."""
    interval: tuple[float, float] | None
    """Of the distance between the whole sets, from resamples of pictures."""


def kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """(x·y/d + 1)³."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The unbiased estimate of the squared distance."""
    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(own - 2 * kernel(x, y).mean())


def kid(
    ours: Rows,
    theirs: Rows,
    *,
    subsets: int = SUBSETS,
    size: int = SIZE,
    resamples: int = 0,
    seed: int = SEED,
) -> Kid | None:
    """KID of two sets, by torch-fidelity's draws of subsets; None of sets that have less than two rows.

    Args:
        ours: features of one set.
        theirs: of the other.
        subsets: how many.
        size: rows in each, or as many as the smaller set has.
        resamples: for the interval.
        seed: of subsets and resamples.
    """
    ours, theirs = _thinned(ours), _thinned(theirs)
    x, y = ours.values, theirs.values
    size = min(size, len(x), len(y))
    if size < 2:
        return None
    rng = np.random.RandomState(seed)
    count = 1 if size == len(x) == len(y) else subsets
    found = [
        mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(count)
    ]
    value = float(np.mean(found))
    return Kid(value, float(np.std(found)), size, _interval(value, ours, theirs, resamples, seed))


def _thinned(rows: Rows) -> Rows:
    if len(rows.values) <= MOST:
        return rows
    each = max(1, MOST // rows.count)
    kept = []
    for picture in np.unique(rows.pictures):
        own = np.flatnonzero(rows.pictures == picture)
        kept.append(own[np.unique(np.linspace(0, len(own) - 1, each).round().astype(int))])
    at = np.concatenate(kept)
    return Rows(rows.values[at], rows.pictures[at])


def _interval(
    value: float, ours: Rows, theirs: Rows, resamples: int, seed: int
) -> tuple[float, float] | None:
    """From resamples of pictures, in which no picture is compared with itself or a copy of itself."""
    if resamples < 2 or min(ours.count, theirs.count) < 3:
        return None
    rng = np.random.default_rng(seed)
    sets = []
    for rows in (ours, theirs):
        sizes = np.unique(rows.pictures, return_counts=True)[1].astype(np.float64)
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), resamples).astype(np.float64)
        sets.append((drawn, sizes, _by_picture(rows, rows)))
    total = np.zeros(resamples)
    for drawn, sizes, sums in sets:
        pairs = (drawn @ sums * drawn).sum(1) - drawn**2 @ np.diag(sums)
        with np.errstate(invalid="ignore"):  # of few pictures, all draws may be of one
            total += pairs / ((drawn @ sizes) ** 2 - drawn**2 @ sizes**2)
    (w, w_sizes, _), (v, v_sizes, _) = sets
    total -= 2 * (w @ _by_picture(ours, theirs) * v).sum(1) / ((w @ w_sizes) * (v @ v_sizes))
    return around(value, total[np.isfinite(total)])


def _by_picture(one: Rows, other: Rows) -> Float[np.ndarray, "p q"]:
    """Sums of the kernel over the rows of every pair of pictures."""
    first = [np.flatnonzero(np.r_[True, np.diff(rows.pictures) != 0]) for rows in (one, other)]
    columns = []
    for start in range(0, len(one.values), BLOCK):
        part = kernel(one.values[start : start + BLOCK], other.values)
        columns.append(np.add.reduceat(part, first[1], axis=1))
    return np.add.reduceat(np.concatenate(columns), first[0], axis=0)
