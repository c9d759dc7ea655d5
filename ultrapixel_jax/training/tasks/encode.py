"""A batch's images and captions through the encoders, or what was cached of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.clip_vision import ClipVision
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.training.tasks.base import Batch


class Text(NamedTuple):
    """What stage C is conditioned on."""

    states: Float[Array, "b t e"]
    pooled: Float[Array, "b p"]
    image: Float[Array, "b i"]


def pixels(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Bytes to RGB in [0, 1]."""
    return images.astype(jnp.float32) / 255


def latent(
    batch: Batch, name: str, frozen: Mapping[str, Any], config: CascadeConfig, dtype: Any
) -> Float[Array, "b h w c"]:
    """The cached EffNet latent `latent` or `latent_lr`, or that of `image` or `image_lr`; float32."""
    if name in batch:
        return batch[name].astype(jnp.float32)
    image = pixels(batch[name.replace("latent", "image")])
    encoder = EffnetEncoder(config.effnet_encoder)
    out: Any = encoder.apply(frozen["effnet_encoder"], image.astype(dtype))
    return jax.lax.stop_gradient(out.astype(jnp.float32))


def words(batch: Batch, frozen: Mapping[str, Any], offsets: Float[Array, "e c"]) -> Float[Array, "e c"]:
    """Embeddings of new words: the mean of those of the tokens that each starts from, and its offset.

    `starts` of the batch has the ids of these tokens, filled up with -1, for each sample the same.
    """
    starts = batch["starts"][0]
    table = frozen["clip_text"]["params"]["token_embedding"]
    rows = jax.lax.stop_gradient(table[jnp.maximum(starts, 0)].astype(jnp.float32))
    counts = (starts >= 0).astype(jnp.float32)[..., None]
    return (rows * counts).sum(1) / jnp.maximum(counts.sum(1), 1.0) + offsets


def text(
    batch: Batch,
    frozen: Mapping[str, Any],
    config: CascadeConfig,
    dtype: Any,
    words: Float[Array, "e c"] | None = None,
) -> Text:
    """States and vectors of the captions; zeros for the image vector where it is not used.

    `frozen` may hold a text encoder that is in training; `words` are embeddings of new words.
    """
    if "text_states" in batch and "clip_text" not in frozen:
        return Text(*(batch[n].astype(dtype) for n in ("text_states", "text_pooled", "image_vector")))
    encoder = ClipText(config.clip_text, dtype=dtype)
    out: Any = encoder.apply(frozen["clip_text"], batch["ids"], batch["mask"], words)
    states, pooled = out
    image = jnp.zeros((states.shape[0], config.stage_c.c_clip_img), dtype)
    if "image_vector" in batch:
        image = batch["image_vector"].astype(dtype)
    elif "image_clip" in batch:
        vision = ClipVision(config.clip_vision)
        vectors: Any = vision.apply(frozen["clip_vision"], batch["image_clip"].astype(dtype))
        image = jnp.where(batch["use_image"][:, None], vectors, 0).astype(dtype)
    return Text(states.astype(dtype), pooled.astype(dtype), image)
