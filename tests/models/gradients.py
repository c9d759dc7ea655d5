"""Values and gradients of a function here and of one in torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.recordings import relative_error


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(function, *inputs):
    """Value, and gradients in all inputs of a sum in which every output counts differently."""

    def loss(*args):
        out = function(*args)
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(loss, tuple(range(len(inputs))), has_aux=True))(*map(jnp.asarray, inputs))
    return [out, *grads]


def with_torch_gradients(function, *inputs):
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    out = function(*tensors)
    torch.sin(out).sum().backward()
    return [x.numpy() for x in (out.detach(), *(t.grad for t in tensors))]


def check(found, expected, tolerance=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < tolerance
