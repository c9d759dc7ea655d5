from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.importing import run
from tests.recordings import nhwc, relative_error
from ultrapixel_jax.config import EfficientNetStage
from ultrapixel_jax.models.convolutions import depthwise
from ultrapixel_jax.models.efficientnet import Block, ConvNorm


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (6, 8), (7, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_strided_depthwise_agrees_with_torch(stride, size, bias):
    import torch

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 6)).astype(np.float32)
    kernel, b = rng.normal(size=(3, 3, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(kernel).permute(2, 0, 1)[:, None],
        torch.from_numpy(b) if bias else None, stride, 1, groups=6,
    )  # fmt: skip
    found = depthwise(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(b) if bias else None, stride=stride)
    assert relative_error(found, nhwc(expected.numpy())) < 1e-6


@pytest.mark.parametrize("kind", ["fused", "mbconv"])
def test_a_block_is_residual_only_where_nothing_changes(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 8)), jnp.float32)
    for stride, channels, residual in ((1, 8, True), (1, 12, False), (2, 8, False)):
        block = Block(EfficientNetStage(kind, 4, 1, channels, 1), stride)
        variables = jax.jit(block.init)(jax.random.key(0), x)
        # With its last norm's scale at zero only a residual is left.
        project = variables["params"]["project"]
        project["norm"] = {k: jnp.zeros_like(v) for k, v in project["norm"].items()}
        y = run(block, variables, x)
        if residual:
            np.testing.assert_array_equal(y, x)
        else:
            assert not y.any()


def test_conv_norm_agrees_with_torch_where_variances_are_small():
    import torch

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 5, 4)), 0.01 * rng.normal(size=(3, 3, 4, 8))
    mean, bias, scale = 0.1 * rng.normal(size=(3, 8))
    var = np.geomspace(1e-6, 1e-2, 8)
    torch_x, weight, *statistics = map(
        torch.from_numpy, (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), mean, var, scale, bias)
    )
    y = torch.nn.functional.conv2d(torch_x, weight, padding=1)
    expected = torch.nn.functional.silu(torch.nn.functional.batch_norm(y, *statistics, eps=1e-3))
    variables = {
        "params": {"conv": {"kernel": kernel}, "norm": {"scale": scale, "bias": bias}},
        "batch_stats": {"norm": {"mean": mean, "var": var}},
    }
    variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables)
    found = run(ConvNorm(8, size=3), variables, jnp.asarray(x, jnp.float32))
    assert relative_error(found, nhwc(expected.numpy())) < 1e-5
