"""Which component a file holds, in which layout: recognised by the tensors in it, not by its name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.apply import Shapes, Step, TableError, flatten, import_tensors, plan_import
from ultrapixel_jax.layouts.describe import look
from ultrapixel_jax.layouts.rows import Row
from ultrapixel_jax.layouts.tables import (
    clip,
    controlnet,
    effnet_encoder,
    guidance,
    inception,
    previewer,
    stage_a,
    stage_b,
    stage_c,
)
from ultrapixel_jax.models import components, measuring

Rename = Callable[[Sequence[str], Any], dict[str, str]]
"""Keys of a file and the component's configuration to {file key: key that the table reads}."""


def _same(keys: Sequence[str], config: Any) -> dict[str, str]:
    del config
    return {key: key for key in keys}


def _places(keys: Sequence[str], config: Any) -> dict[str, str]:
    """`module.64.0.x` or `64.0.x` to `down.0.x`, and the number after it to `up`."""
    del config
    numbers = sorted({int(m[1]) for key in keys if (m := _PLACE.match(key))})
    sides = dict(zip(numbers, ("down", "up"), strict=False))
    return {
        key: f"{sides[int(m[1])]}.{m[2]}" if (m := _PLACE.match(key)) and int(m[1]) in sides else key
        for key in keys
    }


_PLACE = re.compile(r"(?:module\.)?(\d+)\.(\d+\..+)")


@dataclasses.dataclass(frozen=True)
class Format:
    """One component in one layout."""

    component: str
    layout: str
    rows: tuple[Row, ...] | Callable[[Any], tuple[Row, ...]]
    """The table, or a function of the component's configuration to it."""
    telling: tuple[str, ...]
    """Patterns (regular expressions) of which each must match a key of a file in this format."""
    rename: Rename = _same
    ignore: str = r"(?!)"
    """Pattern of keys that belong to something else in the same file."""
    accepts: Callable[[Any], bool] = lambda config: True
    """Whether a configuration can be in this format."""

    def table(self, config: Any) -> tuple[Row, ...]:
        """The rows for a component of this configuration."""
        return self.rows(config) if callable(self.rows) else self.rows


_UNET = r"down_blocks\.0\.0\.depthwise\.weight"
_PACKED, _SPLIT = r".*\.attn\.in_proj_weight", r".*\.attention\.to_q\.weight"
_TEXT, _VISION = r"text_model\.|text_projection\.", r"vision_model\.|visual_projection\."

