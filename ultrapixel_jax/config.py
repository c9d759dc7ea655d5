"""Typed configuration: every size of every network, and how to sample.

Frozen dataclasses with the released sizes as defaults. This module imports neither jax nor flax, so
that ``--help`` and bad arguments answer at once. Numbers are those of the released checkpoints
(paper section 4.1 and its published configuration).
"""

from __future__ import annotations

import dataclasses
import difflib
import runpy
from pathlib import Path
from typing import Any, Literal, get_args

from ultrapixel_jax.errors import UserError

Upsampler = Literal["inr", "bilinear_conv"]
ScheduleName = Literal["cosine", "cosine2", "linear", "rectified_flow", "sqrt", "edm", "stable_diffusion"]
SamplerName = Literal["ddpm", "ddim"]

DTYPES = ("float32", "bfloat16")


def check_dtype(name: str) -> str:
    """Return `name` if it is a usable compute or parameter dtype; raise `UserError` otherwise."""
    aliases = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16"}
    name = aliases.get(name, name)
    if name in ("float16", "fp16", "f16", "half"):
        raise UserError(
            "dtype float16 is not supported: stage C's activations exceed float16's range and become "
            "NaN; use bfloat16 or float32"
        )
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known; use one of {', '.join(DTYPES)}")
    return name


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

    def __post_init__(self) -> None:
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


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Personalisation: low-rank changes of stage C's attention and new text tokens (section D)."""

    stage_c: StageCConfig = StageCConfig()
    """The stage C that it changes."""
    rank: int = 4
    """Rank of every change."""
    new_tokens: int = 1
    """Tokens appended to the vocabulary."""
    text_width: int = 1280
    """Width of their embeddings."""


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How one stage is sampled; every field is a run-time value and compiles nothing anew.

    The exception is a weight of 1 in the HR pass: a program of its own, without the unconditional half.
    """

    steps: int = 20
    """Denoising steps."""
    cfg: float = 4.0
    """Classifier-free guidance weight."""
    cfg_hr: float | None = None
    """That of stage C's guided HR pass; None takes `cfg`, as released.

    The text asks every part of a large latent for the whole picture, the guidance for what the LR pass has
    there: a lower weight keeps to it.
    """
    shift: float = 1.0
    """Noise schedule shift: adds 2·log(1/shift) to logSNR."""
    sampler: SamplerName = "ddpm"
    """`ddpm` (eta 1, as released) or `ddim` (eta 0, as the paper says)."""
    eta: float | None = None
    """DDIM's eta, between 0 and 1; None takes the sampler's."""
    schedule: ScheduleName = "cosine"
    """The noise schedule."""
    cfg_rescale: float = 0.7
    """How much of the guided noise is rescaled to the conditional one's standard deviation."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps {self.steps} is outside 1 to {MAX_STEPS}")
        if not self.shift > 0:
            raise UserError(f"shift {self.shift} must be positive")
        if self.sampler not in ("ddpm", "ddim"):
            raise UserError(f"sampler {self.sampler!r} is not known; use ddpm or ddim")
        if self.schedule not in get_args(ScheduleName):
            known = ", ".join(get_args(ScheduleName))
            raise UserError(f"schedule {self.schedule!r:.80} is not known; use one of {known}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"eta {self.eta} is outside [0, 1]")

    @property
    def effective_eta(self) -> float:
        """The eta that is used: `eta`, or 1 for DDPM and 0 for DDIM."""
        return self.eta if self.eta is not None else float(self.sampler == "ddpm")

    @property
    def effective_cfg_hr(self) -> float:
        """The weight of the guided HR pass: `cfg_hr`, or `cfg`."""
        return self.cfg if self.cfg_hr is None else self.cfg_hr


MAX_STEPS = 1000
"""Most steps a sampler takes; its tables have this many rows, so that steps compile nothing anew."""


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Everything between a prompt and its picture."""

    stage_c: StageCConfig = StageCConfig()
    guidance: GuidanceConfig | None = GuidanceConfig()
    """None: stage C alone at the HR size (the paper's "base")."""
    stage_b: StageBConfig = StageBConfig()
    stage_a: StageAConfig = StageAConfig()
    clip_text: ClipTextConfig = ClipTextConfig()
    clip_vision: ClipVisionConfig = ClipVisionConfig()
    effnet_encoder: EffnetEncoderConfig = EffnetEncoderConfig()
    previewer: PreviewerConfig = PreviewerConfig()
    controlnet: ControlNetConfig = ControlNetConfig()
    lora: LoraConfig = LoraConfig()
    sampling_c: DiffusionConfig = DiffusionConfig()
    """Sampling of both stage C passes."""
    sampling_b: DiffusionConfig = DiffusionConfig(steps=10, cfg=1.1)
    """Sampling of stage B."""

    def __post_init__(self) -> None:
        if self.guidance is not None:
            for level in self.stage_c.levels:
                if level.channels != self.guidance.channels:
                    raise UserError(
                        f"guidance.channels is {self.guidance.channels} but stage C has a level of "
                        f"{level.channels}; make them equal"
                    )
        pairs = (
            ("clip_text.width", self.clip_text.width, "stage_c.c_clip_text", self.stage_c.c_clip_text),
            ("clip_text.projection", self.clip_text.projection, "stage_c.c_clip_text_pooled",
             self.stage_c.c_clip_text_pooled),
            ("clip_vision.projection", self.clip_vision.projection, "stage_c.c_clip_img",
             self.stage_c.c_clip_img),
            ("clip_text.projection", self.clip_text.projection, "stage_b.c_clip", self.stage_b.c_clip),
            ("stage_c.c_latent", self.stage_c.c_latent, "stage_b.c_effnet", self.stage_b.c_effnet),
            ("stage_b.c_latent", self.stage_b.c_latent, "stage_a.c_latent", self.stage_a.c_latent),
        )  # fmt: skip
        for name, value, other_name, other in pairs:
            if value != other:
                raise UserError(f"{name} is {value} but {other_name} is {other}; make them equal")


COMPONENTS = (
    "clip_text", "stage_c", "guidance", "stage_b", "stage_a", "previewer",
    "effnet_encoder", "clip_vision", "controlnet", "lora",
)  # fmt: skip
"""The fields of `CascadeConfig` that are networks with weights of their own."""


def replace_checked(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` that answers an unknown field with the nearest known one."""
    known = [f.name for f in dataclasses.fields(config)]
    for name in changes:
        if name not in known:
            raise UserError(unknown_key(name, known, f"configuration key of {type(config).__name__}"))
    return dataclasses.replace(config, **changes)


def unknown_key(name: str, known: list[str], what: str) -> str:
    """Message for a misspelt `name`, with the nearest of `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
    return f"unknown {what}: {name!r}{hint}"


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-able form of a configuration."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Inverse of `to_dict` for dataclass `cls`; unknown keys raise `UserError`."""
    import typing

    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(unknown_key(name, known, f"configuration key of {cls.__name__}"))
        out[name] = _revive(hints[name], value)
    return cls(**out)


def _revive(hint: Any, value: Any) -> Any:
    """Turn JSON's lists and dicts back into the tuples and dataclasses that `hint` asks for."""
    import typing

    if value is None:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value)
    args = get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_revive(args[0], v) for v in value)
        return tuple(_revive(a, v) for a, v in zip(args, value, strict=True))
    for arg in args:  # a union: the dataclass member, where the value is a dict
        if dataclasses.is_dataclass(arg) and isinstance(value, dict):
            return from_dict(typing.cast(type, arg), value)
    return value


def load_config(path: str | Path, kind: type = CascadeConfig) -> Any:
    """Run the Python file at `path` and return its `config`, which must be a `kind`.

    Raises:
        UserError: no such file, an error in it, or no `kind` named `config` in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"configuration {str(path)!r} does not exist; see configs/ for examples")
    try:
        config = runpy.run_path(str(path)).get("config")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except TypeError as error:  # a dataclass called with an unknown keyword
        raise UserError(f"{path}: {_explain_type_error(error)}") from error
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, kind):
        found = type(config).__name__
        raise UserError(f"{path} must define `config = {kind.__name__}(...)`, found {found}")
    return config


def _explain_type_error(error: TypeError) -> str:
    text = str(error)
    if "unexpected keyword argument" in text:
        name = text.rsplit("'", 2)[-2]
        cls = text.split(".", 1)[0]
        found = globals().get(cls)
        if dataclasses.is_dataclass(found):
            return unknown_key(name, [f.name for f in dataclasses.fields(found)],
                               f"configuration key of {cls}")  # fmt: skip
    return text
