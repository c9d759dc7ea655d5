"""The three blocks that stages B and C are made of, and a level of them (§2).

C residual convolution (`ResBlock`), T timestep modulation (`TimestepBlock`), A attention (`AttnBlock`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.models.attention import attention
from ultrapixel_jax.models.convolutions import DepthwiseConv
from ultrapixel_jax.models.dropout import dropout, keys_for
from ultrapixel_jax.models.layers import (
    Dtype,
    Linear,
    gelu,
    layer_norm,
    mirrored,
    mlp_kernels,
    parameter,
    per_channel,
    scale_channels,
    sum_of_squares,
)
from ultrapixel_jax.models.resize import resize_bilinear
from ultrapixel_jax.sharding import constrain
from ultrapixel_jax.target import platform

KeysValues = tuple[Float[Array, "... _t _k _d"], Float[Array, "... _t _k _d"]]
"""Keys and values of the conditioning tokens, (batch, tokens, heads, width), for one attention block."""
TimeEmbedding = Mapping[str, Float[Array, "b 64"]]


class GlobalResponseNorm(nn.Module):
    """GRN: each channel scaled by its L2 norm over the whole map, relative to the mean of all channels."""

    param_dtype: Dtype = jnp.float32

    def affine(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b c"], Float[Array, " c"]]:
        """(factor, shift) that `x` is to be scaled and moved by; statistics in float32 over the whole map,
        sharded or not.
        """
        return self.affine_of(sum_of_squares(x))

    @nn.compact
    def affine_of(self, squares: Float[Array, "b c"]) -> tuple[Float[Array, "b c"], Float[Array, " c"]]:
        """The same from the sums of squares over each map, in float32."""
        channels = squares.shape[-1]
        gamma = parameter(self, "gamma", nn.initializers.zeros, (channels,), self.param_dtype)
        beta = parameter(self, "beta", nn.initializers.zeros, (channels,), self.param_dtype)
        # A channel can be zero everywhere, where the root has no gradient; 0, as in torch, and not 0·∞.
        norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        relative = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return per_channel(gamma, 2) * relative + 1.0, beta

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`gamma·(x·n) + beta + x`."""
        return scale_channels(x, *self.affine(x))


class ResBlock(nn.Module):
    """C: depthwise convolution and a channel MLP with GRN; a skip joins after the norm."""

    channels: int
    dropout: float = 0.0
    out_scale: float = 1.0
    """Factor on the last kernel's initial values."""
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skip: Float[Array, "b h w s"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Add the block's change to `x`; with dropout where there are `keys`."""
        y = DepthwiseConv(param_dtype=self.param_dtype, name="depthwise")(x)
        if platform() == "gpu":
            # As one kernel with the norm, the nine taps take XLA over a minute to compile, and read a copy of
            # the map that has a border.
            y = jax.lax.optimization_barrier(y)
        y = layer_norm(y)
        if skip is not None:
            y = jnp.concatenate([y, skip], axis=-1)
        init = mirrored(nn.initializers.xavier_uniform(), axis=1)
        expand = Linear(4 * self.channels, kernel_init=init, param_dtype=self.param_dtype, name="expand")
        grn = GlobalResponseNorm(param_dtype=self.param_dtype, name="grn")
        init = mirrored(nn.initializers.variance_scaling(self.out_scale**2, "fan_avg", "uniform"), axis=0)
        contract = Linear(self.channels, kernel_init=init, param_dtype=self.param_dtype, name="contract")
        drops = keys is not None and self.dropout
        kernels = "" if drops or "lora" in self.variables else mlp_kernels(y, self.channels)
        if kernels:  # imported here, for Pallas takes a while to import
            mlp: Any = importlib.import_module(f"ultrapixel_jax.models.{kernels}_mlp")
            hidden, squares = mlp.gelu_of_product(y, *expand.weights(y))
            return mlp.product_onto(x, hidden, *grn.affine_of(squares), *contract.weights(hidden))
        y = gelu(expand(y))
        if not drops:
            return x + contract(y, grn.affine(y))
        return x + contract(dropout(grn(y), self.dropout, keys))


class TimestepBlock(nn.Module):
    """T: `x·(1 + a) + b`, with a and b summed over the noise level and every further condition."""

    channels: int
    conditions: Sequence[str] = ()
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], time: TimeEmbedding) -> Float[Array, "b h w c"]:
        """Modulate `x` by the embeddings in `time`."""
        total = jnp.zeros((x.shape[0], 2 * self.channels), jnp.float32)
        for name in ("r", *self.conditions):
            mapper = Linear(
                2 * self.channels, kernel_init=nn.initializers.zeros, param_dtype=self.param_dtype,
                name="mapper" if name == "r" else f"mapper_{name}",
            )  # fmt: skip
            total = total + mapper(time[name])
        return modulate(x, total)


