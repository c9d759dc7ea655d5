"""Floating-point operations of every component, counted from configuration and sizes.

One multiplication and one addition are two operations. Counted are matrix products, convolutions
(depthwise too) and the two products of attention; norms, activations, softmax, resampling and residual
sums are not: a few percent at 256 channels, less at the released widths. Sizes are (height, width) of
the map that the network is given, and every function is for one forward pass of `batch` images. A
backward pass through weights and inputs takes twice the forward pass; through inputs alone, where
weights are frozen, once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ultrapixel_jax.config import (
    ClipTextConfig,
    ControlNetConfig,
    EfficientNetConfig,
    GuidanceConfig,
    LevelConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
)
from ultrapixel_jax.sizes import HW

TIME_DIM = 64
"""Width of the embeddings of the noise level and of every further condition."""
FREQUENCIES = 64
"""Of the Fourier features that the implicit function reads (`models.guidance`)."""


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """A matrix of (`rows`, `inputs`) times one of (`inputs`, `outputs`)."""
    return 2 * rows * inputs * outputs


def attention_flops(queries: int, keys: int, channels: int) -> int:
    """Logits and weighted sum over all heads, which are `channels` wide together."""
    return 4 * queries * keys * channels


def block_flops(level: LevelConfig, pixels: int, tokens: int, conditions: int, skip: int = 0) -> int:
    """One block (C, T and A as the level has them) on a map of `pixels`, for one image.

    Args:
        level: widths, and what a block is made of.
        pixels: height × width of the map.
        tokens: conditioning tokens, whose keys and values come ready.
        conditions: conditions besides the noise level.
        skip: channels of the skip that joins in C.
    """
    c, total = level.channels, 0
    for kind in level.layers:
        if kind == "C":
            total += 2 * 9 * pixels * c
            total += linear_flops(pixels, c + skip, 4 * c) + linear_flops(pixels, 4 * c, c)
        elif kind == "T":
            total += (1 + conditions) * linear_flops(1, TIME_DIM, 2 * c)
        else:
            total += 4 * linear_flops(pixels, c, c) + attention_flops(pixels, pixels + tokens, c)
    return total


def level_flops(
    level: LevelConfig, blocks: int, repeats: int, pixels: int, tokens: int, conditions: int, skip: int = 0
) -> int:
    """All blocks of a level's down or up half, and the 1×1 convolutions between its repetitions."""
    first = block_flops(level, pixels, tokens, conditions, skip)
    rest = block_flops(level, pixels, tokens, conditions)
    between = linear_flops(pixels, level.channels, level.channels)
    return repeats * (first + (blocks - 1) * rest) + (repeats - 1) * between


def _keys_values_flops(levels: Sequence[LevelConfig], tokens: int, c_cond: int) -> int:
    """Keys and values of the conditioning tokens for every attention block: `kv_mapper`, key, value."""
    return sum(
        (lv.down_blocks + lv.up_blocks)
        * lv.layers.count("A")
        * (linear_flops(tokens, c_cond, lv.channels) + 2 * linear_flops(tokens, lv.channels, lv.channels))
        for lv in levels
    )


def stage_c_tokens(config: StageCConfig, text_tokens: int) -> int:
    """Conditioning tokens of stage C: `text_tokens` states of the text, and those of both pooled vectors."""
    return text_tokens + 2 * config.clip_tokens


def stage_c_condition_flops(config: StageCConfig, batch: int = 1, *, text_tokens: int) -> int:
    """`StageC.condition`, once per prompt."""
    c = config
    tokens = stage_c_tokens(c, text_tokens)
    mapped = linear_flops(text_tokens, c.c_clip_text, c.c_cond)
    mapped += linear_flops(1, c.c_clip_text_pooled + c.c_clip_img, c.clip_tokens * c.c_cond)
    return batch * (mapped + _keys_values_flops(c.levels, tokens, c.c_cond))


