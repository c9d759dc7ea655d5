"""What devices send each other for one attention block, counted in the compiled program."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.recordings import relative_error
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.models.blocks import AttnBlock
from ultrapixel_jax.sharding import batch_sharding, constrain, make_mesh
from ultrapixel_jax.training.state import variables_shardings

BLOCK = AttnBlock(channels=32, heads=4)
B, SIDE, TOKENS = 4, 8, 5
MAP = B * SIDE * SIDE * BLOCK.channels * 4
"""Bytes of the map, of all devices together."""
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf" = (?P<shapes>.*?) (?P<kind>{'|'.join(KINDS)})(-start)?\(")


def collectives(program: str) -> dict[str, int]:
    """Bytes that each device gets by every kind of collective; all of them are of float32 here."""
    out: dict[str, int] = {}
    for match in COLLECTIVE.finditer(program):
        shapes = re.findall(r"f32\[([\d,]*)\]", match["shapes"])
        size = sum(4 * math.prod(int(n) for n in dims.split(",") if n) for dims in shapes)
        out[match["kind"]] = out.get(match["kind"], 0) + size
    return out


def forward(variables, x, kv):
    x = constrain(x, "batch", "height", "width", "channel")
    out = BLOCK.apply(variables, x, kv)
    return constrain(out, "batch", "height", "width", "channel")


def with_gradients(variables, x, kv):
    out, pull = jax.vjp(forward, variables, x, kv)
    return out, pull(jnp.sin(out))


@pytest.fixture(scope="module")
def inputs():
    shapes = ((B, SIDE, SIDE, 32), *[(B, TOKENS, 4, 8)] * 2)
    x, *kv = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    return jax.jit(BLOCK.init)(jax.random.key(3), x, tuple(kv)), x, tuple(kv)


@pytest.fixture(scope="module")
def expected(inputs):
    return jax.jit(with_gradients, compiler_options=UNOPTIMISED)(*inputs)


MESHES = {"tensor=4": ({"tensor": 4}, 0), "all": ({"data": 2, "tensor": 2, "rows": 2}, 2)}
"""Axes, and how many maps of a device's own examples and heads are gathered: the rows of keys and values."""


@pytest.mark.parametrize(("axes", "gathered"), MESHES.values(), ids=MESHES)
def test_heads_that_tensor_divides_stay_where_they_are(axes, gathered, inputs, expected):
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    placed = (
        jax.device_put(inputs[0], variables_shardings(inputs[0], mesh)),
        *jax.device_put(inputs[1:], batch_sharding(mesh)),
    )
    with jax.set_mesh(mesh):
        alone = jax.jit(forward, compiler_options=UNOPTIMISED).lower(*placed).compile()
        both = jax.jit(with_gradients, compiler_options=UNOPTIMISED).lower(*placed).compile()
    moved = collectives(alone.as_text())
    # Only the sum over the heads of all devices, and the rows of keys and values that others hold.
    own = MAP // axes.get("data", 1)
    assert moved.pop("all-reduce") == own // axes.get("rows", 1)
    assert moved == ({"all-gather": gathered * own // axes["tensor"]} if gathered else {})
    found = both(*placed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() < 1e-5 or relative_error(a, b) < 1e-4
