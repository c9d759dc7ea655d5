"""Arrays of an Orbax checkpoint, straight onto the devices that they are wanted on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from ultrapixel_jax.checkpoints import orbax_log
from ultrapixel_jax.errors import UserError

orbax_log.quiet()
LISTED = 40
"""Most mismatches that one message lists."""

Sharding = jax.sharding.Sharding
Shardings = Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | Mapping[str, Any] | None
Variables = dict[str, Any]
"""Nested dictionaries with arrays as leaves."""
Shapes = Mapping[str, jax.ShapeDtypeStruct]
"""By path, such as `params/a/kernel`."""


def stored_tree(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What the Orbax checkpoint in `directory` holds: its tree, with metadata in place of arrays."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.metadata(os.fspath(directory)).item_metadata.tree  # type: ignore[union-attr]


def stored_shapes(directory: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of all arrays in nested dictionaries of the checkpoint in `directory`, by path."""
    leaves = flatten(stored_tree(directory)).items()
    return {path: jax.ShapeDtypeStruct(m.shape, m.dtype) for path, m in leaves if hasattr(m, "shape")}


def placed(path: str, stored: jax.ShapeDtypeStruct, dtype: Any, shardings: Shardings) -> jax.ShapeDtypeStruct:
    """How the array at `path` is wanted: its shape, its dtype and its devices.

    Raises:
        UserError: it does not divide over the mesh.
    """
    cast = dtype is not None and jnp.issubdtype(stored.dtype, jnp.floating)
    struct = jax.ShapeDtypeStruct(stored.shape, dtype if cast else stored.dtype)
    if shardings is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    elif isinstance(shardings, Sharding):
        sharding = shardings
    elif isinstance(shardings, Mapping):
        sharding = flatten(shardings)[path]
    else:
        sharding = shardings(path, struct)
    try:
        sharding.shard_shape(struct.shape)
        return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path} of shape {struct.shape} does not divide over the mesh: {text}") from error


def restore_arrays(directory: str | os.PathLike[str], wanted: Shapes) -> dict[str, jax.Array]:
    """The arrays at the paths of `wanted`, placed and converted as it says; others are not read."""
    args = {
        path: ocp.ArrayRestoreArgs(sharding=s.sharding, dtype=s.dtype, global_shape=s.shape)
        for path, s in wanted.items()
    }
    # Bounds the host memory under way; it has to be more than the largest array, or Orbax refuses that one.
    largest = max((math.prod(s.shape) for s in wanted.values()), default=0) * 8
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + largest // 10**9)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = checkpointer.restore(
            os.fspath(directory),
            args=ocp.args.PyTreeRestore(
                item=unflatten(wanted), restore_args=unflatten(args), partial_restore=True
            ),
        )
    return flatten(tree)


def check_like(what: str, stored: Mapping[str, Any], like: Mapping[str, Any], remedy: str = "") -> None:
    """Raise `UserError` where paths or shapes of `stored` are not those of `like`; both are by path."""
    problems = [f"{path} is missing" for path in sorted(like.keys() - stored.keys())]
    problems += [f"{path} is unexpected" for path in sorted(stored.keys() - like.keys())]
    for path in sorted(stored.keys() & like.keys()):
        if tuple(stored[path].shape) != tuple(like[path].shape):
            problems.append(f"{path} has shape {stored[path].shape}, expected {like[path].shape}")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        listed = "; ".join(problems[:LISTED] + more)
        end = f"; {remedy}" if remedy else ""
        raise UserError(f"{what} does not fit the configuration: {listed}{end}")


def converted(variables: Mapping[str, Any], dtype: Any) -> Variables:
    """Floating arrays in `dtype` where they lie, one after the other; those of another dtype are freed."""

    def one(x: jax.Array) -> jax.Array:
        if x.dtype == dtype or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        out = jax.block_until_ready(x.astype(dtype))
        x.delete()
        return out

    return jax.tree.map(one, dict(variables))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested dictionaries by path."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Variables:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")
