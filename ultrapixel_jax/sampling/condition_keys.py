"""What steers a picture, as people write it: options of ``sample.py`` and keys of prompt files.

Values are read in two steps. `read` makes plain values of texts, without opening a file, so that paths can be
taken relative to the file they stand in (`under`); `conditions_of` opens the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

from ultrapixel_jax.commands import Reader, number, one_of, whole
from ultrapixel_jax.errors import UserError, nearest
from ultrapixel_jax.files import is_remote, place
from ultrapixel_jax.sampling import given
from ultrapixel_jax.sampling.conditions import (
    CONTROL_STRENGTH,
    FEATHER,
    KINDS,
    MAX_STRENGTH,
    STRENGTH,
    UPSCALE,
    Conditions,
    Control,
    ImagePrompt,
    Inpaint,
    Lora,
    Passes,
    Start,
    Token,
    begun,
)


@dataclasses.dataclass(frozen=True)
class Key:
    """One thing that can be said of a picture."""

    read: Callable[[str], Any]
    """From one text to a plain value, with a `Path` for each file; raises `ValueError` with what is wrong."""
    metavar: str
    help: str
    shown: str = ""
    """What is so without it."""
    several: bool = False
    """Whether it may be said more than once; its value is a tuple then."""


def _path(text: str) -> Any:
    if not text.strip():
        raise ValueError("names no file")
    return place(text)


def _weighted(text: str) -> tuple[Any, float]:
    """``FILE[:WEIGHT]``; a colon that no number follows belongs to the name."""
    head, colon, tail = text.rpartition(":")
    try:
        weight = number().read(tail) if colon else 1.0
    except ValueError:
        head, colon, weight = "", "", 1.0
    return _path(head if colon else text), weight


def _token(text: str) -> tuple[str, str]:
    """``NAME[=PATTERN]``."""
    name, _, pattern = text.partition("=")
    if not name.strip():
        raise ValueError(f"{text!r:.80} is not NAME=PATTERN")
    return name.strip(), pattern.strip()


def _control(text: str) -> tuple[Any, ...]:
    """``KIND:IMAGE``, of inpainting ``inpainting:IMAGE:MASK``."""
    kind, colon, rest = text.partition(":")
    kind = kind.strip().lower().replace("-", "_")
    if not colon or kind not in KINDS:
        near = nearest(kind, KINDS)
        hint = f"did you mean {near!r}?" if near else f"KIND is {', '.join(KINDS)}"
        raise ValueError(f"{text!r:.80} is not KIND:IMAGE; {hint}")
    if kind != "inpainting":
        return kind, _path(rest), None
    image, colon, mask = rest.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r:.80} has no mask; write inpainting:IMAGE:MASK")
    return kind, _path(image), _path(mask)


def _map(text: str) -> tuple[Any, ...]:
    """``canny:MAP``."""
    kind, path, _ = _control(text)
    if kind != "canny":
        raise ValueError(f"{text!r:.80} is no map of edges; {kind} is made from the picture, with control")
    return kind, path


def _pair(text: str) -> tuple[Any, Any]:
    """``IMAGE:MASK``."""
    image, colon, mask = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r:.80} is not IMAGE:MASK")
    return _path(image), _path(mask)


def _thresholds(text: str) -> tuple[int, int]:
    parts = [whole(0, 2040).read(part) for part in text.split(",")]
    if len(parts) != 2:
        raise ValueError(f"{text!r:.80} is not LOW,HIGH")
    return parts[0], parts[1]


def _numbers(one: Reader) -> Callable[[str], tuple[float, ...]]:
    """One number, or one for each control with commas between them."""
    return lambda text: tuple(one.read(part) for part in text.split(","))


_SHARE = number(low=0, high=1)

KEYS: Mapping[str, Key] = {
    "control": Key(
        _control,
        "KIND:IMAGE[:MASK]",
        "a picture to follow: canny, inpainting (with a mask), super_resolution",
        several=True,
    ),
    "control_map": Key(
        _map, "canny:MAP", "the same with a map that is ready: white edges on black", several=True
    ),
    "control_strength": Key(
        _numbers(number(low=0, high=MAX_STRENGTH)),
        "X[,X]",
        "one for all controls, or one for each",
        f"{CONTROL_STRENGTH}",
    ),
    "control_from": Key(_numbers(_SHARE), "X[,X]", "share of the steps from which a control counts", "0"),
    "control_until": Key(_numbers(_SHARE), "X[,X]", "share of the steps up to which it does", "1"),
    "control_pass": Key(
        one_of(get_args(Passes)).read,
        "|".join(get_args(Passes)),
        "passes that controls count in; in the HR pass their pictures keep their own resolution",
        "lr",
    ),
    "canny_thresholds": Key(_thresholds, "LOW,HIGH", "of weak and of strong edges", "100,200"),
    "image_prompt": Key(
        _weighted, "FILE[:WEIGHT]", "a picture in the place of words, or beside them", several=True
    ),
    "image": Key(_path, "FILE", "a picture to start from: image to image"),
    "strength": Key(
        number(above=0, high=1).read,
        "X",
        "how far from it: 1 is from noise",
        f"{STRENGTH}, but 1 to paint into it",
    ),
    "strength_hr": Key(number(above=0, high=1).read, "X", "that of the HR pass", "as --strength"),
    "upscale": Key(
        _path,
        "FILE",
        f"a picture to draw larger: --image at --strength {UPSCALE[0]} --strength-hr {UPSCALE[1]}",
    ),
    "inpaint": Key(_pair, "IMAGE:MASK", "a picture, and what to paint anew in it: white"),
    "feather": Key(
        whole(0, 1024).read, "PIXELS", "around the mask, over which the picture comes back", f"{FEATHER}"
    ),
    "lora": Key(_weighted, "FILE[:SCALE]", "a LoRA; several add up", several=True),
    "token": Key(
        _token, "NAME=PATTERN", "a new word that a LoRA brings, such as '[cat]=^cat</w>'", several=True
    ),
}
"""By name with underscores."""
APART = (frozenset(["image", "upscale", "inpaint"]),)
"""Keys of which a picture that says one drops all that the command line says."""


def read(name: str, value: Any) -> Any:
    """The plain value of key `name` that is written as `value`: a text, a number, or a list of them.

    Raises:
        UserError: of another kind or out of range.
    """
    key = KEYS[name]
    if name == "inpaint" and isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(read("image", one) for one in value)
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    if not texts or (len(texts) > 1 and not key.several):
        raise UserError(
            f"{name} takes {'one value or more' if key.several else 'one value'}, not {value!r:.80}"
        )
    out = []
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise UserError(f"{name} must be {key.metavar}, not {text!r:.80}")
        try:
            out.append(key.read(str(text)))
        except ValueError as error:
            raise UserError(f"{name} {error}") from error
    return tuple(out) if key.several else out[0]


def under(value: Any, folder: Path) -> Any:
    """`value` of `read` with its relative paths taken from `folder`."""
    if isinstance(value, tuple):
        return tuple(under(one, folder) for one in value)
    if isinstance(value, PurePath) and not is_remote(value):
        return folder / value
    return value


def merged(of_all: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture says itself, and what all of them say where it says nothing."""
    dropped = {name for group in APART if group & own.keys() for name in group}
    return {**{name: value for name, value in of_all.items() if name not in dropped}, **own}


