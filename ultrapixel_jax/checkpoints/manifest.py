"""What a checkpoint directory says about itself: its manifest and the checksums of its files.

Nothing here needs jax, so that asking what a directory holds answers at once.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from ultrapixel_jax.config import drawn_alike
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath, bucket_errors, fingerprint, place, size_of

FORMAT_VERSION = 1
"""Raised when a directory can no longer be read by older code."""
MANIFEST = "manifest.json"
"""Name of the file that describes the components."""
CHECKSUMS = "checksums.json"
"""Name of the file with size and CRC-32 of every file in a subdirectory."""


@dataclasses.dataclass(frozen=True)
class ComponentInfo:
    """What the manifest says about one network. The writer fills the fields after `kept_aside`."""

    config: dict[str, Any]
    """The network's configuration, as `config.to_dict` gives it."""
    variant: str = ""
    """Which released model: "3.6B", "lite"; empty where there is one only."""
    source: str = ""
    """Name of the file it was converted from, without its directory."""
    source_sha256: str | None = None
    """Checksum of that file, where known."""
    layout: str = ""
    """Naming of that file's tensors: which table reads it, and writes it on export."""
    kept_aside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Small tensors of the file that are no variables, for the export."""
    tensors: int = 0
    """Number of arrays."""
    parameters: int = 0
    """Number of values in `params`."""
    dtype: str = ""
    """Dtypes of the arrays, comma-separated."""
    sha256: str = ""
    """Checksum over the paths, shapes, dtypes and bytes of all arrays."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    version: int
    """Format version."""
    components: dict[str, ComponentInfo]
    """By the name of the subdirectory."""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How to sample from it: `sampling_c` and `sampling_b` as `config.to_dict` gives them; as from the
    released model where there are none."""


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """What is in a checkpoint directory.

    `UserError` if there is none, or if it is incomplete, damaged or of a newer format.
    """
    directory = place(directory)
    with bucket_errors(directory):
        there = directory.is_dir()
    if not there:
        raise UserError(f"checkpoint directory {directory} does not exist; convert the released files first")
    content = read_json(directory, MANIFEST)
    version = content.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{directory} has checkpoint format {version}, newer than {FORMAT_VERSION}; update this program"
        )
    try:
        infos = {name: _info_from_json(info) for name, info in content["components"].items()}
        return Manifest(int(content["version"]), infos, dict(content.get("sampling", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{directory / MANIFEST} is damaged ({error!r}); convert again") from error


def identity(directory: str | os.PathLike[str]) -> str:
    """Sixteen hex digits that differ between checkpoints with different weights, configuration or origin."""
    read_manifest(directory)
    content = read_json(place(directory), MANIFEST)
    if guidance := content["components"].get("guidance"):
        guidance["config"] = drawn_alike(guidance["config"])
    return fingerprint(content)


def verify_files(directory: AnyPath, name: str, contents: bool) -> None:
    """Compare the files of component `name` with what was noted when they were written."""
    again = f"convert component {name} in {directory} again"
    try:
        entries = read_json(directory, CHECKSUMS).items()
        noted = {p: (int(e["bytes"]), int(e["crc32"])) for p, e in entries if p.split("/")[0] == name}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory / CHECKSUMS} is damaged; convert again") from error
    if not noted:
        raise UserError(f"{CHECKSUMS} lists no files of component {name}; {again}")
    for path, (size, _) in noted.items():
        file = directory / path
        if not file.is_file():
            raise UserError(f"{path} is missing; {again}")
        if (found := size_of(file)) != size:
            raise UserError(f"{path} has {found} bytes instead of {size}; {again}")
    if contents:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, crc in zip(noted, pool.map(crc32, map(directory.joinpath, noted))):
                if crc != noted[path][1]:
                    raise UserError(f"{path} is damaged (its checksum is wrong); {again}")


def info_to_json(info: ComponentInfo) -> dict[str, Any]:
    """Plain JSON-able form of `info`, exact."""
    values = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    values["kept_aside"] = {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "base64": base64.b64encode(array.tobytes()).decode(),
        }
        for name, array in info.kept_aside.items()
    }
    return values


def _info_from_json(values: Mapping[str, Any]) -> ComponentInfo:
    kept = {
        name: np.frombuffer(base64.b64decode(v["base64"]), _dtype(v["dtype"])).reshape(v["shape"])
        for name, v in values["kept_aside"].items()
    }
    return ComponentInfo(**{**values, "kept_aside": kept})


def read_json(directory: AnyPath, name: str) -> dict[str, Any]:
    """The object in a JSON file of the directory; `UserError` if there is none."""
    try:
        content = json.loads((directory / name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{directory} is not a checkpoint directory: it has no {name}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{directory / name} cannot be read ({error}); convert again") from error
    if not isinstance(content, dict):
        raise UserError(f"{directory / name} is damaged; convert again")
    return content


def crc32(path: AnyPath) -> int:
    """CRC-32 of a file of any size."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
