"""Checkpoints in the released formats, made from names: what conversion and the end-to-end tests read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from convert.export import released_format, released_shapes
from convert.formats import FORMATS
from ultrapixel_jax.checkpoints import named_weights
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.layouts.files import write_safetensors


def state_dict(component: str, config, layout: str | None = None, first: int = 64) -> dict[str, np.ndarray]:
    """Named weights of a component, float32, by the released file's keys."""
    fmt = released_format(component, config)
    if layout is not None:
        fmt = next(f for f in FORMATS if f.component == component and f.layout == layout)
    shapes = released_shapes(fmt, config, first)
    return {key: named_weights.tensor(key, shape) for key, shape in shapes.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """As a safetensors file."""
    write_safetensors(path, {k: (v.shape, v.dtype) for k, v in tensors.items()}, tensors.__getitem__)


def write_pickle(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """As the torch zip pickle that calls itself safetensors."""
    import torch

    torch.save({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, path)


def write_release(directory: Path, config: CascadeConfig) -> None:
    """A directory of all files that sampling needs, as a user downloads them; guidance as a pickle."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("stage_c", "stage_b", "stage_a", "previewer"):
        write(directory / f"{name}.safetensors", state_dict(name, getattr(config, name)))
    guidance = state_dict("guidance", config.guidance, first=14)
    write_pickle(directory / "ultrapixel_t2i.safetensors", guidance)
    clip = directory / "clip"
    clip.mkdir()
    write(clip / "model.safetensors", state_dict("clip_text", config.clip_text))
    (clip / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModelWithProjection"]}))
    for file in BYTE_TOKENIZER.iterdir():
        shutil.copy(file, clip)
