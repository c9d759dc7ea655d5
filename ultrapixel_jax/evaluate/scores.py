"""Scores of pictures by themselves and with their prompts: IS, CLIP score, PickScore and who wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from jaxtyping import Float

from ultrapixel_jax.evaluate.statistics import SEED, Rows, around, wilson

SPLITS = 10


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """exp of the mean divergence between a picture's classes and those of all."""

    value: float
    """Mean over the splits."""
    deviation: float
    """Standard deviation over them (population)."""
    splits: int
    interval: tuple[float, float] | None
    """Of the score of the whole set, from resamples, put around `value`."""


def inception_score(
    rows: Rows, *, resamples: int = 0, splits: int = SPLITS, seed: int = SEED
) -> InceptionScore:
    """IS of logits, as torch-fidelity has it: shuffled, over splits in order.

    Args:
        rows: logits, without the last layer's bias.
        resamples: for the interval.
        splits: at most as many as there are rows.
        seed: of the shuffle and the resamples.
    """
    logits = rows.values[np.random.RandomState(seed).permutation(len(rows.values))]
    p, log_p = scipy.special.softmax(logits, 1), scipy.special.log_softmax(logits, 1)
    n, splits = len(p), min(splits, len(p))
    scores = [
        _score(p[i * n // splits : (i + 1) * n // splits], log_p[i * n // splits : (i + 1) * n // splits])
        for i in range(splits)
    ]
    value = float(np.mean(scores))
    interval = None
    if resamples > 1 and rows.count > 1:
        p, log_p = scipy.special.softmax(rows.values, 1), scipy.special.log_softmax(rows.values, 1)
        own, rng = (p * log_p).sum(1), np.random.default_rng(seed)
        drawn = np.stack([rows.resample(rng) for _ in range(resamples)])
        drawn /= drawn.sum(1, keepdims=True)
        mean = drawn @ p
        interval = around(value, np.exp(drawn @ own - scipy.special.xlogy(mean, mean).sum(1)))
    return InceptionScore(value, float(np.std(scores)), splits, interval)


def _score(p: Float[np.ndarray, "n k"], log_p: Float[np.ndarray, "n k"]) -> float:
    mean = p.mean(0, keepdims=True)
    return float(np.exp((p * (log_p - np.log(mean))).sum(1).mean()))


def clip_scores(cosines: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """100·max(cos, 0) of every picture."""
    return 100 * np.maximum(np.asarray(cosines, np.float64), 0)


@dataclasses.dataclass(frozen=True)
class Wins:
    """How often one set's picture of a prompt scores higher than the other's."""

    prompts: int
    """That both sets have pictures of."""
    wins: float
    """A tie is half a one."""
    preference: float
    """Mean probability that ours is preferred: the softmax of the two scores."""

    @property
    def rate(self) -> float:
        """Share of the prompts."""
        return self.wins / self.prompts

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        return wilson(self.wins, self.prompts)


def compare(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Wins | None:
    """Wins by the mean score of every prompt's pictures; None where the sets share no prompt."""
    shared = [prompt for prompt in ours if prompt in theirs]
    if not shared:
        return None
    a = np.array([np.mean(ours[prompt]) for prompt in shared])
    b = np.array([np.mean(theirs[prompt]) for prompt in shared])
    wins = float((a > b).sum() + 0.5 * (a == b).sum())
    return Wins(len(shared), wins, float(scipy.special.expit(a - b).mean()))
