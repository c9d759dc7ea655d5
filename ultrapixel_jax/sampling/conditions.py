"""What steers a picture beside its prompts: controls, image prompts, a picture to start from, LoRAs, tokens.

Nothing here imports jax. Everything is frozen and hashable, so that a `Request` is.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Literal, get_args

from ultrapixel_jax.config import from_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import given
from ultrapixel_jax.sampling.given import GivenFile, GivenPicture

ControlKind = Literal["canny", "inpainting", "super_resolution"]
KINDS: tuple[str, ...] = get_args(ControlKind)
Passes = Literal["lr", "hr", "both"]
CONTROL_STRENGTH = 0.7
"""UltraPixel's own."""
CONTROL_SIDE = 768
"""Shorter side of a control image, in pixels, where it does not keep its own."""
THRESHOLDS = (100, 200)
"""The released ones, of canny's weak and strong edges."""
MAX_STRENGTH = 10.0
"""Of a control, or weight of an image prompt, beyond which nothing sensible comes out."""
RATIO = 1.03
"""How much a picture's aspect ratio may be off the one that is drawn: sizes are rounded to latents."""
STRENGTH = 0.6
"""Of image to image, in both passes."""
UPSCALE = (0.3, 0.5)
"""Strengths of the LR and of the HR pass where a picture is drawn larger."""
FEATHER = 16
"""Pixels around what is painted over which the untouched ones come back."""


