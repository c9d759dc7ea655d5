"""Low-rank changes of stage C and of the text encoder (§11): `W + (up @ down)·alpha/rank`.

The variables that are trained mirror stage C's tree: a changed layer has `down` (rank, in) and `up` (out,
rank). Of an A, `in_proj` stands for queries, keys and values in one, as in the released files. `embeddings`
are the new text tokens.

There are two ways to apply them: training has them beside the weights (`branches`), sampling adds them to the
weights (`merge`), from whatever file they came (`Change`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ultrapixel_jax.config import ClipTextConfig, LoraConfig, StageCConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import scan

QKV = ("query", "key", "value")
PACKED = "in_proj"
"""Name of the layer that queries, keys and values are thirds of."""
OTHERS = ("embeddings", "clip_text")
"""What else than stage C's layers the variables may hold: new tokens, changes of the text encoder."""
TIME = 64
"""Width of the time embedding."""


class Change(NamedTuple):
    """What is done to one kernel (in, out): `W + scale·(up @ down)ᵀ`, and a norm with `magnitude`."""

    down: Any
    """(rank, in)."""
    up: Any
    """(out, rank)."""
    scale: Any = 1.0
    """Alpha / rank."""
    magnitude: Any = None
    """DoRA: the sum V becomes `magnitude·V/‖V‖`. (in, 1) where the norm is that of each input's column of
    outputs, (1, out) where it is that of each output's inputs; None is no DoRA."""


Changes = Mapping[str, Change]
"""By path of the layer in a network's parameters, such as `down_0/layer_2/query`."""
Size = tuple[int, int]
"""Inputs and outputs of a layer."""
VARIANTS = {1536: "the lite stage C", 2048: "the 3.6B stage C"}
"""Released models by their width."""


