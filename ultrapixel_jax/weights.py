"""What sampling loads: configuration and variables, from a checkpoint or made from names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultrapixel_jax import components, named_weights
from ultrapixel_jax.checkpoint import restore
from ultrapixel_jax.config import CascadeConfig, from_dict, to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.manifest import Manifest, identity, read_manifest
from ultrapixel_jax.placeholder import config as placeholder_config
from ultrapixel_jax.sharding import parameter_sharding
from ultrapixel_jax.tokenizer import BYTE_TOKENIZER

RUN_TIME_FIELDS = ("timestep", "up_guide_weights", "dropout")
"""Fields that a configuration may change without changing any weight's shape or meaning."""
FLOAT32_ALWAYS = ("stage_a", "previewer")
"""Components that are kept in float32: bfloat16 has fewer values in [0, 1] than a byte."""


@dataclasses.dataclass
class Weights:
    """A loaded model."""

    config: CascadeConfig
    identity: str
    """Tells two models apart; stored in pictures."""
    tokenizer: Path
    """Directory with the tokenizer's files."""
    variables: dict[str, Any]
    """By component."""


def load_weights(
    checkpoint: Path | None,
    config: CascadeConfig | None,
    *,
    dtype: str,
    mesh: jax.sharding.Mesh | None,
    preview: bool,
) -> Weights:
    """Load what sampling needs, straight onto the devices.

    Args:
        checkpoint: directory written by conversion, or None for weights made from names.
        config: what to use instead of the checkpoint's own configuration, where weights allow.
        dtype: of the weights, but for `FLOAT32_ALWAYS`.
        mesh: devices to spread over.
        preview: the previewer instead of stages B and A.

    Raises:
        UserError: a component is missing, damaged, or of another size than `config` says.
    """
    wanted = ["clip_text", "stage_c", "guidance", *(["previewer"] if preview else ["stage_b", "stage_a"])]
    if checkpoint is None:
        return _placeholder(config or placeholder_config, wanted, dtype, mesh)
    manifest = read_manifest(checkpoint)
    cascade = _configuration(checkpoint, manifest, config, wanted)
    if cascade.guidance is None:
        wanted.remove("guidance")
    variables = {}
    for name in wanted:
        like = components.abstract(name, getattr(cascade, name))
        variables[name] = restore(
            checkpoint, name, like=like, dtype=_dtype(name, dtype), shardings=_shardings(mesh)
        )
    return Weights(cascade, identity(checkpoint), checkpoint / "tokenizer", variables)


def _configuration(
    directory: Path, manifest: Manifest, given: CascadeConfig | None, wanted: Sequence[str]
) -> CascadeConfig:
    """The checkpoint's configuration, or the given one if it fits the checkpoint."""
    found = {
        name: from_dict(components.CONFIGS[name], info.config)
        for name, info in manifest.components.items()
        if name in components.CONFIGS
    }
    optional = ("guidance",) if given is None or given.guidance is None else ()
    for name in wanted:
        if name not in found and name not in optional:
            raise UserError(
                f"checkpoint {directory} has no {name}, only {', '.join(manifest.components)}; convert "
                "again with its file among the sources"
            )
    if given is None:
        return CascadeConfig(**{"guidance": None, **_consistent(found)})
    for name in wanted:
        ours, theirs = getattr(given, name), found.get(name)
        if ours is not None and theirs is not None and (d := _difference(to_dict(ours), to_dict(theirs))):
            raise UserError(f"checkpoint {directory} is of another variant: {name}{d}")
    return given


def _consistent(found: dict[str, Any]) -> dict[str, Any]:
    """Configurations of a checkpoint, with those of absent parts made to fit the others' widths."""
    out = dict(found)
    default = CascadeConfig()
    c = found.get("stage_c", default.stage_c)
    if "stage_b" not in out:
        out["stage_b"] = dataclasses.replace(
            default.stage_b, c_effnet=c.c_latent, c_clip=c.c_clip_text_pooled
        )
    if "clip_vision" not in out:
        out["clip_vision"] = dataclasses.replace(default.clip_vision, projection=c.c_clip_img)
    return out


def _difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """The first field in which two configurations differ, in words; fields of run time do not count."""
    if isinstance(ours, dict):
        for key in ours:
            if key not in RUN_TIME_FIELDS and (d := _difference(ours[key], theirs.get(key), f"{path}.{key}")):
                return d
        return None
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if d := _difference(a, b, f"{path}[{i}]"):
                return d
        return None
    return None if ours == theirs else f"{path} is {theirs} there, {ours} in the configuration"


def _dtype(name: str, dtype: str) -> Any:
    return jnp.float32 if name in FLOAT32_ALWAYS else jnp.dtype(dtype)


def _shardings(mesh: jax.sharding.Mesh | None) -> Any:
    if mesh is None:
        return None
    return lambda path, struct: parameter_sharding(path, struct.shape, mesh)


def _placeholder(
    config: CascadeConfig, wanted: Sequence[str], dtype: str, mesh: jax.sharding.Mesh | None
) -> Weights:
    """Weights made from the names of parameters: the same everywhere, and trained on nothing."""
    variables = {}
    for name in wanted:
        if getattr(config, name) is None:
            continue

        def make(path: Any, struct: Any, name: str = name) -> jax.Array:
            keys = [str(k.key) for k in path]
            array = _named(f"{name}/{'/'.join(keys)}", struct.shape).astype(_dtype(name, dtype))
            if mesh is None:
                return jnp.asarray(array)
            return jax.device_put(array, parameter_sharding("/".join(keys), struct.shape, mesh))

        abstract = components.abstract(name, getattr(config, name))
        variables[name] = jax.tree_util.tree_map_with_path(make, abstract)
    return Weights(config, "placeholder", BYTE_TOKENIZER, variables)


def _named(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """`named_weights.tensor` for a path of ours: its scale rule knows torch's order of axes and names."""
    key = path.replace("/", ".").replace(".scale", ".weight")
    if path.endswith("/var"):
        key = key.removesuffix("var") + "running_var"
    return named_weights.tensor(key, shape[::-1]).T
