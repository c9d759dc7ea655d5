"""Full-size programs of abstract weights and inputs on a mesh, to be lowered: nothing here has a value.

Meshes may be of devices that are not there. The functions are those of `training` and `diffusion`; inputs
are placed as `train.py` and `sampling.pipeline` place them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import begin, make_table, noise, run_steps
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models import components
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.scan import SCANNABLE, stack
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.sampling.tiling import halo_for
from ultrapixel_jax.sharding import batch_sharding
from ultrapixel_jax.sizes import HW, Bucket
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.config import TrainConfig
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.step import make_step
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.tasks.base import Task

Lower = Callable[[], Any]
"""Traces and lowers a program under its mesh."""
STAGES = {
    "low": ("stage_c",), "prepare": ("guidance",), "high": ("stage_c", "guidance"), "b": ("stage_b",),
    "a": ("stage_a",),
}  # fmt: skip
"""Programs of the sampler, and the networks that each runs: stage C's two passes and what is between them."""


class Training(NamedTuple):
    """A training step, and what it takes."""

    task: Task
    create: Callable[[], states.TrainState]
    """The first state; to be jitted."""
    weights: Callable[[jax.Array], dict[str, Any]]
    """The frozen networks, as a run holds them, from a key; to be jitted."""
    shapes: dict[str, Any]
    """(shape, dtype) of the arrays of a batch, by name."""
    state: states.TrainState
    """Abstract and placed, as are the next three."""
    frozen: dict[str, Any]
    rate: jax.ShapeDtypeStruct
    batch: dict[str, jax.ShapeDtypeStruct]
    step: Any
    """Jitted."""


def training(config: TrainConfig, hr: HW, lr: HW, batch: int, mesh: Mesh, accumulate: int = 1) -> Training:
    """The step of `config` on a batch of cached latents; to be called, and lowered, under `mesh`.

    Args:
        config: what is trained; its data and accumulation are replaced.
        hr: size of the latents that are trained on.
        lr: size of the low-resolution ones.
        batch: examples of all devices together.
        mesh: where everything lies.
        accumulate: parts of the batch, one after the other.
    """
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, cached=True, batch_size=batch),
        optimizer=dataclasses.replace(config.optimizer, accumulate=accumulate),
    )
    task, optimizer = make_task(config), make_optimizer(config.optimizer)
    c, tokens = config.model.stage_c, config.model.clip_text.positions
    shapes: dict[str, Any] = {
        "latent": ((batch, *hr, c.c_latent), jnp.bfloat16),
        "image_vector": ((batch, c.c_clip_img), jnp.bfloat16),
    }
    networks = (*task.trained, *task.frozen)
    if "guidance" in networks:
        shapes["latent_lr"] = ((batch, *lr, c.c_latent), jnp.bfloat16)
    if "clip_text" in networks:
        if "lora" in networks:  # new words, each of which starts from the embedding of one token
            shapes["starts"] = ((batch, len(config.model.lora.tokens), 1), jnp.int32)
        shapes |= {"ids": ((batch, tokens), jnp.int32), "mask": ((batch, tokens), jnp.int32)}
    else:
        shapes["text_states"] = ((batch, tokens, c.c_clip_text), jnp.bfloat16)
        shapes["text_pooled"] = ((batch, c.c_clip_text_pooled), jnp.bfloat16)

    if "controlnet" in networks:
        pixels, kind = tuple(32 * side for side in hr), config.model.controlnet.kind
        shapes |= {
            "canny": {"control": ((batch, *pixels, 1), jnp.float32)},
            "inpainting": {"control": ((batch, *pixels, 4), jnp.uint8)},
            "super_resolution": {"image": ((batch, *pixels, 3), jnp.uint8)},
        }[kind]

    def weights(key: jax.Array) -> dict[str, Any]:
        fresh = {
            part: components.initialise(part, getattr(config.model, part), key, task.dtype)
            for part in task.frozen
        }
        return {part: task.arrange(part, variables) for part, variables in fresh.items()}

    create = functools.partial(states.creator(task, optimizer), {})
    state = jax.eval_shape(create)
    state_at = states.state_shardings(state, optimizer, mesh)
    frozen = jax.eval_shape(weights, jax.random.key(0))
    frozen_at = {part: states.variables_shardings(v, mesh) for part, v in frozen.items()}
    batch_at = batch_sharding(mesh)
    return Training(
        task, create, weights, shapes, states.place(state, state_at), states.place(frozen, frozen_at),
        jax.ShapeDtypeStruct((), jnp.float32),
        {name: jax.ShapeDtypeStruct(*of, sharding=batch_at) for name, of in shapes.items()},
        jax.jit(make_step(task, optimizer), donate_argnums=0, out_shardings=(state_at, None)),
    )  # fmt: skip