def modulate(x: Float[Array, "b h w c"], ab: Float[Array, "#b c2"]) -> Float[Array, "b h w c"]:
    """`x·(1 + a) + b` with the halves a, b of `ab`, in float32."""
    # Two numbers a channel are gathered where `tensor` divides channels, and not the map.
    ab = constrain(ab, "batch", "channel")
    a, b = jnp.split(ab[:, None, None].astype(jnp.float32), 2, axis=-1)
    return (x.astype(jnp.float32) * (1.0 + a) + b).astype(x.dtype)


class AttnBlock(nn.Module):
    """A: one softmax over the map's own tokens and the conditioning tokens.

    The conditioning's keys and values do not depend on `x`: `keys_values` gives them once per prompt.
    """

    channels: int
    heads: int
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Name the layers."""
        self.kv_mapper = Linear(self.channels, param_dtype=self.param_dtype)
        self.query = Linear(self.channels, param_dtype=self.param_dtype)
        self.key = Linear(self.channels, param_dtype=self.param_dtype)
        self.value = Linear(self.channels, param_dtype=self.param_dtype)
        self.out = Linear(self.channels, param_dtype=self.param_dtype)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, self.channels // self.heads)

    def keys_values(self, tokens: Float[Array, "b t e"]) -> KeysValues:
        """Keys and values of the conditioning `tokens`."""
        mapped = self.kv_mapper(jax.nn.silu(tokens))
        return self._heads(self.key(mapped)), self._heads(self.value(mapped))

    def __call__(self, x: Float[Array, "b h w c"], kv: KeysValues) -> Float[Array, "b h w c"]:
        """Add the attention's output to `x`."""
        b, h, w, c = x.shape
        tokens = layer_norm(x).reshape(b, h * w, c)
        # Gathered where devices divide the rows: a divided axis cannot be extended without moving all of it.
        # Heads that `tensor` divides stay divided: each device attends with its own.
        own = (constrain(layer(tokens), "batch", "tokens", "heads") for layer in (self.key, self.value))
        k, v = (jnp.concatenate([self._heads(x), of], axis=1) for x, of in zip(own, kv, strict=True))
        y = attention(self._heads(self.query(tokens)), k, v)
        return x + self.out(y.reshape(b, h * w, c)).reshape(b, h, w, c)


def build_layer(
    kind: str, level: LevelConfig, conditions: Sequence[str], out_scale: float, param_dtype: Dtype
) -> nn.Module:
    """The layer that C, T or A stands for."""
    if kind == "C":
        return ResBlock(level.channels, level.dropout, out_scale, param_dtype)
    if kind == "T":
        return TimestepBlock(level.channels, conditions, param_dtype)
    return AttnBlock(level.channels, level.heads, param_dtype)


