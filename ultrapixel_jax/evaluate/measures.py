"""All measures of a set, each a figure with its interval and what it was computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate import fid, kid, resizing, scores, statistics
from ultrapixel_jax.evaluate.features import Measured, checked, measure
from ultrapixel_jax.evaluate.networks import Channel, Networks
from ultrapixel_jax.evaluate.references import Part, Reference, of_set, read_statistics
from ultrapixel_jax.evaluate.sets import PictureSet
from ultrapixel_jax.models import measuring

PICK = "pickscore"
PAPER = ("clip_h14", "clip_bigg")
"""CLIPs that the paper's table may have been made with; the first that is there is `paper`."""
SEED_OF_CROPS = 42
TITLES: Mapping[str, str] = {
    "fid": "FID", "kid": "KID", "is": "IS", "fid_patch": "FID-patch", "kid_patch": "KID-patch",
    "is_patch": "IS-patch", "clip_b32": "CLIP score (B/32)", "clip_l14": "CLIP score (L/14)",
    "clip_h14": "CLIP score (H/14)", "clip_bigg": "CLIP score (bigG)", PICK: "PickScore",
    "win_rate": "win rate", "latency": "seconds",
}  # fmt: skip
"""How tables and plots call the figures."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What figures depend on, besides pictures and weights."""

    resizing: resizing.Convention = "clean"
    """Of whole pictures to what Inception takes."""
    crops: resizing.Crops | None = "grid"
    """For the patch variants; None leaves them out."""
    crops_seed: int = SEED_OF_CROPS
    """Of random crops."""
    clips: tuple[str, ...] = ("clip_l14",)
    """For the CLIP score, as far as they are among the networks."""
    resamples: int = 1000
    """For intervals."""
    subsets: int = kid.SUBSETS
    """Of KID."""
    subset_size: int = kid.SIZE
    """Of each of them."""
    seed: int = statistics.SEED
    """Of shuffles, subsets and resamples."""

    def about(self, networks: Networks) -> dict[str, Any]:
        """What statistics of a set belong to."""
        crops = self.crops if self.crops in (None, "grid") else f"{self.crops} random, seed {self.crops_seed}"
        weights = networks.origin("inception").sha256 if "inception" in networks else None
        return {"weights": weights, "resizing": self.resizing, "crops": crops}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measure."""

    value: float
    pictures: int
    """Of the set."""
    interval: tuple[float, float] | None = None
    """95 %."""
    deviation: float | None = None
    """Over KID's subsets and IS's splits; of scores, over the pictures."""
    rows: int | None = None
    """Crops of the set, for the patch variants."""
    others: int | None = None
    """Pictures that it was compared with."""
    note: str = ""


Figures = dict[str, Figure]


def channels_of(
    networks: Networks, settings: Settings, *, prompts: bool, only: Sequence[str] = ()
) -> list[Channel]:
    """What a set is looked at with; CLIPs where there are prompts. `only` some of the names, if given."""
    out = []
    if "inception" in networks:
        out.append(networks.inception(settings.resizing))
        if settings.crops is not None:
            out.append(networks.crops(settings.resizing, settings.crops, settings.crops_seed))
    if prompts:
        names = [name for name in (*settings.clips, PICK) if name in networks]
        out += [networks.clip(name) for name in dict.fromkeys(names)]
    return [channel for channel in out if not only or channel.name in only]


def chosen_clips(networks: Networks, given: Sequence[str]) -> tuple[str, ...]:
    """The CLIPs that are asked for, `paper` by its network's name; without any, all that are there.

    Raises:
        UserError: one of them is missing.
    """
    if not given:
        return tuple(name for name in networks.names if name in measuring.CLIPS and name != PICK)
    names = []
    for name in given:
        if name == "paper":
            name = next((found for found in PAPER if found in networks), PAPER[0])
        networks.require(name, "--clip")
        names.append(name)
    return tuple(dict.fromkeys(names))


# ---------------------------------------------------------------------------- figures


def figures(
    measured: Measured,
    networks: Networks,
    settings: Settings,
    *,
    against: Reference | None = None,
    versus: Measured | None = None,
    tell: Callable[[str], Any] = lambda _: None,
) -> tuple[Figures, dict[str, list[float]]]:
    """All measures of a set, and every picture's scores (of those that could be read, in order).

    Args:
        measured: the set, in the channels that it was looked at with.
        networks: for the prompts.
        settings: of all figures.
        against: what FID and KID compare with.
        versus: a set whose pictures of the same prompts are compared by PickScore.
        tell: told what is computed next.
    """
    out: Figures = {}
    for channel, suffix in (("inception", ""), ("crops", "_patch")):
        features = measured.channels.get(channel)
        if features is None or not features.arrays:
            continue
        rows, logits = features.rows("features"), features.rows("logits")
        crops = len(rows.values) if suffix else None
        part = against.parts.get(channel) if against else None
        if part is not None:
            tell(TITLES[f"fid{suffix}"])
            out[f"fid{suffix}"] = _fid(rows, part, settings, crops)
            if part.rows is not None:
                tell(TITLES[f"kid{suffix}"])
                found = kid.kid(
                    rows, part.rows, subsets=settings.subsets, size=settings.subset_size,
                    resamples=settings.resamples, seed=settings.seed,
                )  # fmt: skip
                if found is not None:
                    out[f"kid{suffix}"] = Figure(
                        found.value, rows.count, found.interval, found.deviation, crops, part.rows.count,
                        f"subsets of {found.size}",
                    )  # fmt: skip
        tell(TITLES[f"is{suffix}"])
        score = scores.inception_score(logits, resamples=settings.resamples, seed=settings.seed)
        note = f"{score.splits} splits"
        out[f"is{suffix}"] = Figure(
            score.value, rows.count, score.interval, score.deviation, crops, None, note
        )
    each = {name: _scores(name, measured, networks) for name in measured.channels if name in measuring.CLIPS}
    for name, values in each.items():
        interval = statistics.mean_interval(values, settings.resamples, settings.seed)
        out[name] = Figure(float(values.mean()), len(values), interval, float(values.std()))
    if versus is not None and PICK in each and PICK in versus.channels:
        wins = scores.compare(
            _by_prompt(measured, each[PICK]), _by_prompt(versus, _scores(PICK, versus, networks))
        )
        if wins is not None:
            out["win_rate"] = Figure(
                wins.rate, wins.prompts, wins.interval, None, None, wins.prompts,
                f"mean preference {wins.preference:.3f}",
            )  # fmt: skip
    return out, {name: values.tolist() for name, values in each.items()}


def _fid(rows: statistics.Rows, part: Part, settings: Settings, crops: int | None) -> Figure:
    value = fid.fid(rows, part.best)
    interval, resamples = fid.fid_interval(rows, part.best, settings.resamples, settings.seed)
    width = rows.values.shape[1]
    notes = []
    if len(rows.values) <= width:
        notes.append(f"{len(rows.values)} rows of {width} values: the covariance is singular")
    if interval is not None and resamples != settings.resamples:
        notes.append(f"{resamples} resamples")
    return Figure(value, rows.count, interval, None, crops, part.count, "; ".join(notes))


def _scores(name: str, measured: Measured, networks: Networks) -> np.ndarray:
    """CLIP score or PickScore of every picture that could be read."""
    prompts = [measured.pictures.samples[i].prompt or "" for i in measured.whole]
    texts = networks.texts(name, prompts)
    images = measured.channels[name].arrays["image"].astype(np.float64)
    cosines = (images * np.stack([texts[prompt] for prompt in prompts])).sum(1)
    return networks.scale(name) * cosines if name == PICK else scores.clip_scores(cosines)


def _by_prompt(measured: Measured, values: np.ndarray) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for i, value in zip(measured.whole, values, strict=True):
        out.setdefault(measured.pictures.samples[i].prompt or "", []).append(float(value))
    return out


# ---------------------------------------------------------------------------- what is compared with


def reference(
    where: Path,
    networks: Networks,
    settings: Settings,
    directory: Path | None,
    *,
    pictures: Callable[[Path], PictureSet],
    workers: int = 2,
    progress: Callable[[int], Any] = lambda _: None,
) -> Reference:
    """The set or the statistics at `where`.

    Raises:
        UserError: it is neither, or does not belong to `settings` and the network.
    """
    networks.require("inception", "--against")
    if where.suffix == ".npz":
        return read_statistics(where, settings.about(networks), networks.features)
    if not where.is_dir():
        raise UserError(f"--against {str(where)!r} is neither a folder of pictures nor a .npz file")
    channels = channels_of(networks, settings, prompts=False)
    found = measure(pictures(where), channels, directory, workers=workers, progress=progress)
    return of_set(checked(found))
