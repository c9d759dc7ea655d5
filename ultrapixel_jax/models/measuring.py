"""Networks that measure pictures and make none: their names, sizes, modules and variables.

They lie in checkpoint directories of their own, as conversion writes them, beside no cascade's.
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
import numpy as np

from ultrapixel_jax.config import ClipConfig, ClipTextConfig, ClipVisionConfig, InceptionConfig
from ultrapixel_jax.models import random_keys
from ultrapixel_jax.models.clip import Clip
from ultrapixel_jax.models.inception import Inception

H14 = ClipConfig(
    ClipTextConfig(width=1024, layers=24, heads=16, mlp_width=4096, projection=1024),
    ClipVisionConfig(width=1280, layers=32, heads=16, mlp_width=5120, projection=1024),
    "gelu",
)
CLIPS: Mapping[str, ClipConfig] = {
    "clip_b32": ClipConfig(
        ClipTextConfig(width=512, layers=12, heads=8, mlp_width=2048, projection=512),
        ClipVisionConfig(patch_size=32, width=768, layers=12, heads=12, mlp_width=3072, projection=512),
    ),
    "clip_l14": ClipConfig(),
    "clip_h14": H14,
    "clip_bigg": ClipConfig(
        ClipTextConfig(),
        ClipVisionConfig(width=1664, layers=48, heads=16, mlp_width=8192, projection=1280),
        "gelu",
    ),
    "pickscore": H14,
}
"""By the name in a checkpoint: OpenAI's B/32 and L/14, OpenCLIP's H/14 and bigG, and PickScore's H/14."""
NETWORKS: Mapping[str, InceptionConfig | ClipConfig] = {"inception": InceptionConfig(), **CLIPS}
"""All of them, with the sizes of the files that people have."""
KINDS: Mapping[str, type] = {"inception": InceptionConfig, "clip": ClipConfig}


def kind_of(name: str) -> str | None:
    """`inception` or `clip`; None of any other component."""
    return "clip" if name in CLIPS else name if name in NETWORKS else None


def build(config: InceptionConfig | ClipConfig, dtype: Any = jnp.float32) -> Inception | Clip:
    """The module, with parameters of `dtype`."""
    if isinstance(config, InceptionConfig):
        return Inception(config, dtype)
    return Clip(config, dtype)


def initialise(config: InceptionConfig | ClipConfig, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """Random variables."""
    module: nn.Module = build(config, dtype)
    if isinstance(config, InceptionConfig):
        side = config.image_size
        return dict(module.init(key, jnp.zeros((1, side, side, 3), jnp.float32)))
    side, n = config.vision.image_size, config.text.positions
    ids = jnp.zeros((1, n), jnp.int32)
    return dict(
        module.init(key, jnp.zeros((1, side, side, 3), jnp.float32), ids, jnp.ones((1, n), jnp.int32))
    )


def random_inception(
    config: InceptionConfig, seed: int, place: Callable[[str, np.ndarray], Any] = lambda _, x: x
) -> Any:
    """Variables of an untrained Inception: the same for a seed on every device, drawn on the host.

    Kernels are normal with variance 2/fan-in, so that pictures pass through at about their own size.
    """

    def make(path: Any, struct: Any) -> Any:
        name = "/".join(part.key for part in path)
        if name.endswith("kernel"):
            rng = np.random.Generator(np.random.Philox(key=(seed << 32) + zlib.crc32(name.encode())))
            scale = math.sqrt(2 / math.prod(struct.shape[:-1]))
            values = rng.standard_normal(struct.shape, np.float32) * np.float32(scale)
        else:
            values = np.full(struct.shape, float(name.endswith(("scale", "var"))), np.float32)
        return place(name, values)

    return jax.tree_util.tree_map_with_path(make, abstract(config))


def abstract(config: InceptionConfig | ClipConfig, dtype: Any = jnp.float32) -> Any:
    """Shapes and dtypes of the variables, without making them."""
    return jax.tree.map(lambda struct: struct, _traced(config, jnp.dtype(dtype)))  # the caller's own


@functools.lru_cache(16)
def _traced(config: InceptionConfig | ClipConfig, dtype: Any) -> Any:
    """What `abstract` gives; tracing takes seconds."""
    return jax.eval_shape(lambda: initialise(config, random_keys.of_seed(0), dtype))
