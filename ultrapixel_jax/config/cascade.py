"""How every stage is sampled, and everything between a prompt and its picture."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ultrapixel_jax.config.networks import (
    ClipTextConfig,
    ClipVisionConfig,
    ControlNetConfig,
    EffnetEncoderConfig,
    GuidanceConfig,
    LoraConfig,
    PreviewerConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
)
from ultrapixel_jax.errors import UserError

ScheduleName = Literal["cosine", "cosine2", "linear", "rectified_flow", "sqrt", "edm", "stable_diffusion"]
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde"]


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How one stage is sampled; every field is a run-time value and compiles nothing anew.

    But for two: steps without classifier-free guidance (a weight of 1, or outside `cfg_from` to `cfg_until`)
    have a program of their own, without the unconditional half, and so have passes with `reuse`; both are
    compiled when first needed. Fields in `_hr` are of stage C's guided HR pass; None takes the LR pass's.
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
    """`ddpm` (eta 1, as released), `ddim` (eta 0, as the paper says), or their second-order forms
    `dpmpp_2m_sde` (eta 1) and `dpmpp_2m` (eta 0): DPM-Solver++(2M), which needs fewer steps."""
    eta: float | None = None
    """How much noise a step adds, between 0 and 1; None takes the sampler's."""
    schedule: ScheduleName = "cosine"
    """The noise schedule."""
    cfg_rescale: float = 0.7
    """How much of the guided noise is rescaled to the conditional one's standard deviation."""
    steps_hr: int | None = None
    """Denoising steps of the HR pass."""
    sampler_hr: SamplerName | None = None
    """Sampler of the HR pass."""
    cfg_from: float = 0.0
    """Classifier-free guidance counts from there on: 0 is noise, 1 the picture (1 − t)."""
    cfg_until: float = 1.0
    """Up to there it counts; other steps run the conditional half alone."""
    cfg_from_hr: float | None = None
    """`cfg_from` of the HR pass."""
    cfg_until_hr: float | None = None
    """`cfg_until` of the HR pass."""
    reuse: int = 1
    """The inner levels of the network are computed in every so many steps, and kept in between."""
    reuse_hr: int | None = None
    """`reuse` of the HR pass."""

    def __post_init__(self) -> None:
        for name in ("steps", "steps_hr"):
            steps = getattr(self, name)
            if steps is not None and not 1 <= steps <= MAX_STEPS:
                raise UserError(f"{name} {steps} is outside 1 to {MAX_STEPS}")
        if not self.shift > 0:
            raise UserError(f"shift {self.shift} must be positive")
        for name in ("sampler", "sampler_hr"):
            sampler, known = getattr(self, name), get_args(SamplerName)
            if sampler not in known and (sampler is not None or name == "sampler"):
                raise UserError(f"{name} {sampler!r:.80} is not known; use one of {', '.join(known)}")
        if self.schedule not in get_args(ScheduleName):
            known = ", ".join(get_args(ScheduleName))
            raise UserError(f"schedule {self.schedule!r:.80} is not known; use one of {known}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"eta {self.eta} is outside [0, 1]")
        for suffix in ("", "_hr"):
            first, last = self._cfg_range(suffix)
            if not 0 <= first < last <= 1:
                raise UserError(
                    f"cfg_from{suffix} {first} must be below cfg_until{suffix} {last}, both within [0, 1]; "
                    f"for no guidance at all set cfg{suffix} 1"
                )
        for name in ("reuse", "reuse_hr"):
            reuse = getattr(self, name)
            if reuse is not None and not 1 <= reuse <= MAX_STEPS:
                raise UserError(f"{name} {reuse} is outside 1 to {MAX_STEPS}")

    def _cfg_range(self, suffix: str) -> tuple[float, float]:
        first, last = (getattr(self, f"cfg_{end}{suffix}") for end in ("from", "until"))
        return self.cfg_from if first is None else first, self.cfg_until if last is None else last

    @property
    def effective_eta(self) -> float:
        """The eta that is used: `eta`, or 1 for DDPM and DPM-Solver++'s SDE, and 0 for the others."""
        return self.eta if self.eta is not None else float(self.sampler in ("ddpm", "dpmpp_2m_sde"))

    @property
    def effective_cfg_hr(self) -> float:
        """The weight of the guided HR pass: `cfg_hr`, or `cfg`."""
        return self.cfg if self.cfg_hr is None else self.cfg_hr

    @property
    def of_hr(self) -> DiffusionConfig:
        """The sampling of stage C's guided HR pass by itself."""
        own = {name.removesuffix("_hr"): getattr(self, name) for name in HR_FIELDS}
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(self, **given, **dict.fromkeys(HR_FIELDS))


HR_FIELDS = tuple(f.name for f in dataclasses.fields(DiffusionConfig) if f.name.endswith("_hr"))
"""Fields of `DiffusionConfig` that are of stage C's guided HR pass alone."""
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
        if self.lora.text_modules and self.lora.clip_text != self.clip_text:
            own = dataclasses.replace(self.lora, clip_text=self.clip_text)
            object.__setattr__(self, "lora", own)  # frozen; nobody has seen it yet
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
