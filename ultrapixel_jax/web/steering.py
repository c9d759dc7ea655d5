"""What steers a picture beside its prompts, as a browser says it: pictures by their places, LoRAs by name.

A picture is ``pictures/NAME`` of the gallery or ``sent/NAME``: nothing else can be opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ultrapixel_jax.commands import number
from ultrapixel_jax.errors import UserError, nearest, unknown_key
from ultrapixel_jax.sampling import condition_keys
from ultrapixel_jax.web.gallery import Gallery
from ultrapixel_jax.web.sent import FOLDER, Sent
from ultrapixel_jax.web.server import RefusedError

MAX_GUIDES = 4
"""Pictures of one request: each takes memory."""
MAX_WORDS = 16
"""New words of one request."""
ROLES = {
    "image": "image", "upscale": "upscale", "inpaint": "inpaint", "image_prompt": "image_prompt",
    "canny": "control", "super_resolution": "control", "inpainting": "control",
}  # fmt: skip
"""What a picture can be for, and the key of prompt files that says so."""
AMOUNTS = {"image": "strength", "upscale": "strength_hr", "inpaint": "strength"}
"""The key of the number beside a picture, where it is not part of the picture's own."""
MASKED = ("inpaint", "inpainting")
"""Roles that need a mask."""


class Shelf:
    """Whatever a browser can name.

    Args:
        gallery: pictures that were drawn.
        sent: pictures that were sent.
        loras: directory of LoRA files; None offers none.
    """

    def __init__(self, gallery: Gallery, sent: Sent, loras: Path | None = None) -> None:
        self.gallery, self.sent, self._loras = gallery, sent, loras

    @property
    def loras(self) -> list[str]:
        """Names of the LoRA files."""
        if self._loras is None:
            return []
        return sorted(path.name for path in self._loras.glob("*.safetensors") if path.is_file())

    def picture(self, source: object) -> Path:
        """Where the picture ``pictures/NAME`` or ``sent/NAME`` lies.

        Raises:
            UserError: it is named otherwise.
            RefusedError: there is none.
        """
        folder, _, name = source.partition("/") if isinstance(source, str) else ("", "", "")
        if folder == "pictures":
            return self.gallery.path(name)
        if folder == FOLDER:
            return self.sent.path(name)
        raise UserError(f"{source!r:.80} is no picture of this page; send it first")

    def source(self, path: str) -> str | None:
        """How a browser names the file at `path`; None for one that is not here."""
        for folder, find in (("pictures", self.gallery.path), (FOLDER, self.sent.path)):
            with contextlib.suppress(RefusedError, OSError):
                if (found := find(Path(path).name)).samefile(path):
                    return f"{folder}/{found.name}"
        return None

    def lora(self, name: object) -> Path:
        """Where the LoRA of that name lies.

        Raises:
            RefusedError: there is none.
        """
        if self._loras is None or name not in self.loras:
            raise RefusedError(
                HTTPStatus.NOT_FOUND, f"there is no LoRA {name!r:.80}; give its folder with --loras"
            )
        return self._loras / str(name)


def available() -> list[str]:
    """Roles that this version knows."""
    return [role for role, key in ROLES.items() if key in condition_keys.KEYS]


