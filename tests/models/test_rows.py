"""Whole networks with their maps' rows divided over devices: values and gradients of one device."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.filled import SMALL, filled
from tests.recordings import relative_error
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.sharding import make_mesh

ALL = {"rows": 2, "tensor": 2, "data": 2}
R = np.array([0.3, 0.7], np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both_passes(variables: Any, x_lr: Any, x_hr: Any, text: Any) -> Any:
    """Stage C at the LR size, whose features guide it at the HR size."""
    assert SMALL.guidance is not None
    model = StageCModel(
        StageC(SMALL.stage_c), variables["stage_c"], Guidance(SMALL.guidance), variables["guidance"]
    )
    conditioning = model.condition(Prompts(*text))
    plain = model.denoise(x_lr, jnp.asarray(R), conditioning)
    prepared = model.prepare(plain.features, x_hr.shape[1:3])
    scale = ScaleInputs(jnp.float32(0.8), jnp.float32(0.3))
    return plain.epsilon, model.denoise(x_hr, jnp.asarray(R), conditioning, prepared, scale).epsilon


def stage_b(variables: Any, x: Any, effnet: Any, pooled: Any) -> Any:
    """Stage B with a condition of another size."""
    model = StageB(SMALL.stage_b)
    conditioning = model.apply(variables["stage_b"], pooled, effnet, x.shape[1:3], method="condition")
    return (model.apply(variables["stage_b"], x, jnp.asarray(R), conditioning),)


@functools.cache
def network(name: str) -> tuple[Any, Any, tuple[Any, ...]]:
    """A function, its variables, and its inputs; rows of the maps divide by four at every level."""
    if name == "stage_b":
        variables = {"stage_b": filled("stage_b", SMALL.stage_b)}
        return stage_b, variables, (normal(2, 16, 8, 4), normal(2, 3, 3, 16), normal(2, 48, seed=1))
    variables = {name: filled(name, getattr(SMALL, name)) for name in ("stage_c", "guidance")}
    text = (normal(2, 5, 48), normal(2, 48, seed=1), normal(2, 40, seed=2))
    return both_passes, variables, (normal(2, 4, 3, 16), normal(2, 8, 6, 16, seed=3), text)


def with_gradients(name: str) -> Any:
    """Outputs, and gradients in all variables and inputs of a sum in which every value counts differently."""
    function, variables, inputs = network(name)

    @functools.partial(jax.jit, compiler_options=UNOPTIMISED)
    def run(variables: Any, *inputs: Any) -> Any:
        def total(*args: Any) -> Any:
            out = function(*args)
            return sum(jnp.sin(x).sum() for x in out), out

        gradients, out = jax.grad(total, tuple(range(1 + len(inputs))), has_aux=True)(variables, *inputs)
        return out, gradients

    out, gradients = run(variables, *inputs)
    return jax.tree.map(np.asarray, (out, gradients))


@functools.cache
def on_one_device(name: str) -> Any:
    return with_gradients(name)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("stage_c", ALL), ("stage_b", ALL)],
)
def test_divided_rows_change_nothing(name: str, sizes: dict[str, int]) -> None:
    expected_out, expected = on_one_device(name)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    with jax.set_mesh(make_mesh(sizes, devices)):
        out, found = with_gradients(name)
    for a, b in zip(out, expected_out, strict=True):
        assert relative_error(a, b) < 1e-4
    # Some biases have no gradient but rounding: those of keys, which the softmax does not see.
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree_util.tree_leaves_with_path(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=1e-3 * np.abs(b).max() + 1e-4, err_msg=jax.tree_util.keystr(path)
        )
