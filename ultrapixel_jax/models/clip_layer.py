"""The transformer layer that CLIP's text and image towers share."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ultrapixel_jax.models.layers import Dtype, LayerNorm, Linear

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`x·sigmoid(1.702·x)`, OpenAI's approximation."""
    return x * jax.nn.sigmoid(1.702 * x)


class ClipAttention(nn.Module):
    """Multi-head self-attention; at most 257 tokens, so the whole softmax is formed, in float32."""

    heads: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """`mask[b, i, j]`: whether token i sees token j."""
        b, n, c = x.shape

        def project(name: str) -> Float[Array, "b n k d"]:
            y = Linear(c, name=name, param_dtype=self.param_dtype)(x)
            return y.reshape(b, n, self.heads, c // self.heads)

        q, k, v = project("q"), project("k"), project("v")
        scores = jnp.einsum("bikd,bjkd->bkij", q, k, preferred_element_type=jnp.float32)
        scores = scores * (c // self.heads) ** -0.5
        if mask is not None:
            # Finite, so that a row that sees nothing becomes uniform and not NaN.
            scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        y = jnp.einsum("bkij,bjkd->bikd", weights, v, preferred_element_type=jnp.float32)
        y = y.astype(x.dtype).reshape(b, n, c)
        return Linear(c, name="out", param_dtype=self.param_dtype)(y)


class ClipLayer(nn.Module):
    """Pre-norm transformer layer: attention, then an MLP, each with its residual."""

    heads: int
    mlp_width: int
    activation: Activation
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """One layer."""
        dtype = self.param_dtype
        y = LayerNorm(name="norm_1", param_dtype=dtype)(x)
        x = x + ClipAttention(self.heads, name="attention", param_dtype=dtype)(y, mask)
        y = LayerNorm(name="norm_2", param_dtype=dtype)(x)
        y = self.activation(Linear(self.mlp_width, name="mlp_in", param_dtype=dtype)(y))
        return x + Linear(x.shape[-1], name="mlp_out", param_dtype=dtype)(y)
