"""The parts of a cascade that have weights: how each is built and initialised.

One place for what conversion, restoring and training need alike: a component's configuration, its
module, and its variables, as shapes (`abstract`) or freshly made (`initialise`).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ultrapixel_jax import config as cfg
from ultrapixel_jax.models import lora, random_keys, scan
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.clip_vision import ClipVision
from ultrapixel_jax.models.controlnet import ControlNet
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import PLACES, StageC

Variables = dict[str, Any]

MODULES: Mapping[str, Callable[..., nn.Module]] = {
    "clip_text": ClipText,
    "clip_vision": ClipVision,
    "controlnet": ControlNet,
    "effnet_encoder": EffnetEncoder,
    "guidance": Guidance,
    "previewer": Previewer,
    "stage_a": StageA,
    "stage_b": StageB,
    "stage_c": StageC,
}
CONFIGS: Mapping[str, type] = {
    "clip_text": cfg.ClipTextConfig,
    "clip_vision": cfg.ClipVisionConfig,
    "controlnet": cfg.ControlNetConfig,
    "effnet_encoder": cfg.EffnetEncoderConfig,
    "guidance": cfg.GuidanceConfig,
    "lora": cfg.LoraConfig,
    "previewer": cfg.PreviewerConfig,
    "stage_a": cfg.StageAConfig,
    "stage_b": cfg.StageBConfig,
    "stage_c": cfg.StageCConfig,
}


def kind_of(component: str) -> str | None:
    """Which kind of network a checkpoint's component is, None of none that is known: of ControlNets there
    may be several, such as `controlnet_canny`.
    """
    kind = "controlnet" if component.startswith("controlnet_") else component
    return kind if kind in CONFIGS else None


def entry_name(component: str, config: Any) -> str:
    """Name of a network in a checkpoint directory: a ControlNet's has its kind, as there may be several."""
    return f"{component}_{config.kind}" if component == "controlnet" else component


def key_for(seed: int, *purpose: str) -> jax.Array:
    """A random key of a run's `seed`, another for each purpose."""
    return jax.random.fold_in(random_keys.of_seed(seed), zlib.crc32("/".join(purpose).encode()))


def build(name: str, config: Any, dtype: Any = jnp.float32) -> nn.Module:
    """The module of component `name`, with parameters of `dtype`."""
    return MODULES[name](config, param_dtype=dtype)


def initialise(name: str, config: Any, key: jax.Array, dtype: Any = jnp.float32) -> Variables:
    """Fresh variables, by the initialisation that training from scratch starts from."""
    if name == "lora":
        return lora.init(key, config, dtype)
    module = build(name, config, dtype)
    inputs = _inputs(name, config)
    if name == "stage_c":

        def run(m: StageC, text: Any, pooled: Any, image: Any, x: Any, r: Any) -> Any:
            return m(x, r, m.condition(text, pooled, image))

        return dict(nn.init(run, module)(key, *inputs))
    if name == "stage_b":

        def run_b(m: StageB, pooled: Any, effnet: Any, x: Any, r: Any) -> Any:
            return m(x, r, m.condition(pooled, effnet, x.shape[1:3]))

        return dict(nn.init(run_b, module)(key, *inputs))
    return dict(module.init(key, *inputs))


def abstract(name: str, config: Any, dtype: Any = jnp.float32) -> Variables:
    """Shapes and dtypes of the variables, without making them."""
    return jax.tree.map(lambda struct: struct, _traced(name, config, jnp.dtype(dtype)))  # the caller's own


@functools.lru_cache(128)
def _traced(name: str, config: Any, dtype: Any) -> Variables:
    """What `abstract` gives. Tracing takes up to seconds, and conversion, sources and checkpoints each ask.

    Of a level's equal blocks, two are traced, which takes a fifth of the time.
    """
    levels = name in ("stage_b", "stage_c")
    traced = scan.shortened(config) if levels else config
    made = jax.eval_shape(lambda: initialise(name, traced, random_keys.of_seed(0), dtype))
    return scan.lengthened(made, config) if levels else made


def parameter_count(variables: Mapping[str, Any]) -> int:
    """Number of values in all arrays that a released file counts as parameters."""
    kept = {k: v for k, v in variables.items() if k != "batch_stats"}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))


def _inputs(name: str, c: Any) -> tuple[Any, ...]:
    """Smallest inputs that touch every parameter."""

    def z(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    if name == "clip_text":
        return jnp.zeros((1, c.positions), jnp.int32), jnp.ones((1, c.positions), jnp.int32)
    if name == "clip_vision":
        return (z(1, c.image_size, c.image_size, 3),)
    if name == "controlnet":
        return (z(1, 64, 64, c.in_channels),)
    if name == "effnet_encoder":
        return (z(1, 64, 64, 3),)
    if name == "guidance":
        features = {place: z(1, 4, 4, c.channels) for place in PLACES}
        return features, z(1, 6, 6, c.channels)
    if name == "previewer":
        return (z(1, 4, 4, c.c_latent),)
    if name == "stage_a":
        return (z(1, 32, 32, 3),)
    if name == "stage_b":
        side = c.patch_size * 2 ** len(c.levels)
        return z(1, c.c_clip), z(1, 4, 4, c.c_effnet), z(1, side, side, c.c_latent), z(1)
    side = 4 * c.patch_size
    return (
        z(1, 3, c.c_clip_text), z(1, c.c_clip_text_pooled), z(1, c.c_clip_img),
        z(1, side, side, c.c_latent), z(1),
    )  # fmt: skip
