"""What UltraPixel adds to stage C (paper section 3; §4): four networks, one per guided place.

Each upsamples the LR pass's map to the HR size (`ImplicitUpsampler`, the INR; or `BilinearConv`),
fuses it with the HR map (`GuidanceNetwork`), and normalises with knowledge of the scale
(`ScaleAwareNorm`). The steps are those of the released weights, numbered as in §4.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import GuidanceConfig
from ultrapixel_jax.models.attention import attention
from ultrapixel_jax.models.blocks import modulate
from ultrapixel_jax.models.convolutions import Conv
from ultrapixel_jax.models.embeddings import fourier_features
from ultrapixel_jax.models.layers import Dtype, LayerNorm, Linear, apply_linear, gelu, layer_norm, parameter
from ultrapixel_jax.models.resize import Size, resize_bilinear, resize_nearest
from ultrapixel_jax.models.stage_c import PLACES

FREQUENCIES = 64
"""Frequencies per axis of the implicit function's Fourier features; fixed in every configuration."""
POSITIONS = 1024
"""Position embeddings of guidance tokens: the most that an LR map may have."""


def _uniform_by_inputs(key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
    """Uniform in ±1/√in for a matrix whose last row is the bias."""
    bound = 1.0 / math.sqrt(shape[0] - 1)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class HyperTransformer(nn.Module):
    """One pre-norm transformer layer over guidance tokens and weight tokens (step 2).

    The projections see SiLU of the normed tokens, and there is no output projection.
    """

    config: GuidanceConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n f"]) -> Float[Array, "b n f"]:
        """Attention, then a two-layer MLP, each added to its input."""
        c, dtype = self.config, self.param_dtype
        inner = c.inr_heads * c.inr_head_dim

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], c.inr_heads, c.inr_head_dim)

        y = jax.nn.silu(LayerNorm(param_dtype=dtype, name="attention_norm")(x))
        q = Linear(inner, param_dtype=dtype, name="query")(y)
        k = Linear(inner, param_dtype=dtype, name="key")(y)
        v = Linear(inner, param_dtype=dtype, name="value")(y)
        x = x + attention(heads(q), heads(k), heads(v)).reshape(*x.shape[:-1], inner)
        y = LayerNorm(param_dtype=dtype, name="mlp_norm")(x)
        y = gelu(Linear(c.inr_width, param_dtype=dtype, name="mlp_in")(y))
        return x + Linear(c.inr_width, param_dtype=dtype, name="mlp_out")(y)


