"""Kernels in eight bits: how far off they are, which ones are, and that no loop makes them all at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.recordings import relative_error
from ultrapixel_jax.models.int8 import Int8, quantised, rounded
from ultrapixel_jax.models.layers import Linear


def test_each_value_is_off_by_half_a_step_at_most():
    kernel = np.random.default_rng(0).standard_normal((160, 3)).astype(np.float32) * [1e-3, 1, 1e3]
    kernel = np.concatenate([kernel, np.zeros((160, 1))], axis=1).astype(np.float32)
    found = rounded(jnp.asarray(kernel))
    largest = np.abs(kernel).max(0)
    np.testing.assert_allclose(found.scale, largest / 127, rtol=1e-6)
    assert found.values.dtype == jnp.int8 and np.abs(found.values).max(0).tolist() == [127, 127, 127, 0]
    off = np.abs(np.asarray(found.kernel(jnp.float32)) - kernel)
    assert (off <= largest / 127 / 2 * (1 + 1e-5)).all()
    again = rounded(found.kernel(jnp.float32))
    np.testing.assert_array_equal(again.values, found.values)


def test_large_kernels_of_linear_layers_are_and_nothing_else():
    leaf = jnp.ones((128, 256), jnp.bfloat16)
    tree = {"params": {"a": {"kernel": leaf, "bias": leaf[0]}, "b": {"kernel": leaf[:64]},
                       "depthwise": {"kernel": jnp.ones((3, 3, 512))}, "token_embedding": leaf}}  # fmt: skip
    found = quantised(tree)["params"]
    assert isinstance(found["a"]["kernel"], Int8) and found["a"]["kernel"].scale.dtype == jnp.float32
    assert found["token_embedding"] is leaf and found["depthwise"]["kernel"].ndim == 3
    assert found["b"]["kernel"] is tree["params"]["b"]["kernel"] and found["a"]["bias"].dtype == jnp.bfloat16


def test_a_loop_uses_them_and_keeps_none_of_the_kernels_made_of_them():
    layers, width, steps = 6, 512, 3
    model, x = Linear(width), jax.random.normal(jax.random.key(0), (2, width))
    own = [model.init(jax.random.key(i), x) for i in range(layers)]
    small = [quantised(v) for v in own]

    def run(variables, x):
        def body(_, x):
            for v in variables:
                x = jnp.tanh(model.apply(v, x))
            return x

        return jax.lax.fori_loop(0, steps, body, x)

    program = jax.jit(run).lower(small, x).compile()

    def back(leaf):
        return leaf.kernel(jnp.float32) if isinstance(leaf, Int8) else leaf

    made = [{"params": {k: back(v) for k, v in one["params"].items()}} for one in small]
    assert relative_error(program(small, x), run(made, x)) < 1e-5
    assert 0 < relative_error(program(small, x), run(own, x)) < 0.05
    memory = program.memory_analysis()
    kernel = 4 * width**2
    assert memory.argument_size_in_bytes < 1.1 * layers * kernel / 4
    assert memory.temp_size_in_bytes < 3 * kernel


def test_a_product_of_full_size_is_off_by_a_hundredth():
    """Of 127 steps up to about 4 deviations, rounding has a deviation of 4/127/√12."""
    kernel = jax.random.normal(jax.random.key(0), (2048, 1024)) / 2048**0.5
    x = jax.random.normal(jax.random.key(1), (64, 2048))
    assert 0.006 < relative_error(x @ rounded(kernel).kernel(jnp.float32), x @ kernel) < 0.012