class NewToken(NamedTuple):
    """A word that the vocabulary does not have."""

    name: str | None
    """As it stands in prompts; None where the file does not say."""
    vectors: Any
    """(n, width), float32: embeddings, or offsets to what they start from."""
    absolute: bool
    """Whether they are the embeddings themselves."""
    start: str | None = None
    """Pattern of the tokens whose mean embedding an offset is to, where it is known."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """What a file or directory brings."""

    origin: str
    """Where it was read, for messages."""
    changes: Mapping[str, Changes]
    """By network (`stage_c`, `clip_text`) and path of the layer."""
    tokens: tuple[NewToken, ...] = ()
    """In the order of their ids."""
    offsets: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    """To the embeddings of tokens that the vocabulary has, by id."""


# ---------------------------------------------------------------------------- which layers there are


def attention_layers(config: StageCConfig) -> list[tuple[str, str, int]]:
    """(level, layer, channels) of every A in order of execution."""
    layers = [(path.split("/"), size) for path, size in stage_c_layers(config).items()]
    return [(parts[0], parts[1], outputs) for parts, (_, outputs) in layers if parts[-1] == "out"]


def stage_c_layers(config: StageCConfig) -> dict[str, Size]:
    """Sizes of all linear layers, by path, those of the levels in order of execution.

    An A has `in_proj` for its queries, keys and values together.
    """
    c, levels = config, config.levels
    pixel = c.c_latent * c.patch_size**2
    out: dict[str, Size] = {
        "clip_txt_mapper": (c.c_clip_text, c.c_cond),
        "clip_txt_pooled_mapper": (c.c_clip_text_pooled, c.clip_tokens * c.c_cond),
        "clip_img_mapper": (c.c_clip_img, c.clip_tokens * c.c_cond),
        "embedding": (pixel, levels[0].channels),
        "clf": (levels[0].channels, pixel),
    }
    for i, (outer, inner) in enumerate(itertools.pairwise(levels)):
        out[f"downscaler_{i}"] = (outer.channels, inner.channels)
        out[f"upscaler_{len(levels) - 2 - i}"] = (inner.channels, outer.channels)
    sides = [("down", [(level, level.down_blocks) for level in levels])]
    sides.append(("up", [(level, level.up_blocks) for level in reversed(levels)]))
    for side, parts in sides:
        for i, (level, blocks) in enumerate(parts):
            for n, kind in enumerate(level.layers * blocks):
                joins = kind == "C" and side == "up" and i > 0 and n == 0
                own = _layer(kind, level.channels, level.channels if joins else 0, config)
                out |= {f"{side}_{i}/layer_{n}/{name}": size for name, size in own.items()}
    return out


def _layer(kind: str, c: int, skip: int, config: StageCConfig) -> dict[str, Size]:
    if kind == "C":
        return {"expand": (c + skip, 4 * c), "contract": (4 * c, c)}
    if kind == "T":
        names = ("mapper", *(f"mapper_{name}" for name in config.timestep_conditions))
        return dict.fromkeys(names, (TIME, 2 * c))
    return {"kv_mapper": (config.c_cond, c), PACKED: (c, 3 * c), "out": (c, c)}


def text_layers(config: ClipTextConfig) -> dict[str, Size]:
    """Sizes of all linear layers of the text encoder, by path."""
    w, wide = config.width, config.mlp_width
    layer = {f"attention/{name}": (w, w) for name in ("q", "k", "v", "out")}
    layer |= {"mlp_in": (w, wide), "mlp_out": (wide, w)}
    out = {f"layer_{i}/{name}": size for i in range(config.layers) for name, size in layer.items()}
    return {**out, "text_projection": (w, config.projection)}


def thirds(sizes: Mapping[str, Size]) -> dict[str, Size]:
    """`sizes` with `query`, `key` and `value` beside every `in_proj`."""
    own = {
        path.removesuffix(PACKED) + name: (inputs, outputs // 3)
        for path, (inputs, outputs) in sizes.items()
        if path.endswith(f"/{PACKED}")
        for name in QKV
    }
    return {**sizes, **own}


def targeted(config: LoraConfig) -> dict[str, Size]:
    """The layers of stage C that are trained, with their sizes.

    Raises:
        UserError: a pattern finds none.
    """
    return _matched("modules", config.modules, stage_c_layers(config.stage_c), "stage C")


def targeted_text(config: LoraConfig) -> dict[str, Size]:
    """The layers of the text encoder that are trained, with their sizes.

    Raises:
        UserError: a pattern finds none.
    """
    if config.clip_text is None:
        return {}
    return _matched("text_modules", config.text_modules, text_layers(config.clip_text), "the text encoder")


def _matched(field: str, patterns: Sequence[str], sizes: Mapping[str, Size], network: str) -> dict[str, Size]:
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in sizes):
            raise UserError(
                f"lora.{field}: {pattern!r:.80} matches no layer of {network}; they are called like "
                f"{', '.join(list(sizes)[-3:])}"
            )
    found = {path for path in sizes if any(re.fullmatch(pattern, path) for pattern in patterns)}
    return {path: size for path, size in sizes.items() if path in found}


# ---------------------------------------------------------------------------- training


def init(key: Array, config: LoraConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Initial variables: `down` zero and `up` standard normal, so that nothing changes at first."""
    count = len(config.tokens) or config.new_tokens
    flat: dict[str, Any] = {"embeddings": jnp.zeros((count, config.text_width), dtype)}
    text = {f"clip_text/{path}": size for path, size in targeted_text(config).items()}
    for i, (path, (inputs, outputs)) in enumerate({**targeted(config), **text}.items()):
        up = jax.random.normal(jax.random.fold_in(key, i), (outputs, config.rank), dtype)
        flat |= {f"{path}/down": jnp.zeros((config.rank, inputs), dtype), f"{path}/up": up}
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def branches(lora: Mapping[str, Any], config: LoraConfig, *, scanned: bool) -> dict[str, Any]:
    """The changes as the collection `lora` of stage C's variables, which its layers read beside `params`.

    Queries, keys and values share `down`, and each have their part of `up`. With `scanned`, those of a
    level's blocks are stacked like its weights.
    """
    flat: dict[str, Any] = {}
    for path, change in changes(lora["params"], config.alpha).items():
        up = change.up if config.alpha == 1 else change.up * config.alpha
        stem = path.removesuffix(PACKED)
        parts = zip(QKV, jnp.split(up, 3), strict=True) if path != stem else [("", up)]
        for name, part in parts:
            flat |= {f"{stem}{name}/down": change.down, f"{stem}{name}/up": part}
    out: dict[str, Any] = traverse_util.unflatten_dict(flat, sep="/")
    if not scanned:
        return out
    count = len(config.stage_c.levels)
    levels = {f"{side}_{i}": {} for side in ("down", "up") for i in range(count)}
    try:
        return scan.stack({"params": {**levels, **out}}, config.stage_c)["params"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"lora.modules {' '.join(config.modules):.80} are not the same layers in all blocks of a level, "
            "which are stacked; give --no-scanned, or patterns without numbers of layers"
        ) from error


