"""Stacking the weights of a level's blocks, for `scanned` networks, and taking them apart again."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from ultrapixel_jax.config import StageBConfig, StageCConfig

Config = TypeVar("Config", StageBConfig, StageCConfig)
SCANNABLE = ("stage_c", "stage_b")
"""Networks whose levels have blocks to stack."""


def _levels(config: StageCConfig | StageBConfig) -> dict[str, tuple[int, int]]:
    """(layers per block, blocks) of every level, by name."""
    down = {f"down_{i}": (len(lv.layers), lv.down_blocks) for i, lv in enumerate(config.levels)}
    up = {f"up_{i}": (len(lv.layers), lv.up_blocks) for i, lv in enumerate(reversed(config.levels))}
    return down | up


def _joined(arrays: Sequence[Array]) -> Array:
    return jnp.stack(arrays)


def _parted(array: Array, count: int) -> list[Array]:
    return [array[i] for i in range(count)]


def stack(
    variables: Mapping[str, Any],
    config: StageCConfig | StageBConfig,
    join: Callable[[Sequence[Array]], Array] = _joined,
) -> dict[str, Any]:
    """Variables of an unrolled network to those of a `scanned` one.

    `layer_3`, `layer_6`, … of a level whose blocks are C T A become `rest/layer_0` with a leading
    axis, and so on; the first block stays, since it alone takes the skip. Layers may be missing, in all
    blocks alike. `join` stacks arrays.
    """
    params = dict(variables["params"])
    for name, (length, blocks) in _levels(config).items():
        level = dict(params[name])
        if blocks > 1:
            level["rest"] = {
                f"layer_{k}": jax.tree.map(
                    lambda *xs: join(xs), *(level[f"layer_{b * length + k}"] for b in range(1, blocks))
                )
                for k in range(length)
                if f"layer_{length + k}" in level
            }
        for n in range(length, length * blocks):
            level.pop(f"layer_{n}", None)
        params[name] = level
    return {**variables, "params": params}


def unstack(
    variables: Mapping[str, Any],
    config: StageCConfig | StageBConfig,
    part: Callable[[Array, int], list[Array]] = _parted,
) -> dict[str, Any]:
    """Inverse of `stack`; `part` takes an array apart into so many."""
    params = dict(variables["params"])
    for name, (length, blocks) in _levels(config).items():
        level = dict(params[name])
        for key, layer in level.pop("rest", {}).items():
            k = int(re.sub(r"\D", "", key))
            leaves, structure = jax.tree.flatten(layer)
            parts = zip(*(part(x, blocks - 1) for x in leaves), strict=True)
            for b, leaves in enumerate(parts, start=1):
                level[f"layer_{b * length + k}"] = jax.tree.unflatten(structure, leaves)
        params[name] = level
    return {**variables, "params": params}


def stack_where_they_lie(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """`stack_on_devices`, or of numpy arrays, on the host."""
    if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(variables)):
        return stack(variables, config, np.stack)  # pyright: ignore
    return stack_on_devices(variables, config)


class Place(NamedTuple):
    """Where an array of an unrolled network is among those of a network, stacked or not."""

    path: str
    block: int | None
    """Its number along the first axis; None where the array is by itself."""


def place_of(path: str, paths: Collection[str]) -> Place:
    """Where the array that is at `path` in an unrolled network is in one that has `paths`.

    Raises:
        KeyError: nowhere.
    """
    if path in paths:
        return Place(path, None)
    if (m := re.fullmatch(r"(.+)/layer_(\d+)/(.+)", path)) is None:
        raise KeyError(path)
    level, number, rest = m.groups()
    own = re.compile(re.escape(level) + r"/layer_(\d+)/")
    length = 1 + max((int(m[1]) for m in map(own.match, paths) if m), default=0)
    block, k = divmod(int(number), length)
    stacked = f"{level}/rest/layer_{k}/{rest}"
    if not block or stacked not in paths:
        raise KeyError(path)
    return Place(stacked, block - 1)


def shortened(config: Config) -> Config:
    """`config` with at most two blocks in each level: the first, which alone takes the skip, and another."""
    levels = tuple(
        dataclasses.replace(lv, down_blocks=min(lv.down_blocks, 2), up_blocks=min(lv.up_blocks, 2))
        for lv in config.levels
    )
    return dataclasses.replace(config, levels=levels)


def lengthened(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """What stands for the arrays of `config`, from what does for those of its `shortened` one."""
    params = dict(variables["params"])
    for name, (length, blocks) in _levels(config).items():
        level = dict(params[name])
        for n in range(2 * length, blocks * length):
            level[f"layer_{n}"] = level[f"layer_{length + n % length}"]
        params[name] = level
    return {**variables, "params": params}


def stack_on_devices(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """`stack` of arrays where they lie, each divided as before; what is stacked is freed array by array.

    So there is never more than one array twice.
    """

    def join(arrays: Sequence[Array]) -> Array:
        out = jax.block_until_ready(_stacker(arrays[0].sharding)(arrays))
        for array in arrays:
            array.delete()
        return out

    return stack(variables, config, join)


def unstack_on_devices(variables: Mapping[str, Any], config: StageCConfig | StageBConfig) -> dict[str, Any]:
    """`unstack` in the same way."""

    def part(array: Array, count: int) -> list[Array]:
        out = jax.block_until_ready(_parter(array.sharding, count)(array))
        array.delete()
        return out

    return unstack(variables, config, part)


@functools.cache
def _stacker(sharding: Sharding) -> Callable[[Sequence[Array]], Array]:
    """Stacks arrays that lie as `sharding` says."""
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return jax.jit(_joined, out_shardings=sharding)


@functools.cache
def _parter(sharding: Sharding, count: int) -> Callable[[Array], list[Array]]:
    """Takes an array apart that lies as `sharding` says."""
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.jit(functools.partial(_parted, count=count), out_shardings=sharding)
