"""The norms against torch where their epsilons count, and what batch norm keeps of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.recordings import relative_error
from ultrapixel_jax.models.blocks import GlobalResponseNorm
from ultrapixel_jax.models.layers import BatchNorm, LayerNorm, layer_norm

SMALL = (1e-2, 1e-3, 1e-6)
"""Deviations of the inputs; the epsilons are 1e-5 and 1e-6, beside variances or norms."""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scale", SMALL)
def test_layer_norms(scale: float) -> None:
    x, weight, bias = scale * normal(3, 4, 16), normal(16, seed=1), normal(16, seed=2)
    double = torch.from_numpy(x).double()
    expected = functional.layer_norm(double, (16,), eps=1e-6)
    assert relative_error(layer_norm(jnp.asarray(x)), expected.numpy()) < 1e-4
    affine = functional.layer_norm(
        double, (16,), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), eps=1e-5
    )
    params = {"params": {"scale": jnp.asarray(weight), "bias": jnp.asarray(bias)}}
    assert relative_error(LayerNorm().apply(params, jnp.asarray(x)), affine.numpy()) < 1e-4


@pytest.mark.parametrize("scale", SMALL)
def test_global_response_norm(scale: float) -> None:
    x, gamma = scale * normal(2, 4, 5, 6), normal(6, seed=1)
    double = torch.from_numpy(x).double()
    norm = torch.linalg.vector_norm(double, dim=(1, 2), keepdim=True)
    expected = (
        double * torch.from_numpy(gamma).double() * norm / (norm.mean(-1, keepdim=True) + 1e-6) + double
    )
    params = {"params": {"gamma": jnp.asarray(gamma), "beta": jnp.zeros(6)}}
    found = GlobalResponseNorm().apply(params, jnp.asarray(x))
    assert relative_error(found, expected.numpy()) < 1e-5


def test_batch_norm_in_training_and_after() -> None:
    theirs = torch.nn.BatchNorm2d(5, eps=1e-5)
    ours = BatchNorm(1e-5)
    x = jnp.asarray(1 + 2 * normal(3, 2, 2, 5))
    variables = ours.init(jax.random.key(0), x)
    for seed in range(2):
        x = 1 + 2 * normal(3, 2, 2, 5, seed=seed)
        nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
        found, changed = ours.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
        variables = {**variables, **changed}
        expected = theirs(nchw).detach()
        assert relative_error(found, np.moveaxis(expected.numpy(), 1, -1)) < 1e-5
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)
    expected = theirs.eval()(nchw).detach()
    found = ours.apply(variables, jnp.asarray(x))
    assert relative_error(found, np.moveaxis(expected.numpy(), 1, -1)) < 1e-5
