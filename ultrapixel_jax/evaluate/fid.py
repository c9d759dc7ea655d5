"""Fréchet's distance between sets of features, in float64, and its interval.

    FID = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)

With A the centred features over √(n − 1), so that Σ = AᵀA, the trace of the root is the sum of the singular
values of A₂A₁ᵀ: where there are fewer pictures than features, a matrix of pictures by pictures, which a
thousand resamples can afford.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
from jaxtyping import Float

from ultrapixel_jax.evaluate.statistics import SEED, Rows, Weights, bootstrap

Matrix = Float[np.ndarray, "d d"]
Vector = Float[np.ndarray, " d"]
RESAMPLES_DENSE = 100
"""Most resamples where both sets have more rows than features: each takes two eigendecompositions."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance (over n − 1) of a set's features."""

    mu: Vector
    sigma: Matrix

    @classmethod
    def of(cls, rows: Float[np.ndarray, "n d"], weights: Weights | None = None) -> Moments:
        """Of features, of which each counts as often as `weights` says."""
        rows = np.asarray(rows, np.float64)
        w = np.ones(len(rows)) if weights is None else weights
        mu = w @ rows / w.sum()
        centred = rows - mu
        return cls(mu, (centred * w[:, None]).T @ centred / (w.sum() - 1))


def root(sigma: Matrix) -> Matrix:
    """The symmetric root of a covariance; eigenvalues that rounding made negative count as zero."""
    values, vectors = scipy.linalg.eigh(sigma)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def distance(one: Moments, other: Moments) -> float:
    """FID of two sets of which mean and covariance are known."""
    half = root(one.sigma)
    eigenvalues = scipy.linalg.eigvalsh(half @ other.sigma @ half)
    trace = float(np.sqrt(np.maximum(eigenvalues, 0)).sum())
    difference = one.mu - other.mu
    return float(difference @ difference + np.trace(one.sigma) + np.trace(other.sigma) - 2 * trace)


def fid(ours: Rows, theirs: Rows | Moments) -> float:
    """FID of a set of features, and another set or its moments."""
    return _measure(ours, theirs).value(None, None)


def fid_interval(
    ours: Rows, theirs: Rows | Moments, resamples: int, seed: int = SEED
) -> tuple[tuple[float, float] | None, int]:
    """Interval of the FID, and from how many resamples of both sets' pictures (of ours, beside moments)."""
    if ours.count < 2 or (isinstance(theirs, Rows) and theirs.count < 2):
        return None, 0
    measure = _measure(ours, theirs)
    if isinstance(measure, _Dense):
        resamples = min(resamples, RESAMPLES_DENSE)

    def again(rng: np.random.Generator) -> float:
        first = ours.resample(rng)
        return measure.value(first, theirs.resample(rng) if isinstance(theirs, Rows) else None)

    return bootstrap(measure.value(None, None), again, resamples, seed), resamples


def _measure(ours: Rows, theirs: Rows | Moments) -> _Grams | _Projected | _Dense:
    features = ours.values.shape[1]
    if isinstance(theirs, Moments):
        return _Projected(ours, theirs) if len(ours.values) < features else _Dense(ours, theirs)
    small = min(len(ours.values), len(theirs.values)) < features
    few = max(len(ours.values), len(theirs.values)) < 4 * features
    return _Grams(ours, theirs) if small and few else _Dense(ours, theirs)


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """Rows that count, their weights, mean, and the trace of the covariance."""

    kept: np.ndarray
    scale: Weights
    mu: Vector
    trace: float

    @classmethod
    def of(cls, rows: np.ndarray, squares: np.ndarray, weights: Weights | None) -> _Weighted:
        w = np.ones(len(rows)) if weights is None else weights
        n, kept = w.sum(), np.flatnonzero(w)
        mu = w @ rows / n
        trace = (w @ squares - n * (mu @ mu)) / (n - 1)
        return cls(kept, np.sqrt(w[kept] / (n - 1)), mu, float(trace))


class _Grams:
    """Two sets of few rows: all from their inner products, which are computed once."""

    def __init__(self, ours: Rows, theirs: Rows) -> None:
        shift = np.concatenate([ours.values, theirs.values]).mean(0)  # small numbers cancel less
        self._sets = [rows.values - shift for rows in (ours, theirs)]
        self._squares = [(x**2).sum(1) for x in self._sets]
        self._products = self._sets[0] @ self._sets[1].T

    def value(self, ours: Weights | None, theirs: Weights | None) -> float:
        (x, y), exact = self._sets, ours is None
        a, b = _Weighted.of(x, self._squares[0], ours), _Weighted.of(y, self._squares[1], theirs)
        m = self._products[np.ix_(a.kept, b.kept)]
        m = m - (x[a.kept] @ b.mu)[:, None] - (y[b.kept] @ a.mu)[None] + a.mu @ b.mu
        m = a.scale[:, None] * m * b.scale[None]
        difference = a.mu - b.mu
        return float(difference @ difference) + a.trace + b.trace - 2 * _singular_sum(m, exact=exact)


class _Projected:
    """Few rows beside moments."""

    def __init__(self, ours: Rows, theirs: Moments) -> None:
        self._rows = ours.values - theirs.mu
        self._squares = (self._rows**2).sum(1)
        self._root, self._trace = root(theirs.sigma), float(np.trace(theirs.sigma))
        self._projected = self._rows @ self._root

    def value(self, ours: Weights | None, theirs: Weights | None) -> float:
        del theirs
        a = _Weighted.of(self._rows, self._squares, ours)
        m = a.scale[:, None] * (self._projected[a.kept] - a.mu @ self._root)
        return float(a.mu @ a.mu) + a.trace + self._trace - 2 * _singular_sum(m, exact=ours is None)


class _Dense:
    """Many rows: by their moments."""

    def __init__(self, ours: Rows, theirs: Rows | Moments) -> None:
        self._ours, self._theirs = ours, theirs

    def value(self, ours: Weights | None, theirs: Weights | None) -> float:
        other = self._theirs
        if isinstance(other, Rows):
            other = Moments.of(other.values, theirs)
        return distance(Moments.of(self._ours.values, ours), other)


def _singular_sum(m: np.ndarray, *, exact: bool) -> float:
    """Sum of the singular values; three times as fast, with half the digits, where it need not be `exact`."""
    if exact:
        return float(np.sum(scipy.linalg.svdvals(m)))
    square = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    return float(np.sqrt(np.maximum(scipy.linalg.eigvalsh(square), 0)).sum())
