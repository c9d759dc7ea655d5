"""The LoRA of a run or a converted checkpoint, as sampling takes it."""

from __future__ import annotations

import os

import jax
import numpy as np

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.config import LoraConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.lora import Lora, changes, named_tokens, stored_tokens

INDICES = "tokens.indices"
"""Which rows of the vocabulary the tokens of a file were, kept aside at conversion."""


def of_directory(directory: str | os.PathLike[str], vocabulary: int, *, ema: bool = True) -> Lora:
    """The LoRA of a run or checkpoint, for a text encoder whose vocabulary has so many tokens.

    Raises:
        UserError: it has none, or is damaged.
    """
    sources = Sources([directory], ema=ema)
    if "lora" not in sources.entries:
        found = ", ".join(sources.entries) or "nothing"
        raise UserError(f"{directory} has no LoRA, but {found}; give a LoRA's file, or a run that trains one")
    return of_sources(sources, vocabulary)


def of_sources(sources: Sources, vocabulary: int) -> Lora:
    """The component `lora` of `sources`, in memory."""
    entry = sources.entries["lora"]
    config = entry.config
    assert isinstance(config, LoraConfig)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    variables = sources.load("lora", config, place=lambda path, struct: here)
    params = jax.tree.map(np.asarray, variables["params"])
    found = {"stage_c": changes(params, config.alpha)}
    if "clip_text" in params:
        found["clip_text"] = changes(params["clip_text"], config.alpha)
    tokens, offsets = (), {}
    if "embeddings" in params:
        vectors = np.asarray(params["embeddings"], np.float32)
        if config.tokens:
            tokens = named_tokens(config, vectors)
        else:
            indices = entry.info.kept_aside.get(INDICES, vocabulary + np.arange(len(vectors)))
            tokens, offsets = stored_tokens(vectors, indices, vocabulary)
    return Lora(entry.origin, {network: own for network, own in found.items() if own}, tokens, offsets)