class ImplicitUpsampler(nn.Module):
    """The INR: guidance tokens become the weights of a small MLP over coordinates (paper figure 4)."""

    config: GuidanceConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, g: Float[Array, "b h w c"], size: Size) -> Float[Array, "b H W c"]:
        """Guidance map `g`, with at most 1024 pixels, at `size`."""
        c, dtype = self.config, self.param_dtype
        b, h, w, _ = g.shape
        widths = (4 * FREQUENCIES, c.inr_channels, c.inr_channels)
        tokens_per_layer = [min(c.inr_groups, out) for out in widths[1:]]
        normal = nn.initializers.normal(1.0)
        wtokens = parameter(self, "wtokens", normal, (sum(tokens_per_layer), c.inr_width), dtype)
        posemb = parameter(self, "posemb", normal, (POSITIONS, c.inr_width), dtype)

        # Steps 1 and 2: tokens of the guidance, then the learnable weight tokens, through one layer.
        x = Linear(c.inr_channels, param_dtype=dtype, name="input_layer")(g).reshape(b, h * w, -1)
        x = Linear(c.inr_width, param_dtype=dtype, name="tokenizer")(x)
        x = x + posemb[None, : h * w].astype(g.dtype)
        weights = jnp.broadcast_to(wtokens[None].astype(g.dtype), (b, *wtokens.shape))
        x = HyperTransformer(c, dtype, name="transformer")(jnp.concatenate([x, weights], axis=1))
        x = x[:, h * w :]

        # Steps 3 and 4: weights of the implicit function, and the function at every HR pixel.
        y = fourier_features(*size, FREQUENCIES).astype(g.dtype)[None]
        first = 0
        for i, count in enumerate(tokens_per_layer):
            fan_in, out = widths[i], widths[i + 1]
            base = parameter(self, f"wb{i}", _uniform_by_inputs, (fan_in + 1, out), dtype).astype(jnp.float32)
            m = LayerNorm(param_dtype=dtype, name=f"wb{i}_norm")(x[:, first : first + count])
            m = Linear(fan_in, param_dtype=dtype, name=f"wb{i}_mapper")(m).swapaxes(1, 2)
            m = jnp.tile(m.astype(jnp.float32), (1, 1, -(-out // count)))[..., :out]
            kernel = base[None, :-1] * m
            norm = jnp.sqrt(jnp.square(kernel).sum(1, keepdims=True))
            kernel = (kernel / jnp.maximum(norm, 1e-12)).astype(g.dtype)
            y = jnp.matmul(y, kernel, preferred_element_type=jnp.float32) + base[None, -1:]
            y = (jax.nn.relu(y) if i == 0 else y).astype(g.dtype)
            first += count

        # Step 5.
        y = Linear(c.channels, param_dtype=dtype, name="output_layer")(y)
        return y.reshape(b, *size, c.channels) + resize_nearest(g, size)


class BilinearConv(nn.Module):
    """The ablation's upsampler: bilinear to the HR size, then a 3×3 convolution (paper table 3)."""

    config: GuidanceConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, g: Float[Array, "b h w c"], size: Size) -> Float[Array, "b H W c"]:
        """Guidance map `g` at `size`."""
        conv = Conv(self.config.channels, param_dtype=self.param_dtype, name="conv")
        return conv(resize_bilinear(g, size))


class FusionInput(nn.Module):
    """First linear layer of the fusion, over `concat(u, x)`, split so that u's half is computed once."""

    features: int
    channels: int
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Declare kernel and bias over the concatenation."""
        init = nn.initializers.xavier_uniform()
        self.kernel = parameter(self, "kernel", init, (2 * self.channels, self.features), self.param_dtype)
        self.bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype)

    def constant(self, u: Float[Array, "b H W c"]) -> Float[Array, "b H W f"]:
        """The part of the upsampled guidance, bias included."""
        return apply_linear(u, self.kernel[: self.channels], self.bias)

    def __call__(
        self, x: Float[Array, "b H W c"], constant: Float[Array, "b H W f"]
    ) -> Float[Array, "b H W f"]:
        """The whole layer, given `constant(u)`."""
        return apply_linear(x, self.kernel[self.channels :], None) + constant


class ScaleAwareNorm(nn.Module):
    """`y·(1 + a(s)) + b(s) + y` with the embedded scale s (paper eq. 4; §4, step 9)."""

    channels: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, y: Float[Array, "b H W c"], e_s: Float[Array, "1 e"]) -> Float[Array, "b H W c"]:
        """Modulate the normed map by the scale embedding `e_s`."""
        # The released files carry two 1×1 convolutions that nothing uses. They are kept outside
        # `params`, so that files round trip but nothing trains them.
        for name in ("alpha", "gamma"):
            shape = (self.channels, self.channels)
            self.variable("unused", f"{name}_kernel", jnp.zeros, shape, self.param_dtype)
            self.variable("unused", f"{name}_bias", jnp.zeros, shape[:1], self.param_dtype)
        mapper = Linear(2 * self.channels, param_dtype=self.param_dtype, name="mapper")
        return modulate(y, mapper(e_s)) + y


class GuidanceNetwork(nn.Module):
    """The network of one place: `prepare` once per image, then a call per step."""

    config: GuidanceConfig
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Create the layers that the configuration asks for."""
        c, dtype = self.config, self.param_dtype
        upsamplers = {"inr": ImplicitUpsampler, "bilinear_conv": BilinearConv}
        self.upsampler = upsamplers[c.upsampler](c, dtype)
        self.fuse_in = FusionInput(c.channels // 4, c.channels, dtype)
        self.fuse_out = Linear(c.channels, param_dtype=dtype)
        self.mapp_t = Linear(2 * c.channels, param_dtype=dtype)
        if c.scale_aware_norm:
            self.hr_norm = ScaleAwareNorm(c.channels, dtype)

    def upsample(self, g: Float[Array, "b h w c"], size: Size) -> Float[Array, "b H W c"]:
        """Guidance at the HR size (steps 1 to 5)."""
        return self.upsampler(g, size)

    def prepare(self, g: Float[Array, "b h w c"], size: Size) -> Float[Array, "b H W f"]:
        """All that depends on the guidance and the size alone: u's half of step 6."""
        return self.fuse_in.constant(self.upsample(g, size))

    def __call__(
        self,
        x: Float[Array, "b H W c"],
        prepared: Float[Array, "b H W f"],
        e_t: Float[Array, "b e"],
        e_s: Float[Array, "1 e"],
    ) -> Float[Array, "b H W c"]:
        """What is added to `x`, before the guide weight (steps 6 to 9).

        Args:
            x: HR map.
            prepared: from `prepare`.
            e_t: embedding of the noise level.
            e_s: embedding of the scale.
        """
        y = self.fuse_out(gelu(self.fuse_in(x, prepared)))
        y = layer_norm(modulate(y, self.mapp_t(e_t)))
        return self.hr_norm(y, e_s) if self.config.scale_aware_norm else y


class Guidance(nn.Module):
    """The four networks, by place."""

    config: GuidanceConfig
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Create one network per place of stage C."""
        for place in PLACES:
            setattr(self, place, GuidanceNetwork(self.config, self.param_dtype))

    def prepare(
        self, features: dict[str, Float[Array, "b h w c"]], size: Size
    ) -> dict[str, Float[Array, "b H W f"]]:
        """`GuidanceNetwork.prepare` at every place, from the LR pass's features."""
        return {place: getattr(self, place).prepare(features[place], size) for place in PLACES}

    def fuse(
        self,
        place: str,
        x: Float[Array, "b H W c"],
        prepared: Float[Array, "b H W f"],
        e_t: Float[Array, "b e"],
        e_s: Float[Array, "1 e"],
        weight: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "b H W c"]:
        """`x` plus `weight` times the network's output (step 10)."""
        added = getattr(self, place)(x, prepared, e_t, e_s).astype(jnp.float32)
        return (x.astype(jnp.float32) + weight * added).astype(x.dtype)

    def __call__(
        self, features: dict[str, Float[Array, "b h w c"]], x: Float[Array, "b H W c"]
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Touch every parameter, for initialisation."""
        size = (x.shape[1], x.shape[2])
        e = jnp.zeros((1, self.config.time_dim), jnp.float32)
        prepared = self.prepare(features, size)
        return {place: self.fuse(place, x, prepared[place], e, e) for place in PLACES}
