"""Every parameter of every full-size network has its place on a mesh."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ultrapixel_jax.config import COMPONENTS, CascadeConfig
from ultrapixel_jax.layouts.apply import flatten
from ultrapixel_jax.models import components
from ultrapixel_jax.models.scan import stack
from ultrapixel_jax.sharding import (
    by_examples_and_heads,
    by_rows,
    constrain,
    make_mesh,
    parameter_sharding,
    parameter_spec,
)

FULL = CascadeConfig()


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_parameter_of_full_size(name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    variables = flatten(components.abstract(name, getattr(FULL, name)))
    split = 0
    for path, struct in variables.items():
        shard = parameter_sharding(path, struct.shape, mesh).shard_shape(struct.shape)
        split += len(struct.shape) > 1 and shard != struct.shape
        large = struct.size > 2**20 and not path.startswith("unused/")
        assert not large or shard != struct.shape or "wb" in path or "emb" in path, path
    assert split


def test_stacked_weights_are_split_as_single_ones():
    config = FULL.stage_c
    stacked = flatten(jax.eval_shape(lambda v: stack(v, config), components.abstract("stage_c", config)))
    path = "params/down_1/rest/layer_0/expand/kernel"
    assert stacked[path].shape == (23, 2048, 8192)
    assert parameter_spec(path, stacked[path].shape) == P(None, "fsdp", "tensor")
    for path, struct in stacked.items():
        parameter_spec(path, struct.shape)


def test_a_products_inner_width_is_split_by_tensor_and_its_outer_by_fsdp():
    specs = {
        path.removeprefix("params/"): parameter_spec(path, struct.shape)
        for path, struct in flatten(components.abstract("stage_c", FULL.stage_c)).items()
        if path.endswith("/kernel")
    }
    pairs = {"expand": "contract", "query": "out", "key": "out", "value": "out"}
    found = set()
    for path, spec in specs.items():
        *block, name, _ = path.split("/")
        if name in pairs:
            last = specs["/".join([*block, pairs[name], "kernel"])]
            assert (spec[-1], last[0]) == ("tensor", "tensor"), path
            assert (spec[0], last[-1]) == ("fsdp", "fsdp"), path
            found.add(name)
    assert found == set(pairs)


def test_unknown_parameters_and_axes_raise():
    with pytest.raises(KeyError, match="no sharding rule for parameter params/a/strange"):
        parameter_spec("params/a/strange", (4, 4))
    with pytest.raises(KeyError, match="heigth"):
        constrain(jax.numpy.zeros((1, 2)), "batch", "heigth")


def test_dimensions_that_do_not_divide_are_replicated():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    assert parameter_sharding("params/a/kernel", (6, 8), mesh).spec == P(None, "tensor")
    assert parameter_sharding("params/a/kernel", (8, 7), mesh).spec == P("fsdp", None)


ALL = {"data": 2, "tensor": 2, "rows": 2}


@pytest.mark.parametrize(("sizes", "rows"), [(ALL, True), (ALL, False), ({"fsdp": 8}, False), ({}, False)])
def test_own_examples_and_heads_are_all_of_them(sizes, rows):
    seen = []

    def attend(q, k):
        seen.append((q.shape, k.shape))
        return jax.nn.dot_product_attention(q, k, k)

    def with_gradients(function, *args):
        out, pull = jax.vjp(lambda *args: jax.numpy.sin(function(*args)), *args)
        return out, *pull(out)

    q, k = (jax.random.normal(jax.random.key(n), (2, n, 4, 8)) for n in (6, 9))
    expected = jax.jit(lambda q, k: with_gradients(attend, q, k))(q, k)
    divided = by_examples_and_heads(attend)
    with jax.set_mesh(make_mesh(sizes, None if sizes else jax.devices()[:1])):
        if rows:
            divided = by_rows(divided, jax.sharding.get_abstract_mesh(), takes=("rows", "whole"))
        found = jax.jit(lambda q, k: with_gradients(divided, q, k))(q, k)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    # The batch of two does not divide over eight devices.
    own = ((1, 3 if rows else 6, 2, 8), (1, 9, 2, 8)) if "tensor" in sizes else (q.shape, k.shape)
    assert seen[-1] == own
