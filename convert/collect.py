"""Networks of training runs and checkpoints, gathered in one checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ultrapixel_jax.checkpoint import CheckpointWriter
from ultrapixel_jax.config import to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.manifest import ComponentInfo
from ultrapixel_jax.sources import Sources
from ultrapixel_jax.tokenizer import FILES
from ultrapixel_jax.weights import FLOAT32_ALWAYS


def collect(
    directories: Sequence[Path],
    output: Path,
    only: Sequence[str],
    dtype: str | None,
    *,
    compressed: bool = False,
) -> None:
    """Write the networks of `directories`, of equal ones the last, to the checkpoint `output`.

    Args:
        directories: checkpoints and runs; a run brings what it was trained on along.
        output: a new directory.
        only: components to take; all without.
        dtype: of what is written, but for networks that sampling keeps in float32; None leaves each
            network in its own.
        compressed: store them compressed.

    Raises:
        UserError: a directory is neither, a component is missing, or `output` cannot be written.
    """
    sources = Sources(directories)
    real = {name: entry for name, entry in sources.entries.items() if entry.origin != "random numbers"}
    for name in only:
        if name not in real:
            raise UserError(f"the sources have no component {name!r}; they have {', '.join(real)}")
    with CheckpointWriter(output, compressed=compressed) as writer:
        writer.sampling = {name: to_dict(config) for name, config in sources.sampling.items()}
        for name in only or list(real):
            entry = real[name]
            kept = name in FLOAT32_ALWAYS or dtype is None
            variables = entry.load(None if kept else jnp.dtype(dtype), None)
            info = ComponentInfo(config=to_dict(entry.config), source=Path(entry.origin).name)
            writer.add(name, jax.tree.map(np.asarray, variables), info)
            print(f"{name} from {entry.origin}")
        for file in FILES:
            if (sources.tokenizer / file).is_file():
                writer.add_file(sources.tokenizer / file, f"tokenizer/{file}")
