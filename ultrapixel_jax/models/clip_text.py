"""CLIP's text tower: token ids to text states and a pooled vector (§9)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ultrapixel_jax.config import ClipTextConfig
from ultrapixel_jax.models.clip_layer import Activation, ClipLayer
from ultrapixel_jax.models.layers import Dtype, LayerNorm, Linear, gelu, parameter


class ClipText(nn.Module):
    """The text encoder. Ids carry no dtype, so that of the states is the field `dtype`."""

    config: ClipTextConfig
    param_dtype: Dtype = jnp.float32
    dtype: Dtype = jnp.float32
    activation: Activation = gelu

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "b n"],
        mask: Int[Array, "b n"] | Bool[Array, "b n"],
        extra_embeddings: Float[Array, "e c"] | None = None,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b p"]]:
        """Encode padded prompts.

        Args:
            ids: token ids, at most `config.positions` of them.
            mask: 1 for tokens, 0 for padding. Nothing attends to padding; padded positions are computed
                and returned nevertheless, as stage C was trained on them.
            extra_embeddings: rows for the ids from `config.vocab_size` on (personalisation).

        Returns:
            The last layer's output *before* the final layer norm, and the pooled vector: the normed
            state at the end of text, projected.
        """
        config, dtype = self.config, self.param_dtype
        init = nn.initializers.normal(0.02)
        table = parameter(self, "token_embedding", init, (config.vocab_size, config.width), dtype)
        positions = parameter(self, "position_embedding", nn.initializers.normal(0.01),
                               (config.positions, config.width), dtype)  # fmt: skip
        x = look_up(table, ids, extra_embeddings) + positions[None, : ids.shape[1]].astype(jnp.float32)
        x = x.astype(self.dtype)

        visible = causal_mask(mask.astype(bool))
        for i in range(config.layers):
            layer = ClipLayer(
                config.heads, config.mlp_width, self.activation, name=f"layer_{i}", param_dtype=dtype
            )
            x = layer(x, visible)

        end = jnp.take_along_axis(x, end_of_text(ids, config.vocab_size)[:, None, None], axis=1)[:, 0]
        pooled = LayerNorm(name="final_norm", param_dtype=dtype)(end)
        pooled = Linear(config.projection, use_bias=False, name="text_projection", param_dtype=dtype)(pooled)
        return x, pooled


def look_up(
    table: Float[Array, "v c"], ids: Int[Array, "b n"], extra: Float[Array, "e c"] | None
) -> Float[Array, "b n c"]:
    """Embeddings in float32; ids from v on are rows of `extra`."""
    vocab = table.shape[0]
    known = table[jnp.minimum(ids, vocab - 1)].astype(jnp.float32)
    if extra is None:
        return known
    new = extra[jnp.clip(ids - vocab, 0, extra.shape[0] - 1)].astype(jnp.float32)
    return jnp.where((ids < vocab)[..., None], known, new)


def causal_mask(valid: Bool[Array, "b n"]) -> Bool[Array, "b n n"]:
    """Token i sees the tokens up to itself that are no padding."""
    n = valid.shape[1]
    return jnp.tril(jnp.ones((n, n), bool))[None] & valid[:, None, :]


def end_of_text(ids: Int[Array, "b n"], vocab_size: int) -> Int[Array, " b"]:
    """Position of the first end-of-text token, which is the last row of the released vocabulary.

    Padding may repeat that token, and appended tokens have higher ids: hence neither the last one nor
    the argmax of the ids.
    """
    return jnp.argmax(ids == vocab_size - 1, axis=1)
