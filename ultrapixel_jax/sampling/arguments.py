"""The arguments of the Python API: one value or one for each prompt, to entries of a list."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ultrapixel_jax.config import SamplerName, ScheduleName
from ultrapixel_jax.errors import UserError, unknown_key
from ultrapixel_jax.sampling import given
from ultrapixel_jax.sampling.conditions import (
    FEATHER,
    UPSCALE,
    Conditions,
    Control,
    ImagePrompt,
    Inpaint,
    Lora,
    Start,
    Token,
    begun,
)
from ultrapixel_jax.sampling.requests import Entry, check_prompt

FilePath = str | os.PathLike[str]


class Sampling(TypedDict, total=False):
    """Sampling of stage C, both passes, and with `_b` of stage B; what is left out is the model's own.

    One value, or one for each prompt.
    """

    steps: int | Sequence[int]
    cfg: float | Sequence[float]
    cfg_hr: float | Sequence[float]
    shift: float | Sequence[float]
    sampler: SamplerName | Sequence[SamplerName]
    eta: float | Sequence[float]
    schedule: ScheduleName | Sequence[ScheduleName]
    cfg_rescale: float | Sequence[float]
    steps_hr: int | Sequence[int]
    sampler_hr: SamplerName | Sequence[SamplerName]
    cfg_from: float | Sequence[float]
    cfg_until: float | Sequence[float]
    cfg_from_hr: float | Sequence[float]
    cfg_until_hr: float | Sequence[float]
    reuse: int | Sequence[int]
    reuse_hr: int | Sequence[int]
    steps_b: int | Sequence[int]
    cfg_b: float | Sequence[float]
    shift_b: float | Sequence[float]
    sampler_b: SamplerName | Sequence[SamplerName]
    eta_b: float | Sequence[float]
    schedule_b: ScheduleName | Sequence[ScheduleName]
    cfg_rescale_b: float | Sequence[float]
    cfg_from_b: float | Sequence[float]
    cfg_until_b: float | Sequence[float]
    reuse_b: int | Sequence[int]


class Steering(TypedDict, total=False):
    """What steers pictures beside their prompts, all of them alike.

    A picture is a path, an image of PIL's, or an array (height, width, 3) of bytes or of numbers in [0, 1].
    """

    control: Control | Sequence[Control]
    """What ControlNets follow: `Canny`, `Inpainting`, `SuperResolution`; several add up."""
    image_prompt: Any
    """A picture in the place of words or beside them, or a list of them; each may have its weight: (picture,
    weight)."""
    image: Any
    """A picture to start from, or with `mask` to paint into."""
    strength: float
    """How far from it: 1 is from noise."""
    strength_hr: float
    """That of the HR pass; `strength` where it is left out."""
    mask: Any
    """Of `image`, white where it is painted anew."""
    feather: int
    """Pixels around the mask over which the picture comes back."""
    upscale: Any
    """A picture to draw larger."""
    lora: FilePath | Sequence[FilePath | tuple[FilePath, float]]
    """A LoRA, or several that add up, each with its scale."""
    token: Mapping[str, str]
    """New words of prompts, with the pattern of the tokens that each starts from."""


class Options(Sampling, Steering, total=False):
    """All that is optional about a picture, but for what `UltraPixel.stream` names itself."""


STREAM = (
    "negative_prompt", "height", "width", "seed", "num_images", "batch_size", "tile", "decode_memory",
    "latents", "return_latents", "callback",
)  # fmt: skip
"""What `UltraPixel.stream` names itself."""


def check_names(options: Mapping[str, Any], known: type) -> None:
    """Refuse a name that the TypedDict `known` does not have, with the one that was meant.

    Raises:
        UserError: there is one.
    """
    for name in options:
        if name not in known.__annotations__:
            raise UserError(unknown_key(name, [*known.__annotations__, *STREAM], "option"))


def entries(
    prompts: Sequence[str],
    *,
    negative_prompt: Any,
    seed: Any,
    height: Any,
    width: Any,
    options: Mapping[str, Any],
) -> tuple[list[Entry], dict[str, Any]]:
    """An entry for each prompt, and the sampling that is the same for all.

    Raises:
        UserError: a list of another length, a value of another kind, a file that cannot be used.
    """
    count = len(prompts)
    check_names(options, Options)
    sampling = {name: value for name, value in options.items() if name in Sampling.__annotations__}
    own = {name: _each(name, value, count) for name, value in sampling.items() if _is_list(value)}
    steered = conditions({name: value for name, value in options.items() if name not in sampling})
    made = [
        Entry(
            check_prompt(text),
            check_prompt(against),
            seed=own_seed,
            height=h,
            width=w,
            settings={name: values[i] for name, values in own.items()},
            conditions=steered,
        )
        for i, (text, against, own_seed, h, w) in enumerate(
            zip(
                prompts,
                _each("negative_prompt", negative_prompt, count),
                _each("seed", seed, count),
                _each("height", height, count),
                _each("width", width, count),
                strict=True,
            )
        )
    ]
    return made, {name: value for name, value in sampling.items() if name not in own}


def conditions(steering: Mapping[str, Any]) -> Conditions:
    """What the arguments in `Steering` mean.

    Raises:
        UserError: of another kind or out of range, or a file that cannot be used.
    """
    controls = steering.get("control", ())
    start, inpaint = _start(steering)
    return Conditions(
        controls=(controls,) if isinstance(controls, Control) else tuple(controls),
        image_prompts=tuple(_image_prompt(one) for one in _several(steering.get("image_prompt", ()))),
        start=start,
        inpaint=inpaint,
        loras=tuple(_lora(one) for one in _several(steering.get("lora", ()))),
        tokens=tuple(Token(name, pattern or "") for name, pattern in dict(steering.get("token", {})).items()),
    )


def _start(steering: Mapping[str, Any]) -> tuple[Start | None, Inpaint | None]:
    """What is started from, and what is painted into."""
    if "image" not in steering and "mask" in steering:
        raise UserError("mask needs the image that it is of; give image too")
    if "image" in steering and "upscale" in steering:
        raise UserError("image and upscale do not go together; give one picture to draw from")
    strengths: dict[str, Any] = {
        name: checked_number(name, steering[name])
        for name in ("strength", "strength_hr")
        if steering.get(name) is not None
    }
    if "upscale" in steering:
        return begun(given.picture(steering["upscale"]), **strengths, default=UPSCALE), None
    if "image" not in steering:
        return None, None
    image = given.picture(steering["image"])
    if steering.get("mask") is None:
        return begun(image, **strengths), None
    inpaint = Inpaint(
        image, given.picture(steering["mask"]), checked_number("feather", steering.get("feather", FEATHER))
    )
    return begun(image, **strengths, default=(1.0, 1.0)), inpaint


def _image_prompt(value: Any) -> ImagePrompt:
    image, weight = value if isinstance(value, tuple) else (value, 1.0)
    return ImagePrompt(given.picture(image), checked_number("weight of an image prompt", weight))


def _lora(value: Any) -> Lora:
    path, scale = value if isinstance(value, tuple) else (value, 1.0)
    return Lora(given.file(path), checked_number("scale of a LoRA", scale))


def _several(value: Any) -> list[Any]:
    return (
        list(value) if isinstance(value, list) else [value] if not isinstance(value, tuple) or value else []
    )


def checked_number(name: str, value: Any) -> Any:
    """`value` as the option `name` wants it: a whole number, a number, or for names as it stands.

    Raises:
        UserError: it is of another kind.
    """
    base = name.removesuffix("_b").removesuffix("_hr")
    if base in ("sampler", "schedule") or value is None:
        return value
    whole = base in ("steps", "seed", "height", "width", "num_images", "batch_size", "feather", "reuse")
    try:
        return operator.index(value) if whole else float(value)
    except (TypeError, ValueError) as error:
        kind = "whole number" if whole else "number"
        raise UserError(f"{name} {value!r:.80} is not a {kind}") from error


def _each(name: str, value: Any, count: int) -> list[Any]:
    """`value` for each of `count` prompts: a list as it stands, anything else for all."""
    if not _is_list(value):
        value = [value] * count
    if len(value) != count:
        raise UserError(f"{name} has {len(value)} values for {count} prompts; give one, or one for each")
    return list(value) if name == "negative_prompt" else [checked_number(name, v) for v in value]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