def conditions_of(values: Mapping[str, Any]) -> Conditions:
    """The conditions that plain `values` mean, by the names in `KEYS`.

    Raises:
        UserError: a file that cannot be used, a value out of range, or values that do not go together.
    """
    start, inpaint = _start(values)
    return Conditions(
        controls=_controls(values),
        image_prompts=tuple(
            ImagePrompt(given.picture(path), weight) for path, weight in values.get("image_prompt", ())
        ),
        start=start,
        inpaint=inpaint,
        loras=tuple(Lora(given.file(path), scale) for path, scale in values.get("lora", ())),
        tokens=tuple(Token(*token) for token in values.get("token", ())),
    )


CONTROL_NUMBERS = {"control_strength": "strength", "control_from": "start", "control_until": "until"}
"""Keys with a number for each control, and the fields that they fill."""
CONTROL_REST = {"control_pass": "passes", "canny_thresholds": "thresholds"}
"""Keys with one value for all of them."""


def _controls(values: Mapping[str, Any]) -> tuple[Control, ...]:
    """Those that follow a picture, then those with a map."""
    named = [(kind, path, mask, False) for kind, path, mask in values.get("control", ())]
    named += [(kind, path, None, True) for kind, path in values.get("control_map", ())]
    each: dict[str, Any] = {
        field: _for_each(name, values.get(name), len(named)) for name, field in CONTROL_NUMBERS.items()
    }
    own: list[Any] = [{field: n[k] for field, n in each.items() if n} for k in range(len(named))]
    of_all = {field: values[name] for name, field in CONTROL_REST.items() if name in values}
    return tuple(
        Control(
            kind,
            given.picture(path),
            mask and given.picture(mask),
            ready=ready,
            **of_all,
            **one,
        )
        for (kind, path, mask, ready), one in zip(named, own, strict=True)
    )


def _for_each(name: str, numbers: Sequence[float] | None, count: int) -> Sequence[float]:
    if not numbers or not count:
        return ()
    if len(numbers) not in (1, count):
        raise UserError(f"{name} has {len(numbers)} values for {count} controls; give one, or one for each")
    return [*numbers] * (count if len(numbers) == 1 else 1)


def _start(values: Mapping[str, Any]) -> tuple[Start | None, Inpaint | None]:
    """What is started from, and what is painted into."""
    named = [name for name in ("image", "upscale", "inpaint") if name in values]
    if len(named) > 1:
        raise UserError(f"{named[0]} and {named[1]} do not go together; give one picture to draw from")
    strengths = values.get("strength"), values.get("strength_hr")
    if "inpaint" in values:
        image, mask = (given.picture(path) for path in values["inpaint"])
        feather = {"feather": values["feather"]} if "feather" in values else {}
        return begun(image, *strengths, default=(1.0, 1.0)), Inpaint(image, mask, **feather)
    if "upscale" in values:
        return begun(given.picture(values["upscale"]), *strengths, default=UPSCALE), None
    return begun(given.picture(values["image"]), *strengths) if "image" in values else None, None