@dataclasses.dataclass(frozen=True)
class Control:
    """A picture that a ControlNet follows."""

    kind: ControlKind
    image: GivenPicture
    mask: GivenPicture | None = None
    """Of inpainting: white is to be painted."""
    strength: float = CONTROL_STRENGTH
    """What the ControlNet's maps are multiplied by."""
    start: float = 0.0
    """Share of a pass's steps from which it counts."""
    until: float = 1.0
    """Share of a pass's steps up to which it counts."""
    passes: Passes = "lr"
    """Of stage C. In the HR pass the picture keeps its own resolution."""
    ready: bool = False
    """Whether the picture is the map itself, white edges on black."""
    thresholds: tuple[int, int] = THRESHOLDS
    """Of canny's weak and strong edges."""
    network: str = ""
    """Identity of the weights, where they are not of the model's own checkpoint."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"control {self.kind!r:.80} is not known; use {', '.join(KINDS)}")
        _check_range("control strength", self.strength, MAX_STRENGTH)
        if not 0 <= self.start < self.until <= 1:
            raise UserError(
                f"a control from {self.start:g} until {self.until:g} has no steps; give shares of the steps, "
                "such as from 0 until 0.5"
            )
        if self.passes not in get_args(Passes):
            raise UserError(f"passes {self.passes!r:.80} are not known; use {', '.join(get_args(Passes))}")
        if (self.kind == "inpainting") != (self.mask is not None):
            need = "needs a mask" if self.mask is None else "takes no mask"
            raise UserError(f"a control of the kind {self.kind} {need}")
        if self.ready and self.kind != "canny":
            raise UserError(
                f"a ready-made map is for canny alone; {self.kind} is made from the picture itself"
            )
        low, high = self.thresholds
        if not 0 <= low <= high <= 4 * 255 * 2:
            raise UserError(
                f"canny's thresholds {low},{high} must be two numbers from 0 to 2040, the lower first"
            )
        if self.mask is not None:
            _check_mask(self.image, self.mask)


def Canny(image: Any, **values: Any) -> Control:  # noqa: N802, it reads as a kind of Control
    """A `Control` by the edges of a picture (path, image of PIL's, array); `values` are its fields."""
    return Control("canny", given.picture(image), **values)


def Inpainting(image: Any, mask: Any, **values: Any) -> Control:  # noqa: N802
    """A `Control` by what surrounds the white of `mask`."""
    return Control("inpainting", given.picture(image), given.picture(mask), **values)


def SuperResolution(image: Any, **values: Any) -> Control:  # noqa: N802
    """A `Control` by a small picture."""
    return Control("super_resolution", given.picture(image), **values)


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """A picture in the place of words, or beside them."""

    image: GivenPicture
    weight: float = 1.0
    """What its vector is multiplied by."""

    def __post_init__(self) -> None:
        _check_range("weight of an image prompt", self.weight, MAX_STRENGTH)


@dataclasses.dataclass(frozen=True)
class Start:
    """A picture that sampling starts from in the place of noise."""

    image: GivenPicture
    strength: float
    """The t that the LR pass starts from: 1 is noise alone."""
    strength_hr: float
    """That of the HR pass."""

    def __post_init__(self) -> None:
        for value in (self.strength, self.strength_hr):
            if not (math.isfinite(value) and 0 < value <= 1):
                raise UserError(f"strength {value:g} must be above 0 and at most 1, which is noise alone")


def begun(
    image: GivenPicture,
    strength: float | None = None,
    strength_hr: float | None = None,
    default: tuple[float, float] = (STRENGTH, STRENGTH),
) -> Start | None:
    """The start from `image`; None where it is noise in both passes.

    A strength that is None is the default; that of the HR pass is the LR pass's where only that one is given.
    """
    if strength is not None:
        default = (strength, strength)
    own = Start(image, default[0], default[1] if strength_hr is None else strength_hr)
    return own if min(own.strength, own.strength_hr) < 1 else None


@dataclasses.dataclass(frozen=True)
class Inpaint:
    """A picture of which only a part is painted anew."""

    image: GivenPicture
    mask: GivenPicture
    """White is to be painted."""
    feather: int = FEATHER
    """Pixels around the mask over which the untouched ones come back."""

    def __post_init__(self) -> None:
        _check_mask(self.image, self.mask)
        _check_range("feather", float(self.feather), 1024.0)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA that is added to the weights."""

    file: GivenFile
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Token:
    """A new word of prompts, whose embedding a LoRA brings."""

    name: str
    """As it stands in prompts, such as ``[roubaobao]``."""
    pattern: str = ""
    """Of the tokens whose mean embedding it starts from, such as ``^cat</w>``; empty is zero."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """All of them. Of each field, what is empty changes nothing."""

    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    start: Start | None = None
    inpaint: Inpaint | None = None
    loras: tuple[Lora, ...] = ()
    tokens: tuple[Token, ...] = ()

    def __bool__(self) -> bool:
        return self != Conditions()

    @property
    def group(self) -> Hashable:
        """What must be equal for pictures to run in one batch; all else are values of each picture."""
        start = self.start and (self.start.strength, self.start.strength_hr)  # as many steps
        return (
            tuple((c.kind, c.passes, c.network, own_side(c)) for c in self.controls),
            len(self.image_prompts), start, self.inpaint is not None, self.loras, self.tokens,
        )  # fmt: skip

    def files(self) -> Iterator[GivenFile]:
        """Every file and picture in them."""
        for control in self.controls:
            yield control.image
            if control.mask is not None:
                yield control.mask
        yield from (prompt.image for prompt in self.image_prompts)
        if self.start is not None:
            yield self.start.image
        if self.inpaint is not None:
            yield self.inpaint.image
            yield self.inpaint.mask
        yield from (lora.file for lora in self.loras)

    def pictures_of_size(self) -> Iterator[GivenPicture]:
        """Those that lie under the picture that is drawn, and so have its aspect ratio."""
        yield from (control.image for control in self.controls)
        yield from (own.image for own in (self.start, self.inpaint) if own is not None)

    def check(self, height: int, width: int) -> None:
        """Refuse pictures of another aspect ratio than `height` × `width`.

        Raises:
            UserError: one is.
        """
        for one in self.pictures_of_size():
            off = one.width * height / (one.height * width)
            if not 1 / RATIO <= off <= RATIO:
                raise UserError(
                    f"{one.name} is {one.height}x{one.width} (height first), of another aspect ratio than "
                    f"{height}x{width}, which is drawn; take its own for the size, or crop it"
                )


NONE = Conditions()
"""Of a picture that its prompts alone make."""


def own_side(control: Control) -> int | None:
    """Shorter side of a control's picture in the HR pass, where it keeps its own; else None."""
    return None if control.passes == "lr" else min(control.image.height, control.image.width)


# ---------------------------------------------------------------------------- metadata


def described(conditions: Conditions) -> dict[str, Any]:
    """The JSON-able form: what is not empty, files by path and checksum."""
    return _plain(conditions)


def recorded(values: Mapping[str, Any], beside: str | os.PathLike[str]) -> Conditions:
    """Inverse of `described`, with the files where they lie now; `beside` is the picture's directory.

    Raises:
        UserError: a file is missing or has changed, or a value is of another kind.
    """
    found = from_dict(Conditions, dict(values))
    return _with_files(found, lambda one: given.check_there(one, beside))


def without_paths(values: Any) -> Any:
    """`described` conditions but for where files lay: equal for the same picture."""
    if isinstance(values, Mapping):
        return {key: without_paths(value) for key, value in values.items() if key != "path"}
    return [without_paths(value) for value in values] if isinstance(values, (list, tuple)) else values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        out = {}
        for field in dataclasses.fields(value):
            own = getattr(value, field.name)
            if field.compare and own != field.default:
                out[field.name] = _plain(own)
        return out
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _with_files(value: Any, change: Callable[[GivenFile], GivenFile]) -> Any:
    if isinstance(value, GivenFile):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_with_files(one, change) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _with_files(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    return value


def _check_range(what: str, value: float, high: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= high):
        raise UserError(f"{what} {value:g} is outside 0 to {high:g}")


def _check_mask(image: GivenPicture, mask: GivenPicture) -> None:
    if (image.height, image.width) != (mask.height, mask.width):
        raise UserError(
            f"mask {mask.name} has {mask.height}x{mask.width} pixels (height first), and its picture "
            f"{image.name} {image.height}x{image.width}; they have to be of one size"
        )
