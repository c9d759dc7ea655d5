"""Networks of training runs and checkpoints, gathered in one checkpoint directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.tokenizer import add_tokenizer
from ultrapixel_jax.checkpoints.directory import CheckpointWriter
from ultrapixel_jax.checkpoints.sources import RANDOM, Entry, Form, Sources
from ultrapixel_jax.checkpoints.weights import FLOAT32_ALWAYS
from ultrapixel_jax.config import to_dict
from ultrapixel_jax.config.networks import NOT_DRAWN
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath
from ultrapixel_jax.models import components


def collect(
    directories: Sequence[AnyPath],
    output: Path,
    only: Sequence[str],
    dtype: str | None,
    *,
    compressed: bool = False,
    mantissa_bits: int | None = None,
    mean: bool = False,
) -> None:
    """Write the networks of `directories`, of equal ones the last or their mean, to the checkpoint `output`.

    Args:
        directories: checkpoints and runs; a run brings what it was trained on along.
        output: a new directory.
        only: components to take; all without.
        dtype: of what is written, but for networks that sampling keeps in float32; None leaves each
            network in its own.
        compressed: store them compressed.
        mantissa_bits: round to this many, but for networks that sampling keeps in float32 (`rounded`).
        mean: of a network that several directories have themselves, the mean of their weights (`averaged`).

    Raises:
        UserError: a directory is neither, a component is missing, networks differ of which the mean is to be
            taken, or `output` cannot be written.
    """
    sources = Sources(directories)
    each = [Sources([directory]) for directory in directories] if mean else []
    real = {name: entry for name, entry in sources.entries.items() if entry.origin != RANDOM}
    for name in only:
        if name not in real:
            raise UserError(f"the sources have no component {name!r}; they have {', '.join(real)}")
    with CheckpointWriter(output, compressed=compressed) as writer:
        writer.sampling = {name: to_dict(config) for name, config in sources.sampling.items()}
        for name in only or list(real):
            entry = real[name]
            info, origin = entry.info, entry.origin
            kept = name in FLOAT32_ALWAYS or dtype is None
            form = Form(None if kept else jnp.dtype(dtype))
            several = [one.entries[name] for one in each if one.has_itself(name)]
            if len(several) > 1:
                variables = averaged(name, several, form)
                names = ", ".join(e.info.source for e in several)
                config = {**info.config, **trained_on([e.info.config for e in several])}
                info = dataclasses.replace(info, config=config, source=f"mean of {names}")
                origin = f"the mean of {len(several)} sources"
            else:
                variables = jax.tree.map(np.asarray, entry.load(form))
            if mantissa_bits is not None and name not in FLOAT32_ALWAYS:
                variables = jax.tree.map(lambda x: rounded(x, mantissa_bits), variables)
            writer.add(name, variables, info)
            unknown = "" if components.kind_of(name) else ", which no network here is made of"
            print(f"{name} from {origin}{unknown}")
        add_tokenizer(writer, sources.tokenizer)


def trained_on(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sizes that all of `configs` together were trained on; unknown where one of them is, or has none."""
    found: dict[str, Any] = {}
    if all(name in config for name in NOT_DRAWN for config in configs):
        sides, ratios = ([config[name] for config in configs] for name in NOT_DRAWN)
        known = None not in sides and None not in ratios
        least, most = (min(s[0] for s in sides), max(s[1] for s in sides)) if known else (None, None)
        found = dict(zip(NOT_DRAWN, ([least, most], max(ratios)) if known else (None, None)))
    return found


def averaged(name: str, entries: Sequence[Entry], form: Form) -> Any:
    """The mean of `entries`, the network `name` of several sources, taken in float64.

    Of runs that began with the same weights, it is often better than each of them (Wortsman et al., "Model
    soups", 2022).

    Raises:
        UserError: one has other parameters.
    """
    all_of = [jax.tree.map(np.asarray, entry.load(form)) for entry in entries]
    for entry, own in zip(entries, all_of):
        if jax.tree.map(np.shape, own) != jax.tree.map(np.shape, all_of[0]):
            raise UserError(f"{name} of {entry.origin} has other parameters than that of {entries[0].origin}")

    def mean(*arrays: np.ndarray) -> np.ndarray:
        return np.mean([x.astype(np.float64) for x in arrays], 0).astype(arrays[0].dtype)

    return jax.tree.map(mean, *all_of)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Floating-point `x` with the nearest mantissas of `bits` bits, in its own dtype: compresses better."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(x.dtype)
