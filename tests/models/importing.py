"""Named weights through a name table into a module's variables, as a released file would go."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.recordings import manifest
from ultrapixel_jax.checkpoints.named_weights import tensor
from ultrapixel_jax.layouts.apply import (
    export_specs,
    export_tensors,
    flatten,
    import_tensors,
    plan_export,
    plan_import,
)
from ultrapixel_jax.layouts.rows import Row


def variable_specs(module: nn.Module, *inputs) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable by full path, without allocating any."""
    return flatten(jax.eval_shape(module.init, jax.random.key(0), *inputs))


def shapes(specs: Mapping) -> dict[str, tuple[int, ...]]:
    return {path: tuple(spec.shape) for path, spec in specs.items()}


def released_shapes(rows: Sequence[Row], specs: Mapping) -> dict[str, tuple[int, ...]]:
    """The keys and shapes that a released file of these sizes has, less those kept aside."""
    steps = plan_export(rows, shapes(specs), "test")
    return {key: shape for key, (shape, _) in export_specs(steps, specs).items()}


def import_named(
    rows: Sequence[Row], specs: Mapping, keys: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict:
    """Variables made of the weights that `keys` name."""
    steps = plan_import(rows, keys, shapes(specs), "test")
    variables, _ = import_tensors(steps, lambda key: tensor(key, tuple(keys[key]), seed))
    return jax.tree.map(jnp.asarray, variables)


def run(module: nn.Module, variables: Mapping, *inputs, method: str = "__call__"):
    """`module.apply`, compiled: one compilation is faster than a hundred small programs."""
    return _compiled(module, method)(variables, *inputs)


@functools.cache
def _compiled(module: nn.Module, method: str):
    return jax.jit(lambda v, *x: module.apply(v, *x, method=method))


def named_variables(rows: Sequence[Row], module: nn.Module, *inputs) -> dict:
    """Variables of a module of any size, made of named weights."""
    specs = variable_specs(module, *inputs)
    return import_named(rows, specs, released_shapes(rows, specs))


def check_manifest(name: str, rows: Sequence[Row], module: nn.Module, *inputs) -> int:
    """Map the released checkpoint's keys there and back by shapes alone; return the parameter count.

    The count is that of §13: statistics included, counters not.
    """
    specs, keys = variable_specs(module, *inputs), manifest(name)
    steps = plan_import(rows, keys, shapes(specs), name)
    aside = {step.key for step in steps if not step.paths}
    assert all(k.endswith(("num_batches_tracked", "position_ids")) for k in aside)
    assert released_shapes(rows, specs) == {k: s for k, s in keys.items() if k not in aside}
    assert all(spec.dtype == np.float32 for spec in specs.values())
    return sum(int(np.prod(s.shape)) for s in specs.values())


def check_round_trip(rows: Sequence[Row], specs: Mapping, seed: int = 0) -> None:
    """Import, export, and get the very same tensors."""
    keys = released_shapes(rows, specs)
    flat = flatten(import_named(rows, specs, keys, seed))
    for key, array in export_tensors(plan_export(rows, shapes(specs), "test"), flat):
        np.testing.assert_array_equal(array, tensor(key, keys[key], seed))


def struct(*shape: int, dtype=np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