def read(guides: object, loras: object, words: object, shelf: Shelf) -> dict[str, Any]:
    """Conditions by the names of `condition_keys.KEYS`, as an `Entry` has them.

    Args:
        guides: a list of objects with `role`, `source`, and optionally `mask` and `amount`.
        loras: a list of objects with `name` and optionally `scale`.
        words: a list of new words that LoRAs bring without their names, as ``NAME=PATTERN``.
        shelf: what can be named.

    Raises:
        UserError: anything of another kind, or out of range.
        RefusedError: a name that leads nowhere.
    """
    found: dict[str, Any] = {}
    for guide in _objects("guides", guides, ("role", "source", "mask", "amount")):
        _add(found, guide, shelf)
    for lora in _objects("loras", loras, ("name", "scale")):
        found.setdefault("lora", []).append((shelf.lora(lora.get("name")), _number(lora.get("scale"), 1.0)))
    if words:
        found["token"] = condition_keys.read("token", words)
        if len(found["token"]) > MAX_WORDS:
            raise UserError(f"{len(found['token'])} new words are too many; at most {MAX_WORDS} are taken")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def guides_of(conditions: object, shelf: Shelf) -> dict[str, Any]:
    """Inverse of `read`, of a picture's metadata: `guides`, `loras`, `token`, and the names of files that are
    not here under `missing`. What the metadata says beside that is passed over.
    """
    found: dict[str, Any] = {"guides": [], "loras": [], "token": [], "missing": []}
    of: Mapping[str, Any] = conditions if isinstance(conditions, Mapping) else {}

    def source(value: Mapping[str, Any], name: str) -> str | None:
        path = str(value[name]["path"])
        if (known := shelf.source(path)) is None:
            found["missing"].append(Path(path).name or "a picture given in Python")
        return known

    def add(role: str, value: Mapping[str, Any], amount: str, default: float) -> None:
        own = {"role": role, "source": source(value, "image"), "amount": value.get(amount, default)}
        size = {name: value["image"].get(name) for name in ("height", "width")}
        if "mask" in value:
            own["mask"] = source(value, "mask")
        if None not in own.values():
            found["guides"].append(own | size)

    with contextlib.suppress(KeyError, TypeError, AttributeError):  # somebody else's metadata
        for control in of.get("controls", ()):
            add(str(control["kind"]), control, "strength", 0.7)
        for prompt in of.get("image_prompts", ()):
            add("image_prompt", prompt, "weight", 1.0)
        start = of.get("start")
        if "inpaint" in of:
            strength = (start or {}).get("strength", 1.0)
            add("inpaint", {**of["inpaint"], "strength": strength}, "strength", 1.0)
        elif start:
            larger = start["strength"] != start["strength_hr"]
            add("upscale" if larger else "image", start, "strength_hr", 0.6)
        for lora in of.get("loras", ()):
            name = Path(str(lora["file"]["path"])).name
            where = found["loras"] if name in shelf.loras else found["missing"]
            where.append({"name": name, "scale": lora.get("scale", 1.0)} if name in shelf.loras else name)
        for word in of.get("tokens", ()):
            pattern = str(word.get("pattern", ""))
            found["token"].append(str(word["name"]) + (f"={pattern}" if pattern else ""))
    return found


def _add(found: dict[str, Any], guide: Mapping[str, Any], shelf: Shelf) -> None:
    role, amount = guide.get("role"), guide.get("amount")
    if role not in available():
        near = nearest(str(role), available())
        raise UserError(
            f"role {role!r:.80} is not known; {f'did you mean {near!r}?' if near else 'see the page'}"
        )
    path = shelf.picture(guide.get("source"))
    mask = shelf.picture(guide.get("mask")) if role in MASKED else None
    key = ROLES[role]
    if key == "image_prompt":
        found.setdefault(key, []).append((path, _number(amount, 1.0)))
    elif key == "control":
        found.setdefault(key, []).append((role, path, mask))
        found.setdefault("control_strength", []).append(_number(amount, 0.7))
    else:
        if {"image", "upscale", "inpaint"} & found.keys():
            raise UserError("only one picture can be started from, drawn larger or painted into")
        found[key] = path if mask is None else (path, mask)
        if amount is not None:
            found[AMOUNTS[role]] = _number(amount, 1.0)


def _objects(what: str, values: object, known: Sequence[str]) -> list[Mapping[str, Any]]:
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise UserError(f"{what} must be a list of objects")
    if len(values) > MAX_GUIDES:
        raise UserError(f"{len(values)} {what} are too many; at most {MAX_GUIDES} are taken")
    for value in values:
        for key in value:
            if key not in known:
                raise UserError(unknown_key(str(key), known, "key"))
    return values


def _number(value: object, default: float) -> float:
    read: Callable[[str], float] = number(low=0, high=10).read
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{value!r:.80} is not a number")
        return default if value is None else read(repr(value))
    except ValueError as error:
        raise UserError(str(error)) from error