class Block(nn.Module):
    """One block of a level, such as C T A, by itself: what a scan over stacked weights runs."""

    config: LevelConfig
    conditions: Sequence[str]
    out_scale: float
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Create the layers in order."""
        c = self.config
        args = (c, self.conditions, self.out_scale, self.param_dtype)
        self.layer = [build_layer(kind, *args) for kind in c.layers]

    def keys_values(self, tokens: Float[Array, "b t e"]) -> list[KeysValues]:
        """Keys and values of the conditioning tokens, for every A in order."""
        return [layer.keys_values(tokens) for layer in self.layer if isinstance(layer, AttnBlock)]

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: TimeEmbedding,
        kv: Sequence[KeysValues],
        keys: Key[Array, " b"] | None = None,
        first: int | Int[Array, ""] = 0,
    ) -> Float[Array, "b h w c"]:
        """Run the block without a skip; `first` is the place of its first layer, for the dropout's `keys`."""
        kv = list(kv)
        for n, layer in enumerate(self.layer):
            if isinstance(layer, ResBlock):
                x = layer(x, None, keys_for(keys, first + n))
            elif isinstance(layer, TimestepBlock):
                x = layer(x, time)
            else:
                x = layer(x, kv.pop(0))
            x = constrain(x, "batch", "height", "width", "channel")
        return x