FORMATS: tuple[Format, ...] = (
    Format("stage_c", "released", stage_c.RELEASED, (_UNET, r"clip_txt_mapper\.weight", _PACKED)),
    Format("stage_c", "diffusers", stage_c.DIFFUSERS, (_UNET, r"clip_txt_mapper\.weight", _SPLIT)),
    Format("stage_b", "released", stage_b.RELEASED, (_UNET, r"effnet_mapper\.0\.weight", _PACKED)),
    Format("stage_b", "diffusers", stage_b.DIFFUSERS, (_UNET, r"effnet_mapper\.0\.weight", _SPLIT)),
    Format("stage_a", "released", stage_a.RELEASED, (r"vquantizer\.codebook\.weight",)),
    Format("stage_a", "diffusers", stage_a.DIFFUSERS, (r"vquantizer\.embedding\.weight",)),
    Format("guidance", "released", guidance.RELEASED, (r"(module\.)?\d+\.0\.toout\.0\.weight",), _places),
    Format("previewer", "released", previewer.RELEASED, (r"blocks\.0\.weight", r"blocks\.24\.weight")),
    Format(
        "effnet_encoder", "released", effnet_encoder.rows,
        (r"backbone\.0\.0\.weight", r"mapper\.0\.weight"),
    ),
    Format(
        "controlnet", "released", controlnet.rows,
        (r"backbone\.0\.0\.weight", r"projections\.0\.0\.weight"),
        accepts=lambda config: config.kind != "super_resolution",
    ),
    Format(
        "controlnet", "super_resolution", controlnet.SUPER_RESOLUTION,
        (r"backbone\.3\.blocks\.2\.weight", r"projections\.0\.0\.weight"),
        accepts=lambda config: config.kind == "super_resolution",
    ),
    # A file with both towers of CLIP serves as either.
    Format(
        "clip_text", "transformers", clip.TEXT,
        (r"text_model\.embeddings\.token_embedding\.weight", r"text_projection\.weight"),
        ignore=rf"{_VISION}|logit_scale",
    ),
    Format(
        "clip_vision", "transformers", clip.VISION,
        (r"vision_model\.embeddings\.class_embedding", r"visual_projection\.weight"),
        ignore=rf"{_TEXT}|logit_scale",
    ),
    # What measures pictures.
    Format("inception", "released", inception.FILE, (r"Mixed_7c\.branch_pool\.conv\.weight", r"fc\.weight")),
    Format(
        "clip", "transformers", clip.WHOLE,
        (
            r"text_model\.embeddings\.token_embedding\.weight", r"vision_model\.embeddings\.class_embedding",
            r"logit_scale",
        ),
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What a file holds and how its tensors are read."""

    format: Format
    variant: str
    config: Any
    steps: list[Step]
    keys: dict[str, str]
    """The table's key to the file's."""


def formats_of(keys: Iterable[str]) -> list[Format]:
    """The formats whose telling tensors are all among `keys`."""
    keys = list(keys)
    return [f for f in FORMATS if all(any(re.fullmatch(t, key) for key in keys) for t in f.telling)]


def variables_of(name: str, config: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Component `name`'s variables from the tensors of a file in memory, NumPy arrays, by its keys."""
    (fmt,) = [f for f in formats_of(tensors) if f.component == name]
    keys = fmt.rename(list(tensors), config)
    by_table = {keys[key]: tensor for key, tensor in tensors.items()}
    shapes = {key: v.shape for key, v in by_table.items()}
    steps = plan_import(fmt.table(config), shapes, _paths(name, config), name)
    return import_tensors(steps, by_table.__getitem__)[0]


def recognise(
    shapes: Shapes, known: Sequence[tuple[str, CascadeConfig]], what: str, named: Sequence[str] = ()
) -> list[Recognised]:
    """What the tensors of a file are.

    Args:
        shapes: shape of every tensor, by the file's key.
        known: named configurations, tried in order.
        what: how messages call the file.
        named: components that are asked for by name; a whole CLIP only is if it is among them.

    Returns:
        One entry, or several for a file with both towers of CLIP.

    Raises:
        UserError: no format fits; or none of the known sizes does, with every mismatch of the nearest.
    """
    whole = [name for name in named if measuring.kind_of(name) == "clip"]
    found = [f for f in formats_of(shapes) if f.component != "clip" or whole]
    if not found:
        raise UserError(f"{what} is no checkpoint known here: {look(shapes)}")
    out, failures = [], []
    for fmt in found:
        try:
            out += _fits(fmt, shapes, candidates(fmt.component, known, whole), what)
        except UserError as error:
            failures.append(error)
    # Of both towers of CLIP in one file, one may be of a size that nothing here uses.
    if not out or (failures and len(found) > len(out) and not all(f.layout == "transformers" for f in found)):
        raise failures[0]
    return out


def _fits(fmt: Format, shapes: Shapes, variants: Sequence[tuple[str, Any]], what: str) -> list[Recognised]:
    """What the file is in this format: one variant, but for whole CLIPs, of which two have the same sizes."""
    own = {key: shape for key, shape in shapes.items() if not re.match(fmt.ignore, key)}
    failures: list[TableError] = []
    fits: list[Recognised] = []
    for variant, config in variants:
        if not fmt.accepts(config):
            continue
        renamed = fmt.rename(list(own), config)
        paths = _paths(fmt.component, config)
        by_table = {renamed[key]: tuple(shape) for key, shape in own.items()}
        try:
            name = f"{what} ({fmt.component}, {fmt.layout} layout, variant {variant})"
            steps = plan_import(fmt.table(config), by_table, paths, name)
        except TableError as error:
            failures.append(error)
        else:
            fits.append(Recognised(fmt, variant, config, steps, {renamed[key]: key for key in own}))
            if fmt.component != "clip":
                break
    if not fits and not failures:
        raise UserError(f"{what}: no {fmt.component} of a known size")
    if not fits:
        raise min(failures, key=lambda e: len(e.problems))
    return fits


def _paths(component: str, config: Any) -> Shapes:
    """Shapes of a component by path."""
    if component in measuring.KINDS:
        variables = measuring.abstract(config)
    else:
        variables = components.abstract(component, config)
    return {p: tuple(s.shape) for p, s in flatten(variables).items()}


def candidates(
    component: str, known: Sequence[tuple[str, CascadeConfig]], whole: Sequence[str] = ()
) -> list[tuple[str, Any]]:
    """(variant, configuration) of a component in every known cascade, each size once; of what measures
    pictures, those of the files that people have, of CLIPs the ones named.
    """
    if component == "inception":
        return [("2015-12-05", measuring.NETWORKS["inception"])]
    if component == "clip":
        return [(name, measuring.CLIPS[name]) for name in dict.fromkeys(whole)]
    out: list[tuple[str, Any]] = []
    for name, cascade in known:
        config = getattr(cascade, component)
        variants = [(name, config)]
        if component == "controlnet":  # the kind is told by the file, not by the cascade
            kinds = ("canny", "inpainting", "super_resolution")
            variants = [(kind, dataclasses.replace(config, kind=kind)) for kind in kinds]
        for variant, c in variants:
            if c is not None and all(c != seen for _, seen in out):
                out.append((variant, c))
    return out


def file_keys(fmt: Format, config: Any, table_keys: Iterable[str], first: int | None) -> Mapping[str, str]:
    """Keys of a released file for the table's own: the inverse of `rename`, for export.

    `first` is the number of the guidance networks' first list, None for the full model's order.
    """
    table_keys = list(table_keys)
    if fmt.component == "guidance":
        numbers = {"down": first, "up": None if first is None else first + 1}
        return {k: f"module.{numbers[k.split('.', 1)[0]]}.{k.split('.', 1)[1]}" for k in table_keys}
    return {key: key for key in table_keys}
