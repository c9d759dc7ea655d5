"""What pictures are compared with: another set, or the statistics of one in a file."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate.features import Measured
from ultrapixel_jax.evaluate.fid import Moments
from ultrapixel_jax.evaluate.statistics import Rows

MOST = 20_000
"""Rows of features up to which a file keeps them beside their statistics, for KID."""
SAME = {"weights": "of another network", "resizing": "with another resizing", "crops": "with other crops"}
"""What must agree, and how it is said where it does not; `crops` counts for crops alone."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Whole pictures, or crops, of what is compared with."""

    rows: Rows | None
    """Features; None where a file has its statistics alone."""
    moments: Moments | None
    """None where they have to be computed from the rows."""
    count: int | None
    """Pictures; None where a file does not say."""

    @property
    def best(self) -> Rows | Moments:
        """What FID is computed from."""
        found = self.rows if self.rows is not None else self.moments
        assert found is not None
        return found


@dataclasses.dataclass(frozen=True)
class Reference:
    """What pictures are compared with."""

    name: str
    parts: Mapping[str, Part]
    """`inception` and `crops`, as far as they are there."""
    measured: Measured | None = None
    """The set, where it is one."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What a file says of its making."""
    notes: tuple[str, ...] = ()


def of_set(measured: Measured) -> Reference:
    """Another set."""
    parts = {}
    for name in ("inception", "crops"):
        features = measured.channels.get(name)
        if features is not None and features.arrays:
            rows = features.rows("features")
            parts[name] = Part(rows, None, rows.count)
    return Reference(measured.pictures.name, parts, measured)


def write_statistics(path: Path, measured: Measured, about: Mapping[str, Any]) -> None:
    """Store `mu` and `sigma` as everybody does, `crops_…` of crops, and the features if they are few.

    Args:
        path: of the file, which ends with `.npz`.
        measured: the set.
        about: weights, resizing and crops, which a later reader compares.

    Raises:
        UserError: it cannot be written.
    """
    contents: dict[str, Any] = {}
    for name, prefix in (("inception", ""), ("crops", "crops_")):
        features = measured.channels.get(name)
        if features is None or not features.arrays:
            continue
        values = features.arrays["features"]
        moments = Moments.of(values)
        contents |= {f"{prefix}mu": moments.mu, f"{prefix}sigma": moments.sigma}
        if len(values) <= MOST:
            contents |= {f"{prefix}features": values, f"{prefix}counts": features.counts}
    contents["about"] = json.dumps({**about, "pictures": len(measured.whole)})
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}.npz")
    with user_errors(path, "statistics"):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **contents)
        partial.replace(path)


def read_statistics(path: Path, about: Mapping[str, Any], features: int) -> Reference:
    """Statistics of a file, this project's or anybody's with `mu` and `sigma`.

    Args:
        path: of the file.
        about: weights, resizing and crops of now.
        features: values of each picture now.

    Raises:
        UserError: no such file, none with statistics, or one of another network, resizing or crops.
    """
    try:
        with user_errors(path, "statistics"), np.load(path) as file:
            contents = {name: file[name] for name in file.files}
            made = json.loads(str(contents.pop("about", "{}")))
    except (ValueError, EOFError, zipfile.BadZipFile, RecursionError) as error:
        raise UserError(f"statistics {path} cannot be read: {error}; they are a .npz file") from error
    notes = [] if made else [f"{path.name} does not say with which network and resizing it was made"]
    for key, said in SAME.items():
        if key in made and made[key] != about[key] and key != "crops":
            raise UserError(f"statistics {path} were made {said}: {made[key]}, and now it is {about[key]}")
    parts = {}
    for name, prefix in (("inception", ""), ("crops", "crops_")):
        if name == "crops" and made.get("crops") != about["crops"]:
            if f"{prefix}mu" in contents and about["crops"] is not None:
                notes.append(f"{path.name} has other crops ({made.get('crops')}), which are not compared")
            continue
        part = _part(path, contents, prefix, features, made.get("pictures"))
        if part is not None:
            parts[name] = part
    if "inception" not in parts:
        raise UserError(f"statistics {path} have no 'mu' and 'sigma', but {', '.join(contents) or 'nothing'}")
    return Reference(path.name, parts, None, made, tuple(notes))


def _part(
    path: Path, contents: Mapping[str, np.ndarray], prefix: str, features: int, count: int | None
) -> Part | None:
    mu, sigma = contents.get(f"{prefix}mu"), contents.get(f"{prefix}sigma")
    if mu is None or sigma is None:
        return None
    if mu.shape != (features,) or sigma.shape != (features, features):
        raise UserError(
            f"statistics {path} are of {mu.shape} and {sigma.shape} values, and this network has {features}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"statistics {path} have values that are not finite")
    rows = None
    if f"{prefix}features" in contents:
        counts = contents[f"{prefix}counts"]
        rows = Rows(contents[f"{prefix}features"], np.repeat(np.arange(len(counts)), counts))
    return Part(rows, Moments(mu.astype(np.float64), sigma.astype(np.float64)), count)
