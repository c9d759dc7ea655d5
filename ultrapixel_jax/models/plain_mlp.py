"""The channel MLP's two products by the plain formula, for gradients, and what kernels of them share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.models.layers import apply_linear, gelu, scale_channels

ERF_IS_ONE = 3.7439211627767994
ERF = (
    (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145,
     1.128379143519084),
    (-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667,
     0.11098505178285362, 0.49746925110067538, 1.0),
)  # fmt: skip
"""Coefficients of x² above and below the line, the highest power first, as XLA has them."""


def erf(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The error function in float32, off by 4e-7 at most: the fraction that XLA takes, and Pallas lacks."""
    x = jnp.clip(x, -ERF_IS_ONE, ERF_IS_ONE)
    square = x * x
    above, below = (functools.reduce(lambda total, c: total * square + c, part) for part in ERF)
    return x * above / below


def gelu_by_erf(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The exact GELU of float32, inside of a kernel."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def with_gradient_of(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A function of the arguments of `plain`, and of a last one that says how to run, gets its gradient."""
    static = len(inspect.signature(plain).parameters)

    def decorate(function: Callable[..., Any]) -> Any:
        made = jax.custom_vjp(function, nondiff_argnums=(static,))
        made.defvjp(lambda *args: jax.vjp(plain, *args[:-1]), lambda _, pull, cotangent: pull(cotangent))
        return made

    return decorate


def plain_gelu_of_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "c f"], bias: Float[Array, " f"]
) -> tuple[Float[Array, "b h w f"], Float[Array, "b f"]]:
    """`gelu(x @ kernel + bias)`, and the sums of its squares over each map in float32."""
    hidden = gelu(apply_linear(x, kernel, bias))
    return hidden, jnp.square(hidden.astype(jnp.float32)).sum((1, 2))


def plain_product_onto(
    x: Float[Array, "b h w c"],
    hidden: Float[Array, "b h w f"],
    factor: Float[Array, "b f"],
    shift: Float[Array, " f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, " c"],
) -> Float[Array, "b h w c"]:
    """`x + (hidden·factor + shift) @ kernel + bias`."""
    return x + apply_linear(scale_channels(hidden, factor, shift), kernel, bias)


def with_factor(
    kernel: Float[Array, "f c"],
    factor: Float[Array, "b f"],
    shift: Float[Array, " f"],
    bias: Float[Array, " c"],
) -> tuple[Float[Array, "b f c"], Float[Array, " c"]]:
    """(a kernel of each sample, what is added to its product) of `(x·factor + shift) @ kernel + bias`, in
    float32.
    """
    kernel32 = kernel.astype(jnp.float32)
    constant = (shift.astype(jnp.float32)[:, None] * kernel32).sum(0) + bias.astype(jnp.float32)
    return factor[:, :, None] * kernel32[None], constant
