"""A tokenizer's files into a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from ultrapixel_jax.checkpoints.directory import CheckpointWriter
from ultrapixel_jax.checkpoints.tokenizer import FILES, PREPARED, prepared


def add_tokenizer(writer: CheckpointWriter, directory: Path) -> None:
    """Copy the tokenizer in `directory`, with its prepared file."""
    for name in FILES:
        if (directory / name).is_file():
            writer.add_file(directory / name, f"tokenizer/{name}")
    if not (directory / PREPARED).is_file():
        writer.add_text(prepared(directory), f"tokenizer/{PREPARED}")
