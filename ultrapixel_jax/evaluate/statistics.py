"""What the measures share: resampling of pictures, intervals, and proportions.

Rows of features belong to pictures: of whole pictures one each, of crops many. What is drawn again is a
picture with all its rows, since crops of one picture are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

SEED = 2020
"""Of shuffling, subsets and resampling: torch-fidelity's."""
LEVEL = 0.95
"""Of every interval."""

Weights = Float[np.ndarray, " _n"]
"""How often each row counts in a resample."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features of a set."""

    values: Float[np.ndarray, "n d"]
    pictures: Int[np.ndarray, " n"]
    """Number of the picture that each row is of, in rising order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values, np.float64))

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(np.unique(self.pictures))

    def resample(self, rng: np.random.Generator) -> Weights:
        """Weights of the rows of as many pictures, drawn with replacement."""
        _, place, sizes = np.unique(self.pictures, return_inverse=True, return_counts=True)
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)))
        return drawn[place].astype(np.float64)


def rows_of(values: Float[np.ndarray, "n d"]) -> Rows:
    """Rows of which each is a picture."""
    return Rows(values, np.arange(len(values)))


def bootstrap(
    estimate: float, resampled: Callable[[np.random.Generator], float], resamples: int, seed: int = SEED
) -> tuple[float, float] | None:
    """Interval of an estimate from resamples: their spread around their own mean, put around the estimate.

    Distances of resamples are larger than those of the sets, since they repeat pictures; that shift says
    nothing about the estimate's precision, and is taken out.
    """
    if resamples < 2:
        return None
    rng = np.random.default_rng(seed)
    values = np.array([resampled(rng) for _ in range(resamples)])
    return around(estimate, values)


def around(estimate: float, values: Float[np.ndarray, " n"]) -> tuple[float, float] | None:
    """`LEVEL` of `values` around their mean, put around `estimate`; None where they are not finite."""
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - values.mean()
    return float(estimate + low), float(estimate + high)


def mean_interval(
    values: Float[np.ndarray, " n"], resamples: int, seed: int = SEED
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean of one value per picture."""
    if len(values) < 2 or resamples < 2:
        return None
    rng = np.random.default_rng(seed)
    n = len(values)
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    return around(float(values.mean()), drawn @ values / n)


def wilson(wins: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a proportion; a tie is half a win."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    share, n = wins / count, count
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
