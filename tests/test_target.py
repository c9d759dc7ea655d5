"""Which platform a program is traced for, where another one's kernels are chosen: nothing runs."""

import jax
import jax.numpy as jnp
import pytest

from ultrapixel_jax import target
from ultrapixel_jax.compilation.options import compiler_options
from ultrapixel_jax.models import attention

BF16 = jnp.bfloat16
MANY = jax.ShapeDtypeStruct((2, 600, 2, 64), BF16)


def text(function, platform: str) -> str:
    with target.traced_for(platform):
        return jax.jit(function).trace(MANY, MANY).lower(lowering_platforms=(platform,)).as_text()


def attend(q, k):
    return attention.attention(q, k, k)


def test_the_kernel_is_that_of_the_platform_which_is_lowered_for() -> None:
    # The same function throughout: what was traced for one platform must not be taken for another.
    here = jax.jit(attend).lower(MANY, MANY).as_text()
    assert "tpu_custom_call" in text(attend, "tpu") and "tpu_custom_call" not in here
    assert jax.jit(attend).lower(MANY, MANY).as_text() == here


def test_the_gradient_is_lowered_for_it_too() -> None:
    def loss(q, k):
        return jnp.sum(attend(q, k).astype(jnp.float32))

    assert text(jax.grad(loss, (0, 1)), "tpu").count("tpu_custom_call") >= 3  # out; q; k and v


@pytest.mark.parametrize("name, platform", [("tpu", "tpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("cpu", "cpu")])
def test_names(name: str, platform: str) -> None:
    assert target.platform() == "cpu"
    with target.traced_for(name):
        assert target.platform() == platform
        assert (compiler_options("bfloat16", wide_maps=True) is None) == (platform != "cpu")
    assert target.platform() == "cpu"


def test_the_kernel_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def cudnn(q, k, v, *, implementation, **lengths):
        seen.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    text(lambda q, k: attend(q, k), "cuda")
    assert seen == ["cudnn"]


def test_without_cudnn_a_program_for_gpus_attends_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def cudnn(*args, **options):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    assert "dot_general" in text(lambda q, k: attend(q, k), "cuda")
