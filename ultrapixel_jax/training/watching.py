"""What is written, drawn, measured and validated while training: fields of a run's configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import check_size


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written about the run."""

    every: int = 10
    """Steps between two lines of `metrics.jsonl`, of which each has the mean since the last."""
    tensorboard: bool = True
    """Write TensorBoard files too."""
    profile: tuple[int, int] | None = None
    """First and last step of a profile, written to `profile/` for TensorBoard or Perfetto."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"log.every {self.every} must be 1 or more")
        if self.profile is not None and not 0 <= self.profile[0] <= self.profile[1]:
            raise UserError(f"log.profile {self.profile} must be two steps in order")


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Pictures that are made while training, with the moving average of the parameters."""

    every: int = 0
    """Steps between two sets; 0 makes none."""
    prompts: tuple[str, ...] = ("a lighthouse in a storm", "a red fox in the snow")
    """One picture each, always with the same noise."""
    size: tuple[int, int] = (1024, 1024)
    """Height and width in pixels."""
    preview: bool = False
    """With the previewer in place of stages B and A."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"pictures.every {self.every} must be 0 or more")
        if not self.prompts:
            raise UserError("pictures.prompts is empty; give one or more")
        try:
            check_size(*self.size)
        except UserError as error:
            raise UserError(f"pictures.size: {error}") from error


@dataclasses.dataclass(frozen=True)
class MeasuresConfig:
    """FID, KID, IS, CLIP score and PickScore of a fixed set that is drawn while training, with the moving
    average of the parameters (docs/evaluation.md)."""

    every: int = 0
    """Steps between two sets, from before the first step on; 0 makes none."""
    prompts: str = ""
    """File of prompts, as for sample.py: a picture of each, always with the same noise."""
    count: int = 0
    """Of them, the first so many; 0 takes all."""
    weights: tuple[str, ...] = ()
    """Networks that measure: directories that conversion wrote; random:SEED is an untrained Inception."""
    against: str = ""
    """What FID and KID compare with: a folder of pictures, or a .npz file of statistics."""
    resize: Literal["clean", "fidelity", "pytorch"] = "clean"
    """How pictures are resized for Inception."""
    crops: int = -1
    """Of each picture at its own size, at random places, for the patch variants; -1 takes a grid, 0 none."""
    size: tuple[int, int] = (1024, 1024)
    """Height and width in pixels."""
    preview: bool = False
    """With the previewer in place of stages B and A."""
    batch_size: int = 8
    """Pictures drawn at once."""

    def __post_init__(self) -> None:
        for name, low in (("every", 0), ("count", 0), ("crops", -1), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise UserError(f"measures.{name} {getattr(self, name)} must be {low} or more")
        if self.every:
            for name in ("weights", "prompts"):
                if not getattr(self, name):
                    raise UserError(f"measures.every is set; it needs measures.{name}")
        try:
            check_size(*self.size)
        except UserError as error:
            raise UserError(f"measures.size: {error}") from error


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The loss on examples that are never trained on, of the moving average where there is one: without
    dropout, with the same noise, crops and dropped captions each time."""

    share: float = 0.0
    """Share of the examples that is held out, by a hash of their ids; 0 holds out none."""
    every: int = 500
    """Steps between two validations; there is one before the first step and one after the last."""
    examples: int = 256
    """Most held-out examples that are read each time: those with the lowest hashes."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"validation.share {self.share} is outside 0 to 1")
        for name in ("every", "examples"):
            if getattr(self, name) < 1:
                raise UserError(f"validation.{name} {getattr(self, name)} must be 1 or more")
