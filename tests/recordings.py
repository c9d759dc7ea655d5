"""The recorded outputs of the released implementation (see tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"
MANIFESTS = Path(__file__).parent / "manifests"


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors `in.*`, `out.*` of a recording as recorded (channels first), and its metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    return tensors, metadata


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of a released checkpoint."""
    return {k: tuple(v) for k, v in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def nhwc(x: np.ndarray) -> np.ndarray:
    """(B, C, H, W) as recorded to (B, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the expected output's largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
