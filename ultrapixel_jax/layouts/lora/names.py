"""What trainers call the layers of stage C and of the text encoder.

Names are not parsed: they are looked up in a dictionary that is made from the tables of released names, with
`.` and `_` alike, and what a name may begin with taken off.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ultrapixel_jax.config import CascadeConfig, ClipTextConfig, StageCConfig
from ultrapixel_jax.layouts.rows import Row, fill
from ultrapixel_jax.layouts.tables import clip, stage_c
from ultrapixel_jax.models.lora import PACKED, QKV, attention_layers, stage_c_layers, text_layers, thirds

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "prior.", "unet.", "transformer.",
    "clip_g.transformer.", "clip_g.", "text_encoder.", "text_encoders.", "te.",
    "lora_prior_unet_", "lora_prior_te_", "lora_unet_", "lora_te1_", "lora_te_", "lycoris_", "lora_",
)  # fmt: skip
"""What stands before a layer's name, also several in a row."""
INFIXES = (".default", ".processor")
DEPTHWISE = "depthwise"


class Target(NamedTuple):
    """A layer."""

    network: str
    """`stage_c` or `clip_text`."""
    path: str
    """Of ours; `in_proj` for queries, keys and values in one."""


def look_up(module: str, config: CascadeConfig) -> Target | None:
    """The layer that a file calls `module`; None for none of this model."""
    known = _targets(config.stage_c, config.clip_text)
    for infix in INFIXES:
        module = module.replace(infix, "")
    module = module.rstrip("_")
    while True:
        if found := known.get(_flat(module)):
            return found
        prefix = next((p for p in PREFIXES if module.startswith(p)), None)
        if prefix is None:
            return None
        module = module.removeprefix(prefix)


def released_names(config: CascadeConfig, *, apart: bool) -> dict[Target, str]:
    """Dotted name of every layer, attention's as released.

    With `apart`, queries, keys and values are layers of their own, `to_q`, `to_k`, `to_v`.
    """
    out = {}
    for path in stage_c_layers(config.stage_c):
        first = next(_packed(path), None)
        if first is None:
            out[Target("stage_c", path)] = next(_sources(path, stage_c.RELEASED))
        elif not apart:
            out[Target("stage_c", path)] = first
        else:
            stem = path.removesuffix(PACKED)
            base = first.removesuffix(".in_proj")
            out |= {Target("stage_c", stem + n): f"{base}.to_{n[0]}" for n in QKV}
    text = {Target("clip_text", p): next(_sources(p, clip.TEXT)) for p in text_layers(config.clip_text)}
    return {**out, **text}


def numbered(config: StageCConfig) -> list[str]:
    """Layers that UltraPixel's and Stability's files number: of every A, in order of execution, its `out`
    before its `in_proj`."""
    return [
        f"{level}/{layer}/{part}" for level, layer, _ in attention_layers(config) for part in ("out", PACKED)
    ]


@functools.lru_cache(4)
def _targets(of_stage_c: StageCConfig, of_text: ClipTextConfig) -> Mapping[str, Target]:
    """Every name without dots, to its layer."""
    out: dict[str, Target] = {}

    def add(network: str, path: str, names: Iterator[str]) -> None:
        for name in names:
            out.setdefault(_flat(name), Target(network, path))

    sizes = stage_c_layers(of_stage_c)
    for path in thirds(sizes):
        add("stage_c", path, _names(path))
        if path.endswith("/expand"):
            path = path.replace("expand", DEPTHWISE)
            add("stage_c", path, _sources(path, stage_c.RELEASED))
    for path in text_layers(of_text):
        add("clip_text", path, _sources(path, clip.TEXT))
    return out


def _names(path: str) -> Iterator[str]:
    """All that a layer of stage C is called, the released name first."""
    if path.endswith(f"/{PACKED}"):
        for name in _packed(path):
            yield from (name, name + "_weight")
        return
    stem, _, leaf = path.rpartition("/")
    if leaf not in (*QKV, "out"):
        yield from _sources(path, stage_c.RELEASED)
        return
    (base,) = (name.removesuffix(".in_proj") for name in _packed(f"{stem}/{PACKED}"))
    outer = base.removesuffix(".attn")
    if leaf == "out":
        parts = ["out_proj", "to_out_proj", "to_out.0", "to_out"]
    else:
        parts = [f"to_{leaf[0]}", f"in_proj.{QKV.index(leaf)}"]
    yield from (f"{at}.{part}" for part in parts for at in (base, outer))


def _packed(path: str) -> Iterator[str]:
    """The released name of an `in_proj`, without `_weight`; nothing for another layer."""
    stem = path.removesuffix(PACKED)
    if stem != path:
        for name in _sources(stem + QKV[0], stage_c.RELEASED):
            yield name.removesuffix("_weight")


def _sources(path: str, rows: Sequence[Row]) -> Iterator[str]:
    """Names in a table of the layer that `path` is."""
    for row in rows:
        numbers = row.match_target(f"{path}/kernel")
        if numbers is not None:
            yield fill(row.source, numbers).removesuffix(".weight")


def _flat(name: str) -> str:
    return re.sub(r"[._]+", "_", name)