def sampler_weights(
    config: CascadeConfig, mesh: Mesh, dtype: Any = jnp.bfloat16, *, scanned: bool = False
) -> dict[str, Any]:
    """Abstract weights of every network that sampling holds, placed; stage A's in float32."""
    out = {}
    for part in ("clip_text", "stage_c", "guidance", "stage_b", "stage_a"):
        abstract = components.abstract(
            part, getattr(config, part), jnp.float32 if part == "stage_a" else dtype
        )
        if scanned and part in SCANNABLE:
            abstract = jax.eval_shape(functools.partial(stack, config=getattr(config, part)), abstract)
        out[part] = states.place(abstract, states.variables_shardings(abstract, mesh))
    return out


def sampling(
    config: CascadeConfig, bucket: Bucket, batch: int, mesh: Mesh, *, tile: int, dtype: Any = jnp.bfloat16,
    scanned: bool = False,
) -> Mapping[str, Lower]:  # fmt: skip
    """Programs of the sampler by name, of `STAGES`; to be lowered under `mesh`.

    Args:
        config: the networks.
        bucket: sizes of all maps.
        batch: pictures of all devices together.
        mesh: where everything lies.
        tile: side of stage A's tiles, in latent pixels.
        dtype: of the computation, but for stage A.
        scanned: the blocks of a level are a loop.
    """
    split, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def maps(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    def same(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    def split_tree(tree: Any) -> Any:
        return jax.tree.map(lambda x: maps(*x.shape, dtype=x.dtype), tree)

    c, b = config.stage_c, config.stage_b
    assert config.guidance is not None
    modules = StageC(c, dtype, scanned), Guidance(config.guidance, dtype)
    stage_b = StageB(b, dtype, scanned)
    weights = sampler_weights(config, mesh, dtype, scanned=scanned)
    stage_a = StageA(config.stage_a)

    def model(v: Any) -> StageCModel:
        return StageCModel(modules[0], v["stage_c"], modules[1], v["guidance"], dtype)

    def fresh(keys: Any, x: Any) -> Any:
        return lambda i: noise(keys, i + 1, x.shape[1:])

    def low(v, x, features, conditioning, keys, table, capture, first, last):
        carried = two_branch.Carried(features)
        return two_branch.lr_steps(
            model(v), begin(x), carried, conditioning, table, capture, first, last, fresh(keys, x)
        )

    def prepare(v, features):
        return model(v).prepare(features, bucket.hr)

    def high(v, x, conditioning, prepared, scale, keys, table, first, last):
        return two_branch.hr_steps(
            model(v), begin(x), conditioning, prepared, scale, table, first, last, fresh(keys, x)
        )

    def refine(v, x, conditioning, keys, table, first, last):
        def denoise(x: Any, r: Any, i: Any, carry: Any) -> tuple[Any, Any]:
            del i
            return stage_b.apply(v["stage_b"], x.astype(dtype), r, conditioning), carry

        return run_steps(denoise, begin(x), (), table, first, last, fresh(keys, x))[0]

    def decode(v, z):
        return stage_a.apply(v["stage_a"], z, method="decode")

    def condition_b(v, pooled, effnet):
        return stage_b.apply(v["stage_b"], pooled, effnet, bucket.stage_b, method="condition")

    def lowered(function: Any, *args: Any) -> Lower:
        return lambda: jax.jit(function).lower(*args)

    def table(settings: Any) -> Any:
        return jax.tree.map(lambda v: same(*v.shape), make_table(settings))

    prompts = Prompts(
        maps(2 * batch, config.clip_text.positions, c.c_clip_text, dtype=dtype),
        maps(2 * batch, c.c_clip_text_pooled, dtype=dtype),
        maps(2 * batch, c.c_clip_img, dtype=dtype),
    )
    number, keys = same(dtype=jnp.int32), same(batch, 2, dtype=jnp.uint32)
    x_lr, x_hr = maps(batch, *bucket.lr, c.c_latent), maps(batch, *bucket.hr, c.c_latent)
    conditioning = split_tree(jax.eval_shape(lambda v, p: model(v).condition(p), weights, prompts))
    features = split_tree(jax.eval_shape(lambda v, x: two_branch.empty_features(model(v), x), weights, x_lr))
    prepared = split_tree(jax.eval_shape(prepare, weights, features))
    effnet = maps(2 * batch, *bucket.hr, b.c_effnet, dtype=dtype)
    condition = split_tree(jax.eval_shape(condition_b, weights, prompts.pooled, effnet))
    scale = ScaleInputs(same(), same())
    table_c, table_b = table(config.sampling_c), table(config.sampling_b)
    window = [min(side, tile + 2 * halo_for(config.stage_a)) for side in bucket.stage_b]
    return {
        "low": lowered(low, weights, x_lr, features, conditioning, keys, table_c, number, number, number),
        "prepare": lowered(prepare, weights, features),
        "high": lowered(high, weights, x_hr, conditioning, prepared, scale, keys, table_c, number, number),
        "b": lowered(
            refine,
            weights,
            maps(batch, *bucket.stage_b, b.c_latent),
            condition,
            keys,
            table_b,
            number,
            number,
        ),
        "a": lowered(decode, weights, maps(batch, *window, config.stage_a.c_latent)),
    }
