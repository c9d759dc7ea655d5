"""The previewer: a small decoder from stage C's latent to RGB at 8× (§9)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import PreviewerConfig
from ultrapixel_jax.models.convolutions import Conv, ConvTransposed
from ultrapixel_jax.models.layers import BatchNorm, Dtype, Linear, gelu


class Previewer(nn.Module):
    """Convolutions, each followed by GELU and batch norm, doubling the size three times.

    Submodules are numbered as in the released file: convolution n, (GELU n + 1), norm n + 2.
    """

    config: PreviewerConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, latent: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b hp wp 3"]:
        """Latent to RGB, not clipped to [0, 1]."""
        dtype = self.param_dtype
        first, *others = self.config.channels

        def activate(x: Float[Array, "b h2 w2 f"], n: int) -> Float[Array, "b h2 w2 f"]:
            return BatchNorm(1e-5, name=f"norm_{n + 2}", param_dtype=dtype)(gelu(x), train)

        x = activate(Linear(first, name="conv_0", param_dtype=dtype)(latent), 0)
        x = activate(Conv(first, name="conv_3", param_dtype=dtype)(x), 3)
        n = 6
        for channels in others:
            x = activate(ConvTransposed(channels, name=f"up_{n}", param_dtype=dtype)(x), n)
            x = activate(Conv(channels, name=f"conv_{n + 3}", param_dtype=dtype)(x), n + 3)
            n += 6
        return Linear(3, name=f"conv_{n}", param_dtype=dtype)(x)
