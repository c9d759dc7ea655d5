"""The full-size sampler and training step lower for TPUs, without logits of all pairs of tokens."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, NamedSharding, PartitionSpec

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import make_table
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models import components
from ultrapixel_jax.models.attention import attention
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.target import traced_for
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import GuidanceTask, TrainConfig
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task

LR, HR = (24, 24), (96, 96)
"""Latents of 1024² and 4096² pixels."""
BF16 = jnp.bfloat16


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(autouse=True)
def for_a_tpu() -> Iterator[None]:
    with traced_for("tpu"):
        yield


def lowered(function: Any, *args: Any) -> str:
    return jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()


def check(text: str) -> None:
    tokens = HR[0] * HR[1]
    shapes = {
        tuple(map(int, found.rstrip("x").split("x"))) for found in re.findall(r"tensor<((?:\d+x)+)", text)
    }
    assert any(tokens in shape for shape in shapes)  # the maps themselves are there, as tokens
    quadratic = [shape for shape in shapes if sum(size >= tokens for size in shape) > 1]
    assert not quadratic, quadratic
    assert "tpu_custom_call" in text  # the attention kernel


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    c = full.stage_c
    return Prompts(
        spec(2, 77, c.c_clip_text, dtype=BF16),
        spec(2, c.c_clip_text_pooled, dtype=BF16),
        spec(2, c.c_clip_img, dtype=BF16),
    )


def test_the_check_finds_logits() -> None:
    q = spec(1, HR[0] * HR[1], 2, 64, dtype=BF16)
    plain = lowered(lambda q: jax.nn.dot_product_attention(q, q, q, implementation="xla"), q)
    with pytest.raises(AssertionError):
        check(plain)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2, "rows": 2}, {"fsdp": 8}])
def test_the_attention_kernel_on_a_mesh(sizes: dict[str, int]) -> None:
    def loss(q, k):
        return jnp.sum(attention(q, k, k).astype(jnp.float32))

    tpu = AbstractDevice("TPU v6 lite", 1, "tpu")
    mesh = make_mesh(sizes).abstract_mesh.update(abstract_device=tpu)
    place = NamedSharding(mesh, PartitionSpec())
    q, k = (jax.ShapeDtypeStruct((2, n, 4, 64), BF16, sharding=place) for n in (9216, 9301))
    with jax.sharding.use_abstract_mesh(mesh):
        text = lowered(jax.grad(loss), q, k)
    check(text)
    # Two of the four heads, half of the queries, one example.
    assert ("tensor<1x2x4608x64xbf16>" in text) == ("rows" in sizes)


def test_sampler(prompts: Prompts) -> None:
    c = full.stage_c
    assert full.guidance is not None
    modules = StageC(c, BF16), Guidance(full.guidance, BF16)

    def sample(stage_c, guidance, prompts, x_lr, x_hr, scale, table, steps, capture):
        model = StageCModel(modules[0], stage_c, modules[1], guidance, BF16)
        return two_branch.sample(
            model, prompts, x_lr, x_hr, scale, table, steps, capture, lambda i: x_lr, lambda i: x_hr
        )

    table = jax.tree.map(lambda v: spec(*v.shape), make_table(full.sampling_c))
    check(
        lowered(
            sample,
            components.abstract("stage_c", c, BF16),
            components.abstract("guidance", full.guidance, BF16),
            prompts,
            spec(1, *LR, 16),
            spec(1, *HR, 16),
            ScaleInputs(spec(), spec()),
            table,
            spec(dtype=jnp.int32),
            spec(dtype=jnp.int32),
        )
    )


def test_training_step() -> None:
    data = DataConfig(cached=True, batch_size=1)
    config = TrainConfig(task=GuidanceTask(), model=full, data=data)
    task, optimizer = make_task(config), make_optimizer(config.optimizer)
    c = full.stage_c
    batch = {
        "latent": spec(1, *HR, 16, dtype=BF16), "latent_lr": spec(1, *LR, 16, dtype=BF16),
        "text_states": spec(1, 77, c.c_clip_text, dtype=BF16),
        "text_pooled": spec(1, c.c_clip_text_pooled, dtype=BF16),
        "image_vector": spec(1, c.c_clip_img, dtype=BF16),
    }  # fmt: skip
    state = jax.eval_shape(lambda: states.creator(task, optimizer)({}))
    frozen = jax.eval_shape(
        lambda: task.arrange("stage_c", components.initialise("stage_c", c, jax.random.key(0), BF16))
    )
    check(lowered(make_step(task, optimizer), state, {"stage_c": frozen}, spec(), batch))