def stage_c_flops(config: StageCConfig, size: HW, batch: int = 1, *, text_tokens: int) -> int:
    """One pass of stage C over a latent of `size`, without guidance; the conditioning comes ready."""
    c = config
    tokens, conditions = stage_c_tokens(c, text_tokens), len(c.timestep_conditions)
    h, w = size[0] // c.patch_size, size[1] // c.patch_size
    latent = c.c_latent * c.patch_size**2
    total = linear_flops(h * w, latent, c.levels[0].channels)
    total += linear_flops(h * w, c.levels[0].channels, latent)
    maps = []
    for i, level in enumerate(c.levels):
        if i > 0:
            # The 1×1 convolution comes before the map is halved, and on the way up after it is doubled.
            total += linear_flops(h * w, c.levels[i - 1].channels, level.channels)
            h, w = (h // 2, w // 2) if c.switch_level else (h, w)
        maps.append((h, w))
        total += level_flops(level, level.down_blocks, level.down_repeats, h * w, tokens, conditions)
    for i in reversed(range(len(c.levels))):
        level, skip = c.levels[i], 0
        if i + 1 < len(c.levels):
            scale = 2 if c.switch_level else 1
            total += linear_flops(h * scale * w * scale, c.levels[i + 1].channels, level.channels)
            (h, w), skip = maps[i], level.channels
        total += level_flops(level, level.up_blocks, level.up_repeats, h * w, tokens, conditions, skip)
    return batch * total


def guidance_prepare_flops(config: GuidanceConfig, lr: HW, hr: HW, batch: int = 1) -> int:
    """`Guidance.prepare` at all four places, once per picture: LR maps of `lr` upsampled to `hr`."""
    c = config
    low, high = lr[0] * lr[1], hr[0] * hr[1]
    total = linear_flops(high, c.channels, c.channels // 4)  # the guidance's half of the fusion's first layer
    if c.upsampler == "bilinear_conv":
        total += 9 * linear_flops(high, c.channels, c.channels)
        return 4 * batch * total
    count, inner = min(c.inr_groups, c.inr_channels), c.inr_heads * c.inr_head_dim
    total += linear_flops(low, c.channels, c.inr_channels) + linear_flops(low, c.inr_channels, c.inr_width)
    n = low + 2 * count
    total += 3 * linear_flops(n, c.inr_width, inner) + attention_flops(n, n, inner)
    total += 2 * linear_flops(n, c.inr_width, c.inr_width)
    for inputs in (4 * FREQUENCIES, c.inr_channels):
        total += linear_flops(count, c.inr_width, inputs) + linear_flops(high, inputs, c.inr_channels)
    total += linear_flops(high, c.inr_channels, c.channels)
    return 4 * batch * total


def guidance_fuse_flops(config: GuidanceConfig, hr: HW, batch: int = 1) -> int:
    """`Guidance.fuse` at all four places: what guidance adds to one pass of stage C over `hr`."""
    c = config
    total = batch * 2 * linear_flops(hr[0] * hr[1], c.channels, c.channels // 4)
    total += batch * linear_flops(1, c.time_dim, 2 * c.channels)
    if c.scale_aware_norm:
        total += linear_flops(1, c.time_dim, 2 * c.channels)  # one scale for the whole batch
    return 4 * total


def stage_b_condition_flops(
    config: StageBConfig, effnet: HW, size: HW, batch: int = 1, pixels: HW = (8, 8)
) -> int:
    """`StageB.condition`, once per picture: a stage C latent of `effnet` for a latent of `size`."""
    del effnet  # it is resized before it is mapped
    c, first = config, config.levels[0].channels
    inner = (size[0] // c.patch_size) * (size[1] // c.patch_size)
    total = linear_flops(1, c.c_clip, c.clip_tokens * c.c_cond)
    total += _keys_values_flops(c.levels, c.clip_tokens, c.c_cond)
    for rows, inputs in ((inner, c.c_effnet), (pixels[0] * pixels[1], 3)):
        total += linear_flops(rows, inputs, 4 * first) + linear_flops(rows, 4 * first, first)
    return batch * total


def stage_b_flops(config: StageBConfig, size: HW, batch: int = 1) -> int:
    """One pass of stage B over a latent of `size`; the conditioning comes ready."""
    c = config
    conditions = len(c.timestep_conditions)
    h, w = c.maps(*size)
    latent = c.c_latent * c.patch_size**2
    total = 2 * linear_flops(h * w, latent, c.levels[0].channels)
    maps = []
    for i, level in enumerate(c.levels):
        if i > 0:
            h, w = h // 2, w // 2
            total += 4 * linear_flops(h * w, c.levels[i - 1].channels, level.channels)
        maps.append((h, w))
        total += level_flops(level, level.down_blocks, level.down_repeats, h * w, c.clip_tokens, conditions)
    for i in reversed(range(len(c.levels))):
        level, skip = c.levels[i], 0
        if i + 1 < len(c.levels):
            total += 4 * linear_flops(h * w, c.levels[i + 1].channels, level.channels)
            (h, w), skip = maps[i], level.channels
        total += level_flops(level, level.up_blocks, level.up_repeats, h * w, c.clip_tokens, conditions, skip)
    return batch * total


def _mixing_block_flops(pixels: int, channels: int) -> int:
    return 2 * 9 * pixels * channels + 2 * linear_flops(pixels, channels, 4 * channels)


def stage_a_decode_flops(config: StageAConfig, size: HW, batch: int = 1) -> int:
    """Stage A's decoder on a latent of `size`; of a tiled decoding, one window of that size."""
    c, pixels, half = config, size[0] * size[1], config.c_hidden // 2
    total = linear_flops(pixels, c.c_latent, c.c_hidden)
    total += c.bottleneck_blocks * _mixing_block_flops(pixels, c.c_hidden)
    total += 16 * linear_flops(pixels, c.c_hidden, half)
    total += _mixing_block_flops(4 * pixels, half) + linear_flops(4 * pixels, half, 12)
    return batch * total


def clip_text_flops(config: ClipTextConfig, batch: int = 1) -> int:
    """CLIP's text tower on `batch` prompts, all of `config.positions` tokens."""
    c, n = config, config.positions
    layer = 4 * linear_flops(n, c.width, c.width) + attention_flops(n, n, c.width)
    layer += 2 * linear_flops(n, c.width, c.mlp_width)
    return batch * (c.layers * layer + linear_flops(1, c.width, c.projection))


def efficientnet_flops(config: EfficientNetConfig, size: HW, channels: int, batch: int = 1) -> int:
    """`EfficientNet` over `size` pixels of so many channels; without norms and squeeze-excitation."""
    h, w = -(-size[0] // 2), -(-size[1] // 2)
    total, before = linear_flops(h * w, 9 * channels, config.stem), config.stem
    for stage in config.stages:
        for n in range(stage.blocks):
            stride = stage.stride if n == 0 else 1
            outer = h * w
            h, w = -(-h // stride), -(-w // stride)
            inner = before * stage.expand
            if stage.kind == "fused" and stage.expand == 1:
                total += linear_flops(h * w, 9 * before, stage.channels)
            elif stage.kind == "fused":
                total += linear_flops(h * w, 9 * before, inner) + linear_flops(h * w, inner, stage.channels)
            else:
                total += linear_flops(outer, before, inner) + linear_flops(h * w, 9, inner)
                total += linear_flops(h * w, inner, stage.channels)
            before = stage.channels
    return batch * (total + linear_flops(h * w, before, config.head))


def controlnet_flops(config: ControlNetConfig, size: HW, batch: int = 1) -> int:
    """`ControlNet` of a control of `size`: pixels, or a latent's positions for super-resolution."""
    if config.kind == "super_resolution":
        pixels, (expanded, width, blocks) = size[0] * size[1], config.bottleneck
        total = linear_flops(pixels, config.in_channels, expanded) + linear_flops(pixels, expanded, width)
        total += 2 * blocks * linear_flops(pixels, 9 * width, width)
        total, features = total + linear_flops(pixels, width, config.projection), config.projection
    else:
        pixels = -(-size[0] // 32) * -(-size[1] // 32)
        total = efficientnet_flops(config.backbone, size, config.in_channels)
        features = config.backbone.head
    each = linear_flops(pixels, features, config.projection)
    each += linear_flops(pixels, config.projection, config.channels)
    return batch * (total + len(config.slots) * each)


def sampling_flops(
    stage_c: StageCConfig,
    guidance: GuidanceConfig | None,
    stage_b: StageBConfig,
    stage_a: StageAConfig,
    clip_text: ClipTextConfig,
    *,
    hr: HW,
    lr: HW,
    latent_b: HW,
    steps_c: int = 20,
    steps_b: int = 10,
    batch: int = 1,
) -> dict[str, int]:
    """Operations of a whole picture by stage, with classifier-free guidance: two passes per step."""
    text = clip_text.positions
    out = {
        "clip": clip_text_flops(clip_text, 2 * batch),
        "C low": stage_c_condition_flops(stage_c, 2 * batch, text_tokens=text),
        "C high": steps_c * stage_c_flops(stage_c, hr, 2 * batch, text_tokens=text),
        "B": stage_b_condition_flops(stage_b, hr, latent_b, 2 * batch)
        + steps_b * stage_b_flops(stage_b, latent_b, 2 * batch),
        "A": stage_a_decode_flops(stage_a, latent_b, batch),
    }
    if guidance is not None:
        out["C low"] += steps_c * stage_c_flops(stage_c, lr, 2 * batch, text_tokens=text)
        out["C low"] += guidance_prepare_flops(guidance, lr, hr, batch)
        out["C high"] += steps_c * guidance_fuse_flops(guidance, hr, 2 * batch)
    return out