class Level(nn.Module):
    """One resolution of a UNet, on its way down or up: blocks of C, T and A, run once or repeatedly.

    Layers are numbered through, as in the released files: where a block is C T A, layer 3·b is the C
    of block b.

    With `scanned`, the weights of all blocks but the first are stacked under `rest` (`scan.stack`),
    and run in one rematerialised scan: training takes a tenth of the memory, and one block is
    compiled for all of them.
    """

    config: LevelConfig
    blocks: int
    repeats: int
    conditions: Sequence[str]
    out_scale: float
    param_dtype: Dtype = jnp.float32
    scanned: bool = False

    def setup(self) -> None:
        """Create the layers in order."""
        c = self.config
        count = 1 if self.scanned else self.blocks
        args = (c, self.conditions, self.out_scale, self.param_dtype)
        self.layer = [build_layer(kind, *args) for kind in c.layers * count]
        self.repeat_mapper = [
            Linear(c.channels, param_dtype=self.param_dtype) for _ in range(self.repeats - 1)
        ]

    @property
    def _rest(self) -> dict[str, Any]:
        """Variables of all blocks but the first, stacked."""
        kinds = (kind for kind in ("params", "lora") if self.has_variable(kind, "rest"))
        return {kind: self.get_variable(kind, "rest") for kind in kinds}

    @property
    def _block(self) -> Block:
        """A block that belongs to no module, to be applied to one slice of the stacked weights."""
        return Block(self.config, self.conditions, self.out_scale, self.param_dtype, parent=None)

    def keys_values(self, tokens: Float[Array, "b t e"]) -> list[KeysValues]:
        """Keys and values of the conditioning tokens, for every A in order.

        With `scanned`, those of the first block, then those of the rest, stacked along their second axis: the
        batch comes first in all of them.
        """
        out = [layer.keys_values(tokens) for layer in self.layer if isinstance(layer, AttnBlock)]
        if self.scanned and self.blocks > 1:
            block = self._block

            def one(variables: Any) -> list[KeysValues]:
                return block.apply(variables, tokens, method="keys_values")  # pyright: ignore

            out += jax.tree.map(_exchanged, jax.lax.map(one, self._rest))
        return out

    def _call(self, layer: nn.Module, *args: Any) -> Array:
        """Run a layer; with `scanned`, so that its gradient keeps only its inputs."""
        if not self.scanned:
            return layer(*args)
        return nn.remat(lambda layer, *args: layer(*args))(layer, *args)

    def _run_rest(
        self,
        x: Array,
        time: TimeEmbedding,
        kv: Sequence[KeysValues],
        keys: Key[Array, " b"] | None,
        controls: Mapping[int, Array],
    ) -> Array:
        """All blocks but the first, in one scan that keeps only what goes from block to block.

        `controls` are maps of one size, by block: each begins with its ResBlock.
        """
        block = self._block
        firsts = jnp.arange(1, self.blocks) * len(self.config.layers)
        slots = sorted(set(controls) - {0})
        which = jnp.array([slots.index(b) if b in slots else -1 for b in range(1, self.blocks)])
        maps = jnp.stack([controls[b] for b in slots]) if slots else None

        def body(x: Array, inputs: tuple[Any, Any, Any, Array]) -> tuple[Array, None]:
            variables, kv, first, slot = inputs
            if maps is not None:
                x = jax.lax.cond(
                    slot < 0, lambda x, _: x, lambda x, maps: add_control(x, maps[slot]), x, maps
                )
            return block.apply(variables, x, time, kv, keys, first), None  # pyright: ignore

        inputs = (self._rest, jax.tree.map(_exchanged, list(kv)), firsts, which)
        return jax.lax.scan(jax.checkpoint(body), x, inputs)[0]

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: TimeEmbedding,
        kv: Sequence[KeysValues],
        *,
        skip: Float[Array, "b h2 w2 s"] | None = None,
        controls: Mapping[int, Float[Array, "b h3 w3 c"]] | None = None,
        fuse: Callable[[Array], Array] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b h4 w4 c"], Float[Array, "b h4 w4 c"] | None]:
        """Run the level.

        Args:
            x: the map.
            time: embeddings for T.
            kv: `keys_values` of the conditioning.
            skip: map of the way down; `x` is resized to it, and it enters the first C of every
                repetition.
            controls: by number of the ResBlock in this level, what is added to `x` before it.
            fuse: gets the map after the first A and gives what replaces it (guidance).
            dropout_keys: one for each sample; nothing is dropped without. A layer drops the same unrolled
                and scanned.

        Returns:
            The map, and the map after the first A before `fuse` (None without an A).
        """
        feature = None
        for repeat in range(self.repeats):
            res, attn = 0, 0
            keys = keys_for(dropout_keys, repeat)
            for n, layer in enumerate(self.layer):
                if isinstance(layer, ResBlock):
                    if controls and res in controls and repeat == 0:
                        x = add_control(x, controls[res])
                    joins = res == 0 and skip is not None
                    if joins and skip is not None and x.shape[1:3] != skip.shape[1:3]:
                        x = resize_bilinear(x, (skip.shape[1], skip.shape[2]))
                    x = self._call(layer, x, skip if joins else None, keys_for(keys, n))
                    res += 1
                elif isinstance(layer, TimestepBlock):
                    x = layer(x, time)
                else:
                    x = self._call(layer, x, kv[attn])
                    if attn == 0 and repeat == 0:
                        feature = x
                        x = fuse(x) if fuse is not None else x
                    attn += 1
                x = constrain(x, "batch", "height", "width", "channel")
            if self.scanned and self.blocks > 1:
                x = self._run_rest(x, time, kv[attn:], keys, controls if controls and repeat == 0 else {})
            if repeat + 1 < self.repeats:
                x = self.repeat_mapper[repeat](x)
        return x, feature


def _exchanged(x: Array) -> Array:
    """`x` with its first two axes, a batch and the blocks of a level, exchanged."""
    return jnp.swapaxes(x, 0, 1)


def add_control(x: Float[Array, "b h w c"], control: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w c"]:
    """A ControlNet's map added to `x`, whose size it takes."""
    return x + resize_bilinear(control, (x.shape[1], x.shape[2])).astype(x.dtype)


def build_levels(
    levels: Sequence[LevelConfig], conditions: Sequence[str], param_dtype: Dtype, scanned: bool
) -> tuple[list[Level], list[Level]]:
    """The levels of a UNet on its way down, and up, deepest first."""
    scale = (1.0 / sum(level.down_blocks for level in levels)) ** 0.5
    shared = (conditions, scale, param_dtype, scanned)
    down = [Level(lv, lv.down_blocks, lv.down_repeats, *shared) for lv in levels]
    up = [Level(lv, lv.up_blocks, lv.up_repeats, *shared) for lv in reversed(levels)]
    return down, up
