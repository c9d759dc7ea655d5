"""A picture in memory: an image of PIL's that carries how it was made, into every PNG that it is saved as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

KEY = "ultrapixel"
"""Keyword of the PNG's iTXt chunk that holds the metadata as one JSON object."""
COMPRESSION = 1
"""zlib's level for PNGs: files are a tenth larger than at PIL's 6, and written seven times faster."""


class Picture(Image.Image):
    """An RGB image whose `save` as PNG writes its metadata; copies and changed images carry none."""

    metadata: dict[str, Any]
    """How it was made, from `pictures.describe`; what ``sample.py --reproduce`` reads."""
    latents: dict[str, Float[np.ndarray, "h w c"]]
    """`stage_c_low`, `stage_c` and `stage_b`, where they were asked for."""
    controls: dict[str, Image.Image]
    """What each ControlNet was shown, by its kind, such as the map of edges."""

    @classmethod
    def of(
        cls,
        image: UInt8[np.ndarray, "h w 3"],
        metadata: Mapping[str, Any],
        latents: Mapping[str, np.ndarray] | None = None,
        controls: Mapping[str, np.ndarray] | None = None,
    ) -> Picture:
        """The picture of these pixels."""
        picture = Image.fromarray(image)
        picture.__class__ = cls  # PIL has no constructor for subclasses
        assert isinstance(picture, cls)
        picture.metadata, picture.latents = dict(metadata), dict(latents or {})
        picture.controls = {name: Image.fromarray(_flat(image)) for name, image in (controls or {}).items()}
        picture.info |= texts(metadata)
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As `PIL.Image.Image.save`; a PNG gets the metadata, and is compressed lightly."""
        info = PngImagePlugin.PngInfo()
        for key, text in texts(self.metadata).items():
            info.add_itxt(key, text)
        super().save(fp, format, **{"pnginfo": info, "compress_level": COMPRESSION, **params})


def _flat(image: np.ndarray) -> np.ndarray:
    """Grey pictures without an axis of channels, as PIL has them."""
    return image[..., 0] if image.shape[-1] == 1 else image


def texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a PNG by keyword: all of `metadata`, and what people write under a picture."""
    return {KEY: json.dumps(metadata, allow_nan=False), "parameters": _parameters(metadata)}


def _parameters(metadata: Mapping[str, Any]) -> str:
    """The metadata as people write it under a picture; many viewers show this key.

    By the rules of AUTOMATIC1111's web UI: settings are the last line, keys have no brackets, and values
    with a comma or a colon are JSON strings.
    """
    c, b = metadata["stage_c"], metadata["stage_b"]
    settings = {"Steps": c["steps"], "Sampler": c["sampler"], "Schedule type": c["schedule"]}
    settings |= {"CFG scale": c["cfg"], "Seed": metadata["seed"]}
    settings |= {"Size": f"{metadata['width']}x{metadata['height']}"}
    settings |= {"Model hash": metadata["checkpoint"][:10], "Model": "UltraPixel", "Shift": c["shift"]}
    settings |= {"HR CFG scale": c.get("cfg_hr"), "Eta": c["eta"]}
    for name, key in _RARE.items():
        settings[key] = c.get(name)
    for key, name in (("Steps", "steps"), ("Sampler", "sampler"), ("CFG scale", "cfg"), ("Shift", "shift"),
                      ("Schedule type", "schedule"), ("Eta", "eta")):  # fmt: skip
        settings[f"Stage B {key}"] = b[name]
    for name, key in _RARE.items():
        settings[f"Stage B {key}"] = b.get(name)
    settings["Version"] = f"ultrapixel_jax {metadata.get('versions', {}).get('ultrapixel_jax', '')}".strip()
    lines = [metadata["prompt"]]
    if metadata["negative_prompt"]:
        lines.append("Negative prompt: " + metadata["negative_prompt"])
    given = (f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None)
    return "\n".join([*lines, ", ".join(given)])


_RARE = {
    "steps_hr": "HR Steps", "sampler_hr": "HR Sampler", "cfg_from": "CFG from", "cfg_until": "CFG until",
    "cfg_from_hr": "HR CFG from", "cfg_until_hr": "HR CFG until", "reuse": "Reuse", "reuse_hr": "HR Reuse",
}  # fmt: skip
"""What is there where it is not the default."""


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if {*text} & {*',:\n"'} else text
