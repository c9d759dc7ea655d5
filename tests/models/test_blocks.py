"""The parts of the blocks against plain formulas and against torch."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from tests.recordings import relative_error
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.models import attention as attn
from ultrapixel_jax.models.blocks import GlobalResponseNorm, ResBlock, build_levels
from ultrapixel_jax.models.convolutions import depthwise
from ultrapixel_jax.models.embeddings import fourier_features, sinusoidal
from ultrapixel_jax.models.layers import pixel_shuffle, pixel_unshuffle
from ultrapixel_jax.models.resize import resize_bilinear, resize_nearest
from ultrapixel_jax.target import traced_for

SIDES = st.integers(1, 40)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_attention(q, k, v):
    logits = jnp.einsum("bnkd,bmkd->bknm", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("bknm,bmkd->bnkd", jax.nn.softmax(logits, -1), v)


# Whole, and in chunks that do not divide the queries evenly.
@pytest.mark.parametrize("queries", [9, 2 * attn.QUERY_CHUNK + 7])
@pytest.mark.parametrize("path", [attn.attention, attn._by_heads, attn._by_queries])
def test_attention_forward_and_gradient(path, queries):
    q, k, v = normal(2, queries, 2, 8), normal(2, 13, 2, 8, seed=1), normal(2, 13, 2, 8, seed=2)

    def loss(path, *args):
        return jnp.sum(jnp.sin(path(*args)))

    expected = plain_attention(*map(jnp.asarray, (q, k, v)))
    assert relative_error(jax.jit(path)(q, k, v), expected) < 1e-5
    grads = jax.jit(jax.grad(lambda *a: loss(path, *a), (0, 1, 2)))(q, k, v)
    for found, wanted in zip(grads, jax.grad(lambda *a: loss(plain_attention, *a), (0, 1, 2))(q, k, v)):
        assert relative_error(found, wanted) < 1e-4
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = jax.jit(path)(*half)
    assert out.dtype == jnp.bfloat16 and relative_error(out, expected) < 0.03


@pytest.mark.parametrize("queries, keys", [(600, 130), (256, 341)])
def test_the_attention_of_tpus_forward_and_gradient(monkeypatch, queries, keys):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(attn, "FEW_PAIRS", 0)
    q, k, v = (
        jnp.asarray(normal(2, n, 2, 64, seed=seed), jnp.bfloat16)
        for seed, n in enumerate((queries, keys, keys))
    )
    weights = jnp.asarray(normal(2, queries, 2, 64, seed=3))

    def with_gradients(path, *args):
        out, pull = jax.vjp(path, *args)
        return out, *pull(weights.astype(out.dtype))

    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(lambda *args: with_gradients(attn.attention, *args))(q, k, v)
    expected = with_gradients(plain_attention, *(x.astype(jnp.float32) for x in (q, k, v)))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16 and relative_error(a, b) < 0.02


@pytest.mark.parametrize("queries, keys", [(9, 13), (8, 13), (9, 12), (8, 12)])
def test_the_attention_of_gpus_forward_and_gradient(monkeypatch, queries, keys):
    by_xla = jax.nn.dot_product_attention
    seen = []

    def kernel(q, k, v, *, implementation, **lengths):
        seen.extend([q.shape[1], k.shape[1]])
        assert implementation == "cudnn"
        return by_xla(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(attn, "FEW_PAIRS", 0)
    inputs = (normal(2, n, 2, 8, seed=seed) for seed, n in enumerate((queries, keys, keys)))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs)

    def with_gradients(path, *args):
        out, pull = jax.vjp(path, *args)
        return out, *pull(jnp.asarray(normal(2, queries, 2, 8, seed=3), out.dtype))

    found = with_gradients(attn.attention, q, k, v)
    expected = with_gradients(plain_attention, *(x.astype(jnp.float32) for x in (q, k, v)))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16 and relative_error(a, b) < 0.02
    assert seen and not any(n % 2 for n in seen)  # of others cuDNN has no gradient


def test_attention_of_large_logits_stays_finite():
    q = jnp.full((1, 3, 1, 8), 100.0)
    out = attn.attention(q, q, jnp.ones((1, 3, 1, 8)))
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)


@pytest.mark.parametrize("path", [attn._by_heads, attn._by_queries])
def test_attention_memory_is_linear_in_tokens(path):
    def temporaries(tokens: int, heads: int = 32) -> int:
        q = jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.float32)
        kv = jax.ShapeDtypeStruct((1, tokens + 85, heads, 64), jnp.float32)
        return jax.jit(path).lower(q, kv, kv).compile().memory_analysis().temp_size_in_bytes

    if path is attn._by_heads:
        assert temporaries(9216) < 1e9
    # Four times the tokens: a full matrix of logits would take sixteen times the memory.
    assert temporaries(9216, 2) < 5 * temporaries(2304 * 2, 2)


@pytest.mark.parametrize("padding", ["zero", "edge"])
def test_depthwise_against_the_grouped_convolution(padding):
    x, kernel, bias = normal(2, 6, 5, 7), normal(3, 3, 7, seed=1), normal(7, seed=2)
    mode = "edge" if padding == "edge" else "constant"
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode=mode)
    expected = jax.lax.conv_general_dilated(
        padded, jnp.asarray(kernel[:, :, None]), (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=7,
    ) + jnp.asarray(bias)[None, None, None]  # fmt: skip
    found = depthwise(*map(jnp.asarray, (x, kernel, bias)), padding)
    assert relative_error(found, expected) < 1e-5


def test_global_response_norm_formula():
    x, gamma, beta = normal(2, 4, 5, 6), normal(6, seed=1), normal(6, seed=2)
    g = torch.linalg.vector_norm(torch.from_numpy(x), dim=(1, 2), keepdim=True)
    n = g / (g.mean(-1, keepdim=True) + 1e-6)
    expected = torch.from_numpy(gamma) * (torch.from_numpy(x) * n) + torch.from_numpy(beta) + x
    params = {"params": {"gamma": gamma, "beta": beta}}
    found = GlobalResponseNorm().apply(jax.tree.map(jnp.asarray, params), jnp.asarray(x))
    assert relative_error(found, expected.numpy()) < 1e-5


# One program for each of many sizes, where there would be one for each operation.
jit_bilinear = jax.jit(resize_bilinear, static_argnums=1)
jit_nearest = jax.jit(resize_nearest, static_argnums=1)


def torch_resize(x: np.ndarray, size: tuple[int, int], **kwargs) -> np.ndarray:
    y = torch.nn.functional.interpolate(torch.from_numpy(np.moveaxis(x, -1, 1)), size, **kwargs)
    return np.moveaxis(y.numpy(), 1, -1)


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_bilinear_aligned_as_in_torch(h, w, h2, w2):
    x = normal(1, h, w, 2)
    expected = torch_resize(x, (h2, w2), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(jit_bilinear(jnp.asarray(x), (h2, w2)), expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 32), st.integers(1, 200))
def test_nearest_as_in_torch(source, target):
    x = np.arange(source, dtype=np.float32).reshape(1, source, 1, 1)
    expected = torch_resize(x, (target, 1), mode="nearest")
    np.testing.assert_array_equal(jit_nearest(jnp.asarray(x), (target, 1)), expected)


def test_nearest_where_exact_arithmetic_picks_another_pixel():
    """Sizes at which torch's float32 rule differs from exact arithmetic: the rule must be torch's."""
    differing = [
        (s, t)
        for s in range(1, 33)
        for t in range(s, 200)
        if any(min(int(np.float32(i) * np.float32(s / t)), s - 1) != i * s // t for i in range(t))
    ]
    assert differing
    for source, target in differing[:: max(1, len(differing) // 5)]:
        test_nearest_as_in_torch.hypothesis.inner_test(source, target)


def test_pixel_unshuffle_as_in_torch_and_back():
    x = normal(2, 6, 8, 3)
    expected = torch.nn.functional.pixel_unshuffle(torch.from_numpy(np.moveaxis(x, -1, 1)), 2)
    packed = pixel_unshuffle(jnp.asarray(x), 2)
    np.testing.assert_array_equal(packed, np.moveaxis(expected.numpy(), 1, -1))
    np.testing.assert_array_equal(pixel_shuffle(packed, 2), x)


def test_time_embedding_rounds_where_the_reference_does():
    r = np.float32([0.0, 1e-3, 0.05, 0.4712345, 0.99999, 1.0])
    f = np.exp((np.arange(32, dtype=np.float32) * np.float32(-math.log(10000) / 31)).astype(np.float64))
    angle = (r * np.float32(10000))[:, None] * f.astype(np.float32)
    assert angle.dtype == np.float32
    expected = np.concatenate([np.sin(angle.astype(np.float64)), np.cos(angle.astype(np.float64))], -1)
    found = jax.jit(sinusoidal)(jnp.asarray(r))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(found[0], np.repeat([0.0, 1.0], 32))


def test_fourier_features_by_the_specification():
    height, width = 5, 7
    w = np.exp(np.linspace(0, math.log(1024), 64).astype(np.float32))
    i = np.arange(height, dtype=np.float32)
    j = np.arange(width, dtype=np.float32)
    y = np.float32(-1) + np.float32(2) * (np.float32(0.5) + i) / np.float32(height)
    x = np.float32(-1) + np.float32(2) * (np.float32(0.5) + j) / np.float32(width)
    angle_y = (y[:, None] * w) * np.float32(math.pi)
    angle_x = (x[:, None] * w) * np.float32(math.pi)
    found = jax.jit(fourier_features, static_argnums=(0, 1))(height, width)
    assert found.shape == (height * width, 256)
    for row in range(height):
        for column in range(width):
            p = np.concatenate([angle_y[row], angle_x[column]]).astype(np.float64)
            expected = np.concatenate([np.cos(p), np.sin(p)])
            np.testing.assert_allclose(found[row * width + column], expected, atol=5e-6)


def test_global_response_norm_of_a_zero_channel_has_a_gradient() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    x[:, :, :, 1] = 0
    module = GlobalResponseNorm()
    variables = {"params": {"gamma": jnp.ones(4), "beta": jnp.ones(4)}}
    found = jax.grad(lambda x: jnp.sin(module.apply(variables, x)).sum())(x)
    y = torch.tensor(x, requires_grad=True)
    norm = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
    torch.sin(y * norm / (norm.mean(-1, keepdim=True) + 1e-6) + 1 + y).sum().backward()
    np.testing.assert_allclose(found, y.grad, rtol=1e-4, atol=1e-5)


def test_a_fresh_resblock_is_linear_in_its_skip():
    x, skip = jnp.asarray(normal(2, 5, 4, 8)), jnp.asarray(normal(2, 5, 4, 6, seed=1))
    block = ResBlock(8)
    variables = block.init(jax.random.key(0), x, skip)
    nothing, once, thrice = (block.apply(variables, x, factor * skip) for factor in (0, 1, -3))
    assert jnp.abs(once - nothing).max() > 0.1
    assert relative_error(thrice - nothing, -3 * (once - nothing)) < 1e-5


def test_residual_branches_start_the_smaller_the_more_there_are():
    """Xavier's deviation over the root of the number of blocks on the way down."""
    down, up = build_levels((LevelConfig(32, 4, 3, 2), LevelConfig(32, 4, 13, 5)), (), jnp.float32, False)
    for level in (*down, *up):
        block = ResBlock(32, out_scale=level.out_scale)
        kernel = block.init(jax.random.key(0), jnp.zeros((1, 1, 1, 32)))["params"]["contract"]["kernel"]
        np.testing.assert_allclose(np.std(kernel), math.sqrt(2 / (32 + 4 * 32)) / 4, rtol=0.05)


