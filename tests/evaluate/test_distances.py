"""FID, KID and IS beside torch-fidelity and torchmetrics, recorded, and their intervals by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from ultrapixel_jax.evaluate import fid, kid, scores, statistics
from ultrapixel_jax.evaluate.statistics import Rows, rows_of


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(40, 40)) / 40**0.5
    return [rows_of(np.abs(rng.normal(size=(n, 40)) @ mix + s)) for n, s in ((30, 0.1), (25, 0.4), (90, 0.2))]


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """The formula, with scipy's root of the product."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    trace = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b + 1e-14 * np.eye(len(a))).real)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + trace)


def test_figures_are_those_of_torch_fidelity_and_torchmetrics(golden) -> None:
    recorded, metadata = golden("measures")
    ours, theirs = rows_of(recorded["in.ours"]), rows_of(recorded["in.theirs"])
    found, expected = fid.fid(ours, theirs), metadata["found"]
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-9)
    assert found == pytest.approx(expected["torchmetrics_fid"], rel=1e-9)
    assert fid.fid(ours, fid.Moments.of(theirs.values)) == pytest.approx(found, rel=1e-9)
    of_subsets = kid.kid(ours, theirs, size=50)
    assert of_subsets is not None
    assert of_subsets.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert of_subsets.deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)
    first = ours.values[:100]
    assert kid.mmd(first, theirs.values) == pytest.approx(expected["torchmetrics_kid_of_100"], rel=1e-9)
    score = scores.inception_score(rows_of(recorded["in.logits"]))
    assert score.value == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert score.deviation == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_few_and_many_rows_agree_with_the_formula(sets) -> None:
    """Fewer rows than features, by inner products; more, by covariances; each also with repeated rows."""
    rng = np.random.default_rng(2)
    few, fewer, many = sets
    for ours, theirs, kind in ((few, fewer, fid._Grams), (few, many, fid._Grams), (many, many, fid._Dense)):
        measure = fid._measure(ours, theirs)
        assert type(measure) is kind
        assert measure.value(None, None) == pytest.approx(by_hand(ours.values, theirs.values), abs=2e-5)
        w, v = ours.resample(rng), theirs.resample(rng)
        x, y = (np.repeat(s.values, n.astype(int), 0) for s, n in ((ours, w), (theirs, v)))
        assert measure.value(w, v) == pytest.approx(by_hand(x, y), abs=2e-5)
    beside = fid._measure(few, fid.Moments.of(many.values))
    assert type(beside) is fid._Projected
    w = few.resample(rng)
    x = np.repeat(few.values, w.astype(int), 0)
    assert beside.value(w, None) == pytest.approx(by_hand(x, many.values), abs=2e-5)


def test_equal_sets_have_no_distance(sets) -> None:
    few, _, many = sets
    assert fid.fid(few, few) == pytest.approx(0, abs=1e-9)
    assert fid.fid(many, fid.Moments.of(many.values)) == pytest.approx(0, abs=1e-6)


def test_resamples_of_kid_are_those_of_pairs_of_different_pictures() -> None:
    """Against loops over crops: sums by picture, and no picture beside itself or its copy."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 5)), rng.normal(size=(6, 5)) + 0.5
    ours, theirs = Rows(x, np.array([0, 0, 1, 2, 2, 2, 4, 4])), rows_of(y)
    interval = kid._interval(1.0, ours, theirs, 60, seed=5)
    again, values = np.random.default_rng(5), []
    draws = [again.multinomial(n, np.full(n, 1 / n), 60) for n in (4, 6)]
    pictures = [np.array([0, 0, 1, 2, 2, 2, 3, 3]), np.arange(6)]
    for w, v in zip(*draws, strict=True):
        total, usable = 0.0, True
        for rows, drawn, own in ((x, w, pictures[0]), (y, v, pictures[1])):
            pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if own[i] != own[j]]
            weights = [drawn[own[i]] * drawn[own[j]] for i, j in pairs]
            if not sum(weights):
                usable = False
                break
            terms = [(rows[i] @ rows[j] / 5 + 1) ** 3 for i, j in pairs]
            total += np.dot(weights, terms) / sum(weights)
        if not usable:
            continue
        cross = [
            (w[pictures[0][i]] * v[j], (x[i] @ y[j] / 5 + 1) ** 3)
            for i in range(len(x))
            for j in range(len(y))
        ]
        values.append(total - 2 * sum(a * b for a, b in cross) / sum(a for a, _ in cross))
    assert len(values) > 50
    assert interval == pytest.approx(statistics.around(1.0, np.array(values)), rel=1e-9)


def test_intervals_hold_what_they_should() -> None:
    """95 % intervals of a mean, of a proportion and of a distance, over sets drawn again and again."""
    rng, inside = np.random.default_rng(4), {"mean": 0, "share": 0, "fid": 0}
    true = np.array([1.0, 0, 0])
    for _ in range(100):
        low, high = statistics.mean_interval(rng.normal(2, 1, 60), 200) or (0, 0)
        inside["mean"] += low < 2 < high
        low, high = statistics.wilson(float(rng.binomial(40, 0.9)), 40)
        inside["share"] += low < 0.9 < high
    for _ in range(15):
        x, y = rng.normal(size=(150, 3)), rng.normal(size=(150, 3)) + true
        interval, resamples = fid.fid_interval(rows_of(x), rows_of(y), 60)
        assert interval is not None and resamples == 60
        inside["fid"] += interval[0] < 1 < interval[1]  # ‖μ₁ − μ₂‖², as the covariances are equal
    assert inside["mean"] >= 88 and inside["share"] >= 88 and inside["fid"] >= 12, inside
    # R's binom::binom.wilson(8, 10)
    assert statistics.wilson(8.0, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_thousands_of_crops_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid, "MOST", 10)
    rows = kid._thinned(Rows(np.arange(24.0)[:, None], np.repeat([0, 1, 5], 8)))
    assert rows.values[:, 0].tolist() == [0, 4, 7, 8, 12, 15, 16, 20, 23]


def test_a_win_is_a_higher_mean_and_a_tie_half_of_one() -> None:
    ours = {"a": [2.0, 4.0], "b": [1.0], "c": [5.0], "mine": [9.0]}
    theirs = {"a": [2.5], "b": [1.0], "c": [6.0]}
    wins = scores.compare(ours, theirs)
    assert wins is not None
    assert (wins.prompts, wins.wins, wins.rate) == (3, 1.5, 0.5)
    sigmoid = 1 / (1 + np.exp([-0.5, 0.0, 1.0]))
    assert wins.preference == pytest.approx(sigmoid.mean())
    assert scores.compare({"x": [1.0]}, {"y": [1.0]}) is None
    assert scores.clip_scores(np.array([0.25, -0.1])).tolist() == [25.0, 0.0]
