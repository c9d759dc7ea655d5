"""Stage A: the VQGAN between pixels and stage B's latent, 4:1 (§8).

Public units: images are RGB in [0, 1]; latents are the encoder's output z divided by
`config.scale_factor`, which is what stage B makes. Only `decode` runs when sampling.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ultrapixel_jax.config import StageAConfig
from ultrapixel_jax.models.convolutions import Conv, ConvTransposed, DepthwiseConv
from ultrapixel_jax.models.layers import (
    BatchNorm,
    Dtype,
    Linear,
    gelu,
    layer_norm,
    parameter,
    pixel_shuffle,
    pixel_unshuffle,
)

COMMITMENT = 0.25
"""Weight of the loss that draws z to its codebook entry, beside the one that draws the entry to z."""


class MixingBlock(nn.Module):
    """Depthwise convolution, then an MLP over channels, both residual and modulated by six scalars."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`x + γ₂·depthwise(LN(x)·(1 + γ₀) + γ₁)`, then the same with an MLP and γ₃, γ₄, γ₅."""
        channels = x.shape[-1]
        gammas = parameter(self, "gammas", nn.initializers.zeros, (6,), self.param_dtype).astype(jnp.float32)

        y = modulate(x, gammas[0], gammas[1])
        # Replicate, not zero padding: a tile must keep the true border to decode exactly (tiling.py).
        y = DepthwiseConv("edge", name="depthwise", param_dtype=self.param_dtype)(y)
        x = add_scaled(x, y, gammas[2])

        y = modulate(x, gammas[3], gammas[4])
        y = gelu(Linear(4 * channels, name="mlp_in", param_dtype=self.param_dtype)(y))
        y = Linear(channels, name="mlp_out", param_dtype=self.param_dtype)(y)
        return add_scaled(x, y, gammas[5])


def modulate(
    x: Float[Array, "b h w c"], scale: Float[Array, ""], shift: Float[Array, ""]
) -> Float[Array, "b h w c"]:
    """`LN(x)·(1 + scale) + shift`, in float32 and rounded once."""
    return (layer_norm(x.astype(jnp.float32)) * (1 + scale) + shift).astype(x.dtype)


def add_scaled(
    x: Float[Array, "b h w c"], y: Float[Array, "b h w c"], scale: Float[Array, ""]
) -> Float[Array, "b h w c"]:
    """`x + scale·y`, in float32 and rounded once."""
    return (x.astype(jnp.float32) + scale * y.astype(jnp.float32)).astype(x.dtype)


class Encoder(nn.Module):
    """Pixels to z."""

    config: StageAConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b hp wp 3"], train: bool = False) -> Float[Array, "b h w c"]:
        """Sides of `image` must be multiples of 4."""
        config, dtype = self.config, self.param_dtype
        x = pixel_unshuffle(image, 2)
        x = Linear(config.c_hidden // 2, name="in_conv", param_dtype=dtype)(x)
        x = MixingBlock(name="block_0", param_dtype=dtype)(x)
        x = Conv(config.c_hidden, size=4, stride=2, padding=1, name="down_1", param_dtype=dtype)(x)
        x = MixingBlock(name="block_2", param_dtype=dtype)(x)
        x = Linear(config.c_latent, use_bias=False, name="out_conv", param_dtype=dtype)(x)
        return BatchNorm(1e-5, name="out_norm", param_dtype=dtype)(x, train)


class Decoder(nn.Module):
    """z to pixels."""

    config: StageAConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b hp wp 3"]:
        """Four output pixels per latent pixel in each direction; values are not clipped."""
        config, dtype = self.config, self.param_dtype
        x = Linear(config.c_hidden, name="in_conv", param_dtype=dtype)(z)
        last = config.bottleneck_blocks
        for i in range(1, last + 1):
            x = MixingBlock(name=f"block_{i}", param_dtype=dtype)(x)
        x = ConvTransposed(config.c_hidden // 2, size=4, stride=2, padding=1, name=f"up_{last + 1}",
                           param_dtype=dtype)(x)  # fmt: skip
        x = MixingBlock(name=f"block_{last + 2}", param_dtype=dtype)(x)
        x = Linear(3 * 4, name="out_conv", param_dtype=dtype)(x)
        return pixel_shuffle(x, 2)


class StageA(nn.Module):
    """Encoder, codebook and decoder; call its methods with `apply(..., method="decode")`."""

    config: StageAConfig
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts; `decode` touches the decoder's parameters only."""
        config = self.config
        self.encoder = Encoder(config, self.param_dtype, name="encoder")
        self.decoder = Decoder(config, self.param_dtype, name="decoder")
        bound = 1 / config.codebook_size
        self.codebook = parameter(
            self,
            "codebook",
            lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
            (config.codebook_size, config.c_latent),
            self.param_dtype,
        )

    def encode(self, image: Float[Array, "b hp wp 3"], train: bool = False) -> Float[Array, "b h w c"]:
        """Image in [0, 1] to its latent. `train` normalises by the batch and updates the statistics."""
        return self.encoder(image, train) / self.config.scale_factor

    def quantize(
        self, latent: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"], Float[Array, ""]]:
        """Replace every pixel of a latent by its nearest codebook entry.

        Returns the quantized latent, the entries' indices, and the loss: codebook plus commitment, each
        with the gradient of one side stopped. The quantized latent has a gradient to the codebook but
        none to `latent`; training adds the straight-through term,
        `latent + stop_gradient(quantized - latent)`.
        """
        z = latent.astype(jnp.float32) * self.config.scale_factor
        codebook = self.codebook.astype(jnp.float32)
        indices = nearest_entries(jax.lax.stop_gradient(z), jax.lax.stop_gradient(codebook))
        q = codebook[indices]
        loss = jnp.square(q - jax.lax.stop_gradient(z)).mean()
        loss += COMMITMENT * jnp.square(jax.lax.stop_gradient(q) - z).mean()
        return (q / self.config.scale_factor).astype(latent.dtype), indices, loss

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b hp wp 3"]:
        """Latent to RGB, not clipped to [0, 1]."""
        return self.decoder(latent * self.config.scale_factor)

    def __call__(
        self, image: Float[Array, "b hp wp 3"], train: bool = False
    ) -> tuple[Float[Array, "b hp wp 3"], Int[Array, "b h w"], Float[Array, ""]]:
        """Encode, quantize, decode with the straight-through gradient: what training runs.

        Returns the reconstruction, the codebook indices and the quantizer's loss.
        """
        latent = self.encode(image, train)
        quantized, indices, loss = self.quantize(latent)
        return self.decode(latent + jax.lax.stop_gradient(quantized - latent)), indices, loss


def nearest_entries(z: Float[Array, "b h w c"], codebook: Float[Array, "n c"]) -> Int[Array, "b h w"]:
    """Index of the entry with the smallest squared distance to each pixel.

    One image row at a time: all distances of a 1024² image at once would take 2 GB.
    """

    def row(pixels: Float[Array, "b w c"]) -> Int[Array, "b w"]:
        # Differences rather than |z|² − 2z·e + |e|²: with 4 channels as cheap, and no cancellation.
        distance = jnp.square(pixels[:, :, None, :] - codebook[None, None]).sum(-1)
        return distance.argmin(-1)

    return jnp.moveaxis(jax.lax.map(row, jnp.moveaxis(z, 1, 0)), 0, 1)
