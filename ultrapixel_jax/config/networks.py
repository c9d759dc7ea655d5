"""Every size of every network, with the released sizes as defaults.

Numbers are those of the released checkpoints (paper section 4.1 and its published configuration).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from ultrapixel_jax.errors import UserError

Upsampler = Literal["inr", "bilinear_conv"]
NOT_DRAWN = ("trained_sides", "trained_ratio")
"""Fields of `GuidanceConfig` that no picture depends on, and so no identity of a model."""


@dataclasses.dataclass(frozen=True)
class LevelConfig:
    """One resolution of a UNet (stage B or C), its down and its up half."""

    channels: int
    """Width c of the feature map."""
    heads: int
    """Attention heads; unused where `layers` has no A."""
    down_blocks: int
    """Blocks on the way down."""
    up_blocks: int
    """Blocks on the way up."""
    down_repeats: int = 1
    """How often the down blocks run, with the same weights; a 1×1 convolution stands between runs."""
    up_repeats: int = 1
    """The same for the up blocks."""
    layers: str = "CTA"
    """What one block is: C residual convolution, T timestep modulation, A attention."""
    dropout: float = 0.0
    """Dropout rate inside C, in training only."""

    def __post_init__(self) -> None:
        if "A" in self.layers and self.channels % self.heads:
            raise UserError(f"level of {self.channels} channels does not divide into {self.heads} heads")
        if not self.layers.startswith("C") or set(self.layers) - set("CTA"):
            raise UserError(f"layers {self.layers!r} must start with C and hold only C, T and A")


@dataclasses.dataclass(frozen=True)
class StageCConfig:
    """The text-to-latent UNet that UltraPixel runs twice. Defaults: the 3.6B model."""

    levels: tuple[LevelConfig, ...] = (
        LevelConfig(channels=2048, heads=32, down_blocks=8, up_blocks=8, dropout=0.1),
        LevelConfig(channels=2048, heads=32, down_blocks=24, up_blocks=24, dropout=0.1),
    )
    """Levels from the outside (finest) in."""
    c_cond: int = 2048
    """Width of the conditioning tokens."""
    c_latent: int = 16
    """Channels of the latent that goes in and of the noise that comes out."""
    patch_size: int = 1
    """Pixel-unshuffle factor before the first convolution."""
    c_clip_text: int = 1280
    """Width of the text states."""
    c_clip_text_pooled: int = 1280
    """Width of the pooled text vector."""
    c_clip_img: int = 768
    """Width of the CLIP image vector."""
    clip_tokens: int = 4
    """Tokens that each pooled vector becomes (the reference's `c_clip_seq`)."""
    timestep_conditions: tuple[str, ...] = ("sca", "crp")
    """Conditions besides the noise level, each with a mapper of its own in every T."""
    switch_level: bool = False
    """Halve the map between level 0 and 1 (bilinear); false in every released model."""

    @property
    def outer(self) -> int:
        """How many levels, from the outside, run where the inner ones are reused; 0 where it has but one."""
        return len(self.levels) // 2

    def inner(self, height: int, width: int) -> tuple[int, int, int]:
        """Height, width and channels of what the inner levels give, for latents of this size."""
        factor = self.patch_size * (2**self.outer if self.switch_level else 1)
        return height // factor, width // factor, self.levels[self.outer].channels


@dataclasses.dataclass(frozen=True)
class StageBConfig:
    """The UNet from the stage C latent to stage A's latent. Defaults: the 1.5B model."""

    levels: tuple[LevelConfig, ...] = (
        LevelConfig(320, 1, down_blocks=2, up_blocks=2, up_repeats=2, layers="CT"),
        LevelConfig(640, 1, down_blocks=6, up_blocks=6, up_repeats=2, layers="CT"),
        LevelConfig(1280, 20, down_blocks=28, up_blocks=28, up_repeats=3, dropout=0.1),
        LevelConfig(1280, 20, down_blocks=6, up_blocks=6, up_repeats=3, dropout=0.1),
    )
    """Levels from the outside (finest) in."""
    c_cond: int = 1280
    """Width of the conditioning tokens."""
    c_latent: int = 4
    """Channels of stage A's latent."""
    patch_size: int = 2
    """Pixel-unshuffle factor before the first convolution."""
    c_clip: int = 1280
    """Width of the pooled text vector."""
    clip_tokens: int = 4
    """Tokens that the pooled vector becomes."""
    c_effnet: int = 16
    """Channels of the stage C latent that conditions it."""
    timestep_conditions: tuple[str, ...] = ("sca",)
    """Conditions besides the noise level."""
    pads: bool = False
    """Pad maps at the bottom and right to what all levels halve evenly, and crop what comes out. The released
    model drops odd rows and columns on the way down and stretches maps on the way up, which moves what inner
    levels draw by up to 7 of a side's positions (8 pixels each): much of a small picture, little of a large
    one."""

    @property
    def outer(self) -> int:
        """How many levels, from the outside, run where the inner ones are reused; 0 where it has but one."""
        return len(self.levels) // 2

    def maps(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the outermost level's maps, for latents of this size."""
        multiple = 2 ** (len(self.levels) - 1) if self.pads else 1
        h, w = (-(-(side // self.patch_size) // multiple) * multiple for side in (height, width))
        return h, w

    def inner(self, height: int, width: int) -> tuple[int, int, int]:
        """Height, width and channels of what the inner levels give, for latents of this size."""
        h, w = (side // 2**self.outer for side in self.maps(height, width))
        return h, w, self.levels[self.outer].channels


@dataclasses.dataclass(frozen=True)
class StageAConfig:
    """The VQGAN between stage B's latent and pixels, 4:1."""

    c_hidden: int = 384
    """Inner width; the outer level has half of it."""
    c_latent: int = 4
    """Channels of the latent and of a codebook entry."""
    bottleneck_blocks: int = 12
    """Blocks at the inner width in the decoder."""
    codebook_size: int = 8192
    """Entries of the codebook."""
    scale_factor: float = 0.43
    """The latent is the encoder's output divided by this."""


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """What UltraPixel adds: guidance upsampling, fusion, scale-aware normalisation (paper section 3)."""

    channels: int = 2048
    """Width of stage C's maps at the guided places (`ind`)."""
    upsampler: Upsampler = "inr"
    """How guidance gets to the HR size: the implicit neural representation, or bilinear + 3×3 conv
    (paper, table 3)."""
    scale_aware_norm: bool = True
    """Whether the scale-aware normalisation follows the fusion (paper, table 3)."""
    inr_channels: int = 1024
    """Width of the upsampled features (`ch`): 1024 is "Ours-1024", 512 "Ours-512" (paper, table 4)."""
    inr_width: int = 1024
    """Width of the hypernetwork's tokens (`f_dim`)."""
    inr_heads: int = 32
    """Attention heads of the hypernetwork."""
    inr_head_dim: int = 32
    """Width of one of these heads."""
    inr_groups: int = 64
    """Weight tokens per layer of the implicit function (`n_groups`)."""
    time_dim: int = 64
    """Width of the time and scale embeddings."""
    timestep: float | Literal["synchronized"] = 0.05
    """The t at which the LR pass gives its guidance, or `synchronized`: each HR step takes the LR
    step's own (paper, table 2)."""
    lr_side: int = 32
    """Side of the square low-resolution picture in units of 32 pixels; others keep its area."""
    up_guide_weights: tuple[tuple[int, float], ...] = ((96 * 96, 0.7), (72 * 72, 0.5), (0, 0.3))
    """(smallest H·W, guide weight) of the up places when sampling, largest first; 1 in training."""
    trained_sides: tuple[int, int] | None = None
    """Sides in pixels of the squares of the smallest and the largest area that these networks were trained
    on; None where nobody knows. Training notes it."""
    trained_ratio: float | None = None
    """The same of the longest side over the shortest, at most."""

    def __post_init__(self) -> None:
        if self.trained_sides is not None and not 0 < self.trained_sides[0] <= self.trained_sides[1]:
            raise UserError(
                f"guidance.trained_sides {self.trained_sides} are not a smallest and a largest side"
            )
        if self.trained_ratio is not None and self.trained_ratio < 1:
            raise UserError(f"guidance.trained_ratio {self.trained_ratio} must be 1 or more")
        if self.timestep != "synchronized" and not 0.0 <= float(self.timestep) <= 1.0:
            raise UserError(f"guidance timestep {self.timestep} is outside [0, 1]")
        if not 8 <= self.lr_side <= 32:
            raise UserError(f"guidance.lr_side {self.lr_side} is outside 8 to 32")
        if self.inr_heads * self.inr_head_dim != self.inr_width:
            raise UserError(
                f"inr_heads·inr_head_dim is {self.inr_heads * self.inr_head_dim} but inr_width is "
                f"{self.inr_width}; there is no output projection, so make them equal"
            )


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text tower. Defaults: ViT-bigG-14-laion2B-39B-b160k."""

    vocab_size: int = 49408
    """Rows of the token embedding; the last two are start and end of text."""
    positions: int = 77
    """Length every prompt is padded and truncated to."""
    width: int = 1280
    """Width of the states."""
    layers: int = 32
    """Transformer layers."""
    heads: int = 20
    """Attention heads."""
    mlp_width: int = 5120
    """Inner width of the MLP."""
    projection: int = 1280
    """Width of the pooled vector."""


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """CLIP's image tower. Defaults: openai/clip-vit-large-patch14."""

    image_size: int = 224
    """Side of the input in pixels."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    width: int = 1024
    """Width of the states."""
    layers: int = 24
    """Transformer layers."""
    heads: int = 16
    """Attention heads."""
    mlp_width: int = 4096
    """Inner width of the MLP."""
    projection: int = 768
    """Width of the image vector."""


@dataclasses.dataclass(frozen=True)
class EfficientNetStage:
    """One stage of EfficientNetV2."""

    kind: Literal["fused", "mbconv"]
    """Fused-MBConv or MBConv with squeeze-excitation."""
    expand: int
    """Expansion ratio."""
    stride: int
    """Stride of the first block."""
    channels: int
    """Output channels."""
    blocks: int
    """Number of blocks."""


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """EfficientNetV2 `features`. Defaults: the S variant."""

    stem: int = 24
    """Channels of the first convolution."""
    stages: tuple[EfficientNetStage, ...] = (
        EfficientNetStage("fused", 1, 1, 24, 2),
        EfficientNetStage("fused", 4, 2, 48, 4),
        EfficientNetStage("fused", 4, 2, 64, 4),
        EfficientNetStage("mbconv", 4, 2, 128, 6),
        EfficientNetStage("mbconv", 6, 1, 160, 9),
        EfficientNetStage("mbconv", 6, 2, 256, 15),
    )
    """The stages in order."""
    head: int = 1280
    """Channels of the last convolution."""


@dataclasses.dataclass(frozen=True)
class EffnetEncoderConfig:
    """The encoder from pixels to the stage C latent, 32:1."""

    backbone: EfficientNetConfig = EfficientNetConfig()
    """The network below the last 1×1 convolution."""
    c_latent: int = 16
    """Channels of the latent."""


@dataclasses.dataclass(frozen=True)
class PreviewerConfig:
    """The small decoder from the stage C latent to RGB at 8×."""

    c_latent: int = 16
    """Channels of the latent."""
    channels: tuple[int, int, int, int] = (512, 256, 128, 128)
    """Widths at 1×, 2×, 4× and 8×."""


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """A stage C ControlNet: a control image (or latent) to one map per guided ResBlock."""

    kind: Literal["canny", "inpainting", "super_resolution"] = "canny"
    """What it is controlled by; fixes the input channels (1, 4, 16) and the backbone."""
    backbone: EfficientNetConfig = EfficientNetConfig()
    """The backbone of canny and inpainting; super-resolution has its own."""
    bottleneck: tuple[int, int, int] = (16384, 1024, 8)
    """Super-resolution's backbone: width of the first convolution, of the blocks, and their number."""
    projection: int = 1280
    """Inner width of the projections."""
    channels: int = 2048
    """Width of stage C."""
    slots: tuple[int, ...] = (0, 4, 8, 12, 51, 55, 59, 63)
    """Which ResBlocks of stage C get a map, counted in order of execution."""

    @property
    def in_channels(self) -> int:
        """Channels of the control input."""
        return {"canny": 1, "inpainting": 4, "super_resolution": 16}[self.kind]


ATTENTION = r".*/(in_proj|out)"
"""Pattern of what UltraPixel's personalisation changes: the projections of all attention in stage C."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Personalisation: low-rank changes of stage C's layers and new text tokens (section D)."""

    stage_c: StageCConfig = StageCConfig()
    """The stage C that it changes."""
    rank: int = 4
    """Rank of every change."""
    alpha: float = 1.0
    """Changes are times alpha / rank; 1 as released."""
    modules: tuple[str, ...] = (ATTENTION,)
    """Patterns of the layers that are changed (regular expressions, matched whole): `.*/(in_proj|out)` is all
    attention, `.*/(in_proj|out|kv_mapper|expand|contract)` what most trainers of others take, `.*` all."""
    tokens: tuple[str, ...] = ()
    """New words, as `[name]=PATTERN`: the embedding starts from the mean of those of the tokens in which the
    regular expression PATTERN is found, such as `^cat</w>`; from zero as `[name]`."""
    new_tokens: int = 1
    """Tokens appended to the vocabulary where `tokens` does not name them."""
    text_width: int = 1280
    """Width of their embeddings."""
    text_modules: tuple[str, ...] = ()
    """Patterns of the text encoder's layers that are changed too: `.*` is all, `.*/(q|k|v|out)` its
    attention."""
    clip_text: ClipTextConfig | None = None
    """The text encoder that it changes: the cascade's, where `text_modules` names some."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank {self.rank} must be 1 or more")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha {self.alpha} must be positive")
        if not self.modules:
            raise UserError(f"lora.modules is empty; give a pattern of stage C's layers like {ATTENTION}")
        for name in ("modules", "text_modules"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(
                        f"lora.{name}: {pattern!r:.80} is no regular expression ({error})"
                    ) from error


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """A whole CLIP, for scoring pictures. Defaults: openai/clip-vit-large-patch14."""

    text: ClipTextConfig = ClipTextConfig(width=768, layers=12, heads=12, mlp_width=3072, projection=768)
    """The text tower."""
    vision: ClipVisionConfig = ClipVisionConfig()
    """The image tower."""
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    """In the MLPs of both: `quick_gelu` in OpenAI's, `gelu` in OpenCLIP's."""

    def __post_init__(self) -> None:
        if self.text.projection != self.vision.projection:
            raise UserError(
                f"CLIP's towers project to {self.text.projection} and {self.vision.projection} values; "
                "they must agree"
            )


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """Inception-v3 of 2015, by which FID is measured. Defaults: the network of the file."""

    image_size: int = 299
    """Side of the input in pixels, 75 at least."""
    divide: int = 1
    """Every width is divided by this; 16 is the most."""
    classes: int = 1008
    """Values of the last layer."""

    def __post_init__(self) -> None:
        if self.image_size < 75 or 16 % self.divide:
            raise UserError(
                f"Inception of {self.image_size} pixels, divided by {self.divide}, cannot be built"
            )

    @property
    def features(self) -> int:
        """Width of what FID compares."""
        return 2048 // self.divide