def in_torch(dtype: torch.dtype, x: torch.Tensor, p: dict[str, torch.Tensor]) -> Any:
    """A ResBlock of channels last, all of it in `dtype`."""
    functional = torch.nn.functional
    x, p = x.to(dtype), {name: v.to(dtype) for name, v in p.items()}
    kernel = p["depthwise/kernel"].permute(2, 0, 1)[:, None]
    y = functional.conv2d(x.permute(0, 3, 1, 2), kernel, p["depthwise/bias"], padding=1, groups=x.shape[-1])
    y = functional.layer_norm(y.permute(0, 2, 3, 1), (x.shape[-1],), eps=1e-6)
    y = functional.gelu(functional.linear(y, p["expand/kernel"].T, p["expand/bias"]))
    norm = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
    y = p["grn/gamma"] * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + p["grn/beta"] + y
    return x + functional.linear(y, p["contract/kernel"].T, p["contract/bias"])


def resblock_weights(channels: int) -> dict[str, np.ndarray]:
    shapes = {
        "depthwise/kernel": (3, 3, channels), "depthwise/bias": (channels,),
        "expand/kernel": (channels, 4 * channels), "expand/bias": (4 * channels,),
        "grn/gamma": (4 * channels,), "grn/beta": (4 * channels,),
        "contract/kernel": (4 * channels, channels), "contract/bias": (channels,),
    }  # fmt: skip
    return {
        name: normal(*shape, seed=seed) / math.sqrt(shape[0] if len(shape) == 2 else 3)
        for seed, (name, shape) in enumerate(shapes.items(), 1)
    }


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in flat.items():
        module, name = path.split("/")
        out.setdefault(module, {})[name] = value
    return {"params": out}


