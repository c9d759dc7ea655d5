"""How training data is read. Imports no jax, so that ``--help`` and bad values answer at once."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Literal

from ultrapixel_jax.errors import UserError

LrResize = Literal["bilinear", "nearest"]
Control = Literal["", "canny", "inpainting", "super_resolution"]

AREAS = (1024, 2048, 2560, 3072, 3584, 3840, 4096, 4608)
"""s of the released areas s², in pixels (§12)."""
RATIOS = ("1/1", "1/2", "1/3", "2/3", "3/4", "1/5", "2/5", "3/5", "4/5", "1/6", "5/6", "9/16")
"""The released aspect ratios; each stands for its inverse too."""
LR_LATENT = 24
"""Side of the square low-resolution latent of the full model."""
MULTIPLE = 32
"""Sides are floored to multiples of this: the EffNet encoder's factor."""
MAX_SEED = 2**63 - 1
"""Largest seed."""
MAX_MEGAPIXELS = 512
"""Most millions of pixels of one picture: 22,600² of them, 1.5 GB as RGB."""
MIN_SIDE = 32
"""Least shorter side of a picture, in pixels: one position of the latent grid."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: str = ""
    """Directory that `ultrapixel_jax.data.build` or `.cache` wrote; local or gs://…"""
    prior: str = ""
    """A second dataset, of the same kind, that some of the batches are of: pictures like those of `path`, so
    that what they show is not forgotten ("prior preservation")."""
    prior_share: float = 0.5
    """Of the batches, where there is a `prior`: 0.5 is the usual loss with as much weight as the other."""
    cached: bool = False
    """Whether it holds latents and text states (`.cache`) rather than images."""
    cached_text: bool = True
    """Whether that has text states (no `.cache --without clip_text`); else training computes them."""
    areas: tuple[int, ...] = AREAS
    """s of the areas s² that images are resized to, in pixels. Unused with `cached`, which has them."""
    ratios: tuple[str, ...] = RATIOS
    """Aspect ratios like 9/16; the inverse of each is added. Unused with `cached`."""
    batch_size: int = 64
    """Examples of one step, over all processes."""
    seed: int = 0
    """Of the order, the crops and what is dropped."""
    workers: int = 0
    """Worker processes that decode; 0 decodes in threads of the training process. Changes no batch."""
    caption_dropout: float = 0.05
    """Probability that a caption becomes the empty one."""
    image_vector_probability: float = 0.1
    """Probability that the CLIP image vector is used; zeros else."""
    lr_resize: LrResize = "bilinear"
    """How the low-resolution image is made: antialiased `bilinear`, or `nearest` as in the reference."""
    lr_latent: int = 0
    """Side of the square low-resolution latent; 0 takes the model's where guidance is trained (3/4 of
    `model.guidance.lr_side`), else 24."""
    clip_image_size: int = 0
    """Side in pixels of the `image_clip` that the CLIP image tower takes (224); 0 leaves it out."""
    control: Control = ""
    """What a ControlNet that is trained sees of each picture: set by the model's `controlnet.kind`."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Most millions of pixels that a picture may have; a larger one counts as broken."""
    cache_dir: str = ""
    """Where the records of a remote `path` are copied to; empty is the user's cache directory."""

    def __post_init__(self) -> None:
        for s in self.areas:
            if s < MULTIPLE:
                raise UserError(f"data.areas has {s}; use sides of {MULTIPLE} pixels or more")
        if not self.areas or len(set(self.areas)) != len(self.areas):
            raise UserError(f"data.areas {self.areas} must be a list of different sides like 1024 2048")
        if not self.ratios:
            raise UserError("data.ratios is empty; give at least 1/1")
        for ratio in self.ratios:
            try:
                parse_ratio(ratio)
            except UserError as error:
                raise UserError(f"data.ratios: {error}") from error
        if not 0 < self.prior_share < 1:
            raise UserError(f"data.prior_share {self.prior_share} must lie between 0 and 1")
        if self.batch_size < 1:
            raise UserError(f"data.batch_size {self.batch_size} must be 1 or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"data.seed {self.seed} is outside 0 to {MAX_SEED}")
        if not 0 <= self.workers <= 1024:
            raise UserError(f"data.workers {self.workers} is outside 0 to 1024")
        for name in ("caption_dropout", "image_vector_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"data.{name} {getattr(self, name)} is outside [0, 1]")
        if self.lr_resize not in ("bilinear", "nearest"):
            raise UserError(f"data.lr_resize {self.lr_resize!r} is not known; use bilinear or nearest")
        if not 0 <= self.lr_latent <= 32:
            raise UserError(f"data.lr_latent {self.lr_latent} is outside 1 to 32, or 0 for the model's")
        if not 1 <= self.max_megapixels <= 100_000:
            raise UserError(f"data.max_megapixels {self.max_megapixels} is outside 1 to 100000")
        if self.clip_image_size < 0:
            raise UserError(f"data.clip_image_size {self.clip_image_size} must be 0 or more")


def parse_ratio(text: str) -> Fraction:
    """Read an aspect ratio like ``9/16``, exactly.

    Raises:
        UserError: another form, or a ratio outside 1/100 to 100.
    """
    try:
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"aspect ratio {text!r:.40} is not a fraction; write it like 9/16") from error
    if not Fraction(1, 100) <= ratio <= 100:
        raise UserError(f"aspect ratio {text} is outside 1/100 to 100")
    return ratio
