"""Text encoding: prompts to what stages C and B are conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.compilation.program import placed
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.diffusion.two_branch import Prompts
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.sampling.stages.base import Setup, Stage

EXTRA_TOKENS = 64
"""Rows for new words behind the embedding of the vocabulary: always as many, so that none compiles anew."""


class TextEncoder(Stage):
    """CLIP's text tower and its tokenizer."""

    networks = ("clip_text",)

    def __init__(
        self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any], tokenizer: Tokenizer
    ) -> None:
        super().__init__(variables)
        self.tokenizer = tokenizer
        self._image_width, self._mesh = config.stage_c.c_clip_img, setup.mesh
        self.replace_extra(np.zeros((EXTRA_TOKENS, config.clip_text.width), np.float32))
        clip = ClipText(config.clip_text, dtype=setup.dtype, param_dtype=setup.dtype)

        def encode(v: Any, ids: Any, mask: Any) -> Any:
            return clip.apply(v["clip_text"], ids, mask, v["extra"])

        self._encode = setup.program("encode", encode, batched=[1, 2])

    def replace_extra(self, rows: Float[np.ndarray, "e c"]) -> None:
        """Take `rows` as the embeddings of the tokens that the vocabulary does not have."""
        whole = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
        self._extra = jnp.asarray(rows) if whole is None else placed(rows, whole)

    def __call__(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> Prompts:
        """Both encoded, the negative ones as the unconditional half; without an image's vector."""
        ids, mask = self.tokenizer([*prompts, *negative_prompts])
        states, pooled = self._encode({**self.variables, "extra": self._extra}, ids, mask)
        image = np.zeros((len(ids), self._image_width), np.float32)
        jax.block_until_ready(states)
        return Prompts(states, pooled, jnp.asarray(image))
