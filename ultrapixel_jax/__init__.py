"""UltraPixel in JAX/Flax: text to images of 1K to 6K pixels (Ren et al., NeurIPS 2024).

    from ultrapixel_jax import UltraPixel

    model = UltraPixel.load("CHECKPOINT")  # or .load() for the demo
    model("a lighthouse in a storm", height=2048, width=3072)[0].save("lighthouse.png")

Public names are imported when they are first used; `import ultrapixel_jax` alone imports nothing of jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultrapixel_jax.config.version import __version__
    from ultrapixel_jax.data.build import build as build_data
    from ultrapixel_jax.errors import UserError
    from ultrapixel_jax.sampling.conditions import Canny, Inpainting, SuperResolution
    from ultrapixel_jax.sampling.picture import Picture
    from ultrapixel_jax.sampling.ultrapixel import UltraPixel
    from ultrapixel_jax.training.loop import train

_PUBLIC = {
    "UltraPixel": "ultrapixel_jax.sampling.ultrapixel:UltraPixel",
    "Picture": "ultrapixel_jax.sampling.picture:Picture",
    "Canny": "ultrapixel_jax.sampling.conditions:Canny",
    "Inpainting": "ultrapixel_jax.sampling.conditions:Inpainting",
    "SuperResolution": "ultrapixel_jax.sampling.conditions:SuperResolution",
    "UserError": "ultrapixel_jax.errors:UserError",
    "build_data": "ultrapixel_jax.data.build:build",
    "convert": "convert.convert:convert",
    "__version__": "ultrapixel_jax.config.version:__version__",
    "train": "ultrapixel_jax.training.loop:train",
}
"""Module and name there of every public name."""
__all__ = [
    "Canny", "Inpainting", "Picture", "SuperResolution", "UltraPixel", "UserError", "__version__",
    "build_data", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