def test_the_resblock_of_gpus_forward_and_gradient(monkeypatch):
    """More pixels than channels, so that the norm enters the second kernel; against torch in float64."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weights, cotangent = normal(2, 16, 9, 32), resblock_weights(32), normal(2, 16, 9, 32, seed=20)
    given = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, *weights.values())]
    expected = in_torch(torch.float64, given[0], dict(zip(weights, given[1:], strict=True)))
    expected.backward(torch.from_numpy(cotangent).double())

    def ours(x, weights) -> Any:
        return ResBlock(32).apply(nested(weights), x)

    def both(x, weights):
        again, pull = jax.vjp(ours, x, weights)
        return ours(x, weights), again, pull(jnp.asarray(cotangent))

    # A program that is not differentiated takes another path than one that is.
    found, again, grads = jax.jit(both)(x, weights)
    assert relative_error(found, expected.detach().numpy()) < 1e-6 and relative_error(again, found) < 1e-6
    for a, b in zip((grads[0], *(grads[1][name] for name in weights)), given, strict=True):
        assert b.grad is not None and relative_error(a, b.grad.numpy()) < 1e-5

    half = [jnp.asarray(v, jnp.bfloat16) for v in (x, *weights.values())]
    found = jax.jit(ours)(half[0], dict(zip(weights, half[1:], strict=True)))
    tensors = [torch.tensor(np.asarray(v, np.float32), dtype=torch.float64) for v in half]
    rounded = dict(zip(weights, tensors[1:], strict=True))
    exact = in_torch(torch.float64, tensors[0], rounded)
    in_theirs = in_torch(torch.bfloat16, tensors[0], rounded).double()
    error, theirs = (np.linalg.norm(np.asarray(y, np.float64) - exact.numpy()) for y in (found, in_theirs))
    assert found.dtype == jnp.bfloat16 and 0 < error <= theirs


def test_what_gpus_multiply():
    """Products leave in their own dtype; a kernel for each sample is made where it is smaller than the map,
    and never with gradients.
    """
    shapes = {name: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for name, v in resblock_weights(16).items()}

    def ours(x, weights) -> Any:
        return ResBlock(16).apply(nested(weights), x)

    def dots(side: int, function=ours, platform: str = "cuda") -> list[str]:
        x = jax.ShapeDtypeStruct((2, side, 5, 16), jnp.bfloat16)
        with traced_for(platform):
            text = jax.jit(function).trace(x, shapes).lower(lowering_platforms=(platform,)).as_text()
        # Between the taps and the norm, which XLA shall not compile as one kernel.
        assert ("optimization_barrier" in text) == (platform == "cuda")
        return [line for line in text.splitlines() if "stablehlo.dot_general" in line]

    def per_sample(lines: list[str]) -> list[str]:
        return [line for line in lines if "tensor<2x64x16xbf16>" in line]

    assert [line.endswith("xbf16>") for line in dots(5)] == [True, True]
    assert len(per_sample(dots(5))) == 1 and not per_sample(dots(3))
    assert [line.endswith("xf32>") for line in dots(5, platform="cpu")] == [True, True]
    gradient = jax.grad(lambda x, w: ours(x, w).astype(jnp.float32).sum(), (0, 1))
    assert len(dots(5, gradient)) == 5 and not per_sample(dots(5, gradient))
