"""Low-rank changes of stage C's attention (§11): `W + (up @ down)·(1/rank)`.

The variables mirror stage C's tree: every A has `in_proj` (queries, keys and values in one, as in the
released files) and `out`, each with `down` (rank, in) and `up` (out, rank); `embeddings` are the new
text tokens.

There are two ways to apply them: training has them beside the weights (`branches`), sampling adds them to the
weights (`merge`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ultrapixel_jax.config import LoraConfig, StageCConfig
from ultrapixel_jax.models import scan

QKV = ("query", "key", "value")


def attention_layers(config: StageCConfig) -> list[tuple[str, str, int]]:
    """(level, layer, channels) of every A in order of execution."""
    sides = [("down", [(lv, lv.down_blocks) for lv in config.levels])]
    sides.append(("up", [(lv, lv.up_blocks) for lv in reversed(config.levels)]))
    return [
        (f"{side}_{i}", f"layer_{n}", level.channels)
        for side, levels in sides
        for i, (level, blocks) in enumerate(levels)
        for n, kind in enumerate(level.layers * blocks)
        if kind == "A"
    ]


def init(key: Array, config: LoraConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Initial variables: `down` zero and `up` standard normal, so that nothing changes at first."""
    params: dict[str, Any] = {"embeddings": jnp.zeros((config.new_tokens, config.text_width), dtype)}
    for i, (level, layer, channels) in enumerate(attention_layers(config.stage_c)):
        node = params.setdefault(level, {}).setdefault(layer, {})
        for j, (name, out) in enumerate((("in_proj", 3 * channels), ("out", channels))):
            up = jax.random.normal(jax.random.fold_in(key, 2 * i + j), (out, config.rank), dtype)
            node[name] = {"down": jnp.zeros((config.rank, channels), dtype), "up": up}
    return {"params": params}


def branches(lora: Mapping[str, Any], config: StageCConfig, *, scanned: bool) -> dict[str, Any]:
    """The changes as the collection `lora` of stage C's variables, which its layers read beside `params`.

    Queries, keys and values share `down`, and each have their part of `up`. With `scanned`, those of a
    level's blocks are stacked like its weights.
    """
    out: dict[str, Any] = {name: {} for name in lora["params"] if name != "embeddings"}
    for level, layer, _ in attention_layers(config):
        changes = lora["params"][level][layer]
        joint = changes["in_proj"]
        parts = zip(QKV, jnp.split(joint["up"], 3), strict=True)
        out[level][layer] = {name: {"down": joint["down"], "up": up} for name, up in parts}
        out[level][layer]["out"] = dict(changes["out"])
    return scan.stack({"params": out}, config)["params"] if scanned else out


def merge(variables: Mapping[str, Any], lora: Mapping[str, Any]) -> dict[str, Any]:
    """Stage C's variables with the changes of `lora` added; the inputs stay as they are.

    The sum is taken in float32 and rounded to the kernels' dtype.
    """
    params, places, kernels = dict(variables["params"]), [], []
    params.update({level: dict(params[level]) for level, _, _ in _changed(lora)})
    for level, layer, _ in _changed(lora):
        params[level][layer] = node = dict(params[level][layer])
        places += [(node, name) for name in (*QKV, "out")]
        kernels += [jnp.asarray(node[name]["kernel"]) for name in (*QKV, "out")]
    at = [kernel.sharding for kernel in kernels]
    for (node, name), kernel in zip(places, jax.jit(_added, out_shardings=at)(kernels, lora), strict=True):
        node[name] = {**node[name], "kernel": kernel}
    return {**variables, "params": params}


def _added(kernels: Sequence[Array], lora: Mapping[str, Any]) -> list[Array]:
    """Kernels of all changed layers: queries, keys, values and output of each.

    One program, in which the factors are gathered first and all else is local: processes on CPUs start
    independent exchanges of different kinds in different orders, and wait for each other.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        lora = jax.lax.with_sharding_constraint(lora, PartitionSpec())
    changes: list[Array] = []
    for _, _, layer in _changed(lora):
        changes += [*jnp.split(_change(layer["in_proj"]), 3, axis=1), _change(layer["out"])]
    return [
        (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
        for kernel, change in zip(kernels, changes, strict=True)
    ]


def _changed(lora: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(level, layer, its changes), in an order that goes by names alone."""
    params = lora["params"]
    return [
        (level, layer, params[level][layer])
        for level in sorted(params.keys() - {"embeddings"})
        for layer in sorted(params[level])
    ]


def _change(lora: Mapping[str, Any]) -> Array:
    """`(up @ down)/rank`, transposed to our (in, out)."""
    down, up = (jnp.asarray(lora[name], jnp.float32) for name in ("down", "up"))
    return jnp.matmul(up, down, precision="highest").T * np.float32(1 / down.shape[0])
