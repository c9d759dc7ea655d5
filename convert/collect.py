"""Networks of training runs and checkpoints, gathered in one checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convert.tokenizer import add_tokenizer
from ultrapixel_jax.checkpoints.directory import CheckpointWriter
from ultrapixel_jax.checkpoints.sources import RANDOM, Form, Sources
from ultrapixel_jax.checkpoints.weights import FLOAT32_ALWAYS
from ultrapixel_jax.config import to_dict
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
) -> None:
    """Write the networks of `directories`, of equal ones the last, to the checkpoint `output`.

    Args:
        directories: checkpoints and runs; a run brings what it was trained on along.
        output: a new directory.
        only: components to take; all without.
        dtype: of what is written, but for networks that sampling keeps in float32; None leaves each
            network in its own.
        compressed: store them compressed.
        mantissa_bits: round to this many, but for networks that sampling keeps in float32 (`rounded`).

    Raises:
        UserError: a directory is neither, a component is missing, or `output` cannot be written.
    """
    sources = Sources(directories)
    real = {name: entry for name, entry in sources.entries.items() if entry.origin != RANDOM}
    for name in only:
        if name not in real:
            raise UserError(f"the sources have no component {name!r}; they have {', '.join(real)}")
    with CheckpointWriter(output, compressed=compressed) as writer:
        writer.sampling = {name: to_dict(config) for name, config in sources.sampling.items()}
        for name in only or list(real):
            entry = real[name]
            kept = name in FLOAT32_ALWAYS or dtype is None
            variables = jax.tree.map(np.asarray, entry.load(Form(None if kept else jnp.dtype(dtype))))
            if mantissa_bits is not None and name not in FLOAT32_ALWAYS:
                variables = jax.tree.map(lambda x: rounded(x, mantissa_bits), variables)
            writer.add(name, variables, entry.info)
            unknown = "" if components.kind_of(name) else ", which no network here is made of"
            print(f"{name} from {entry.origin}{unknown}")
        add_tokenizer(writer, sources.tokenizer)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Floating-point `x` with the nearest mantissas of `bits` bits, in its own dtype: compresses better."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(x.dtype)
