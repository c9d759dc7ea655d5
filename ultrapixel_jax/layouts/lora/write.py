"""LoRA files in the layouts that others read: UltraPixel's, Stability's, and the one of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.lora.names import Target, numbered, released_names
from ultrapixel_jax.layouts.rows import POINTWISE
from ultrapixel_jax.layouts.tables import stage_c
from ultrapixel_jax.models.lora import PACKED, QKV, Change, Changes, Lora, NewToken

ARCHITECTURE = "stable-cascade-v1-prior/lora"
Start = Callable[[str | None], np.ndarray]
"""The mean embedding of the tokens that a pattern finds; zeros for none."""


class Written(NamedTuple):
    """What a file consists of."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    """By which user interfaces know it."""
    left_out: tuple[str, ...]
    """What the layout has no place for, a line each."""


def write(lora: Lora, layout: str, config: CascadeConfig, title: str, start: Start | None = None) -> Written:
    """The LoRA in `layout`, for models of `config`; `start` where the text encoder is at hand.

    Raises:
        UserError: the layout cannot hold it.
    """
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.title": title,
    }
    if layout == "comfyui":
        tensors, left_out = _by_name(lora, config, start)
    else:
        tensors, left_out = _by_number(lora, layout, config), ()
    return Written({k: np.ascontiguousarray(x) for k, x in tensors.items()}, metadata, tuple(left_out))


# ---------------------------------------------------------------------------- UltraPixel's and Stability's


def _by_number(lora: Lora, layout: str, config: CascadeConfig) -> dict[str, np.ndarray]:
    own, order = dict(lora.changes.get("stage_c", {})), numbered(config.stage_c)
    known = {*order, *(path.replace(PACKED, name) for path in order for name in QKV)}
    other = [*lora.changes.get("clip_text", {}), *(path for path in own if path not in known)]
    norms = [path for path, change in own.items() if change.magnitude is not None]
    if other or norms:
        what = f"{other[0]}, which is no attention of stage C" if other else f"{norms[0]} as a DoRA"
        raise UserError(f"{lora.origin} changes {what}; the layout {layout} cannot: take --layout comfyui")
    rank = max(change.down.shape[0] for change in own.values()) if own else 1
    prefix, out = "module" if layout == "ultrapixel" else "weights", {}
    for i, path in enumerate(order):
        inputs = outputs = _width(path, config)
        change = own[path] if path in own else _joined(own, path) if path.endswith(PACKED) else None
        if change is None:
            outputs = 3 * outputs if path.endswith(PACKED) else outputs
            change = Change(np.zeros((rank, inputs), np.float32), np.zeros((outputs, rank), np.float32))
        down, up = np.asarray(change.down), np.asarray(change.up)
        factor = np.float32(change.scale) * down.shape[0]
        out[f"{prefix}.{i}.lora_down"] = down
        out[f"{prefix}.{i}.lora_up"] = up if factor == 1 else np.asarray(up, np.float32) * factor
    vectors, indices = _offsets(lora, layout, config.clip_text.vocab_size)
    if len(vectors):
        where = f"module.{len(order)}" if layout == "ultrapixel" else "embeddings"
        out[f"{where}.embeddings"], out[f"{where}.indices"] = np.stack(vectors), np.asarray(indices, np.int64)
    return out


def _width(path: str, config: CascadeConfig) -> int:
    side, level = path.split("/", maxsplit=1)[0].split("_")
    levels = config.stage_c.levels if side == "down" else config.stage_c.levels[::-1]
    return levels[int(level)].channels


def _joined(own: Changes, path: str) -> Change | None:
    """Changes of queries, keys and values apart, as one of what they are thirds of; None without any."""
    parts = [own.get(path.replace(PACKED, name)) for name in QKV]
    there = [part for part in parts if part is not None]
    if not there:
        return None
    rank, width = sum(part.down.shape[0] for part in there), there[0].up.shape[0]
    down, up, at = [], np.zeros((3 * width, rank), np.float32), 0
    for i, part in enumerate(parts):
        if part is not None:
            r = part.down.shape[0]
            down.append(np.asarray(part.down, np.float32))
            up[i * width : (i + 1) * width, at : at + r] = np.asarray(part.up, np.float32) * part.scale
            at += r
    return Change(np.concatenate(down), up)


def _offsets(lora: Lora, layout: str, vocabulary: int) -> tuple[list[np.ndarray], list[int]]:
    vectors, indices = [], []
    for token in lora.tokens:
        if token.absolute:
            raise UserError(
                f"{lora.origin} has the embedding of token {token.name!r:.80} itself, and layout {layout} "
                "has only offsets: take --layout comfyui"
            )
        for vector in token.vectors:
            indices.append(vocabulary + len(indices))
            vectors.append(np.asarray(vector, np.float32))
    for index, vector in lora.offsets.items():
        vectors.append(np.asarray(vector, np.float32))
        indices.append(index)
    return vectors, indices


# ---------------------------------------------------------------------------- ComfyUI's


def _by_name(
    lora: Lora, config: CascadeConfig, start: Start | None
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    names = released_names(config, apart=True)
    prefixes = {"stage_c": "lora_prior_unet_", "clip_text": "lora_prior_te_"}
    out: dict[str, np.ndarray] = {}
    for network, own in lora.changes.items():
        for path, change in _apart(own).items():
            name = names[Target(network, path)]
            out |= _module(prefixes[network] + name.replace(".", "_"), change, pointwise=_is_pointwise(name))
    left_out = []
    for i, token in enumerate(lora.tokens):
        if token.name is None:
            left_out.append(f"token {i + 1}: its name is not in the file")
        elif not token.absolute and start is None:
            left_out.append(f"token {token.name!r:.80}: it takes the text encoder, which is not there")
        else:
            out[f"bundle_emb.{token.name}.clip_g"] = _absolute(token, start)
    left_out += [f"the offset to token {index}: the layout has none" for index in lora.offsets]
    return out, left_out


def _absolute(token: NewToken, start: Start | None) -> np.ndarray:
    vectors = np.asarray(token.vectors, np.float32)
    return vectors if token.absolute or start is None else vectors + start(token.start)


def _apart(own: Changes) -> dict[str, Change]:
    """`own` with queries, keys and values apart."""
    out = {}
    for path, change in own.items():
        if not path.endswith(f"/{PACKED}"):
            out[path] = change
            continue
        for name, up in zip(QKV, np.split(np.asarray(change.up), 3), strict=True):
            out[path.removesuffix(PACKED) + name] = change._replace(up=up)
    return out


def _module(name: str, change: Change, *, pointwise: bool) -> Mapping[str, Any]:
    """The tensors of one layer; of a 1×1 convolution with its two axes."""
    down, up = np.asarray(change.down), np.asarray(change.up)
    alpha = np.asarray(change.scale * down.shape[0], np.float32)
    if pointwise:
        down, up = down[..., None, None], up[..., None, None]
    out = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    if change.magnitude is not None:
        norm = np.asarray(change.magnitude, np.float32).T
        out[f"{name}.dora_scale"] = norm[..., None, None] if pointwise else norm
    return out


def _is_pointwise(name: str) -> bool:
    """Whether the layer of this released name is a convolution there."""
    return any(
        row.layout is POINTWISE and row.match_source(f"{name}.weight") is not None for row in stage_c.RELEASED
    )