def text_branches(lora: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The changes of the text encoder, as `branches` has those of stage C."""
    flat: dict[str, Any] = {}
    for path, change in changes(lora["params"].get("clip_text", {}), config.alpha).items():
        flat |= {f"{path}/down": change.down, f"{path}/up": change.up * config.alpha}
    return traverse_util.unflatten_dict(flat, sep="/")


# ---------------------------------------------------------------------------- sampling


def changes(params: Mapping[str, Any], alpha: float = 1.0) -> dict[str, Change]:
    """What the parameters of a component `lora`, or of a part of them, do to the layers.

    `scale` and `magnitude` are beside `down` and `up` where they were in a file.
    """
    own = {name: node for name, node in params.items() if name not in OTHERS}
    flat: dict[str, Any] = traverse_util.flatten_dict(own, sep="/")  # pyright: ignore
    out = {}
    for key, down in flat.items():
        path, _, leaf = key.rpartition("/")
        if leaf == "down":
            scale = flat.get(f"{path}/scale", np.float32(alpha / down.shape[0]))
            out[path] = Change(down, flat[f"{path}/up"], scale, flat.get(f"{path}/magnitude"))
    return out


def problem(changes: Changes, sizes: Mapping[str, Size]) -> str | None:
    """Why `changes` do not fit layers of `sizes`, in words; None if they do."""
    for path, change in changes.items():
        if path not in sizes:
            return f"it changes {path}, which the model does not have"
        found = (change.down.shape[1], change.up.shape[0])
        if found != sizes[path]:
            a, b = ("{}→{}".format(*size) for size in (found, sizes[path]))
            return f"its change of {path} is for {a} channels, and the model has {b}"
        if 0 in change.down.shape:
            return f"its change of {path} has rank 0, so it changes nothing"
        if change.down.shape[0] != change.up.shape[1]:
            return f"its change of {path} has ranks {change.down.shape[0]} and {change.up.shape[1]}"
    return None


def named_tokens(config: LoraConfig, vectors: np.ndarray) -> tuple[NewToken, ...]:
    """The words of `config.tokens` with their trained offsets."""
    named = [token.partition("=") for token in config.tokens]
    return tuple(
        NewToken(name.strip(), np.asarray(vector[None], np.float32), False, pattern.strip() or None)
        for (name, _, pattern), vector in zip(named, vectors, strict=True)
    )


def stored_tokens(
    vectors: np.ndarray, indices: np.ndarray, vocabulary: int
) -> tuple[tuple[NewToken, ...], dict[int, np.ndarray]]:
    """The tokens of a file that stores offsets with the rows that they are of: new ones in the order of their
    ids, and offsets to those of the `vocabulary` by id.
    """
    pairs = sorted(zip(indices.reshape(-1).tolist(), vectors, strict=True), key=lambda pair: pair[0])
    new = tuple(NewToken(None, vector[None], absolute=False) for i, vector in pairs if i >= vocabulary)
    return new, {i: vector for i, vector in pairs if i < vocabulary}


def misfit(lora: Lora, stage_c: StageCConfig, clip_text: ClipTextConfig) -> str | None:
    """Why a LoRA does not fit a model, in words; None if it does."""
    sizes = {"stage_c": thirds(stage_c_layers(stage_c)), "clip_text": text_layers(clip_text)}
    for network, own in lora.changes.items():
        if why := problem(own, sizes[network]):
            widths = {x.down.shape[1] for path, x in own.items() if path.endswith(("/out", f"/{PACKED}"))}
            known = [VARIANTS[width] for width in widths if width in VARIANTS]
            return f"{why}; it belongs to {known[0]}, so give that one's checkpoint" if known else why
    if any(token.vectors.shape[1] != clip_text.width for token in lora.tokens):
        return f"its new tokens have not the text encoder's width {clip_text.width}"
    return None


def merge(variables: Mapping[str, Any], uses: Sequence[tuple[Changes, float]]) -> dict[str, Any]:
    """A network's variables with `uses`, changes and their strengths, added; the inputs stay as they are.

    Blocks may be stacked (`models.scan`); changes name the layers of an unrolled network either way.
    Every one is that of the weights given, so that their order does not matter. The sum is taken in float32
    and rounded to the kernels' dtype. Of strength 0, a change is none.
    """
    uses = [(own, strength) for own, strength in uses if strength and own]
    if not uses:
        return dict(variables)
    flat: dict[str, Any] = traverse_util.flatten_dict(variables["params"], sep="/")  # pyright: ignore
    paths = sorted({f"{path}/kernel" for own, _ in uses for path in _kernels(own)})
    places = {path: scan.place_of(path, flat) for path in paths}
    kernels = {
        path: jnp.asarray(flat[place.path] if place.block is None else flat[place.path][place.block])
        for path, place in places.items()
    }
    at = {path: kernel.sharding for path, kernel in kernels.items()}
    strengths = [np.float32(strength) for _, strength in uses]
    added = jax.jit(_added, out_shardings=at)(kernels, [dict(own) for own, _ in uses], strengths)
    stacked: dict[str, dict[int, Array]] = {}
    for path, place in places.items():
        if place.block is None:
            flat[path] = added[path]
        else:
            stacked.setdefault(place.path, {})[place.block] = added[path]
    for path, blocks in stacked.items():
        flat[path] = jnp.asarray(flat[path]).at[np.array([*blocks])].set(jnp.stack([*blocks.values()]))
    return {**variables, "params": traverse_util.unflatten_dict(flat, sep="/")}


def _kernels(own: Changes) -> Iterator[str]:
    for path in own:
        stem = path.removesuffix(PACKED)
        yield from (path,) if stem == path else (stem + name for name in QKV)


def _added(
    kernels: Mapping[str, Array], uses: Sequence[Changes], strengths: Sequence[Float[Array, ""]]
) -> dict[str, Array]:
    """The changed kernels.

    One program, in which the factors are gathered first and all else is local: processes on CPUs start
    independent exchanges of different kinds in different orders, and wait for each other.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        uses = jax.lax.with_sharding_constraint(uses, PartitionSpec())
    sums = {path: jnp.zeros((), jnp.float32) for path in kernels}
    for own, strength in zip(uses, strengths, strict=True):
        for path, change in sorted(own.items()):
            product = _product(change)
            parts = jnp.split(product, 3, axis=1) if path.endswith(f"/{PACKED}") else [product]
            for name, part in zip(_kernels({path: change}), parts, strict=True):
                kernel = f"{name}/kernel"
                if change.magnitude is not None:
                    part = _normed(kernels[kernel].astype(jnp.float32), part, change.magnitude)
                sums[kernel] = sums[kernel] + strength * part
    return {
        path: (kernel.astype(jnp.float32) + sums[path]).astype(kernel.dtype)
        for path, kernel in kernels.items()
    }


def _product(change: Change) -> Float[Array, "c f"]:
    """`scale·(up @ down)`, transposed to our (in, out)."""
    down, up = (jnp.asarray(x, jnp.float32) for x in (change.down, change.up))
    return jnp.matmul(up, down, precision="highest").T * jnp.asarray(change.scale, jnp.float32)


def _normed(
    kernel: Float[Array, "c f"], product: Float[Array, "c f"], magnitude: Float[Array, "c1 f1"]
) -> Float[Array, "c f"]:
    """DoRA's change: `magnitude·V/‖V‖ - W` with V = W + product."""
    total = kernel + product
    norm = jnp.linalg.norm(total, axis=0 if magnitude.shape[0] == 1 else 1, keepdims=True)
    return total * (magnitude.astype(jnp.float32) / jnp.where(norm > 0, norm, 1.0)) - kernel
