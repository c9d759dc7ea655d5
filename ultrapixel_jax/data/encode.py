"""The frozen encoders that training needs: images to latents, captions to text states, images to vectors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import consistent
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.models import components
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.clip_vision import preprocess

NAMES = ("effnet_encoder", "clip_text", "clip_vision")
"""The encoders."""
OPTIONAL = ("clip_text", "clip_vision")
"""Those that a cascade may do without; zeros take the place of what they would give."""


class Encoders:
    """The encoders with their weights, spread over all local devices by rows of a batch."""

    def __init__(
        self,
        configs: dict[str, Any],
        variables: dict[str, Any],
        tokenizer: Tokenizer,
        dtype: Any = jnp.float32,
    ) -> None:
        """Encoders of `configs` by component, computing in `dtype`; those without `variables` give zeros."""
        self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
        self._variables = jax.device_put(variables, NamedSharding(self._mesh, PartitionSpec()))
        self._tokenizer, self._dtype = tokenizer, jnp.dtype(dtype)
        self._configs = configs
        modules = {
            name: components.build(name, configs[name], dtype) for name in ("effnet_encoder", "clip_vision")
        }
        text = ClipText(configs["clip_text"], param_dtype=self._dtype, dtype=self._dtype)
        self._latents = jax.jit(
            lambda v, x: modules["effnet_encoder"].apply(v, (x.astype(jnp.float32) / 255).astype(self._dtype))
        )
        self._text = jax.jit(text.apply)
        self._vectors = jax.jit(lambda v, x: modules["clip_vision"].apply(v, x.astype(self._dtype)))

    def latents(self, images: UInt8[np.ndarray, "b hp wp 3"]) -> Float32[np.ndarray, "b h w c"]:
        """EffNet latents, 32:1."""
        return self._run(self._latents, "effnet_encoder", images)

    def text(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "b n c"], Float32[np.ndarray, "b p"]]:
        """Text states and pooled vector of each caption; one state of zeros without a text encoder."""
        config = self._configs["clip_text"]
        if "clip_text" not in self._variables:
            states = np.zeros((len(captions), 1, config.width), np.float32)
            return states, np.zeros((len(captions), config.projection), np.float32)
        return self._run(self._text, "clip_text", *self._tokenizer(captions))

    def image_vectors(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "b p"]:
        """CLIP image vectors."""
        config = self._configs["clip_vision"]
        if "clip_vision" not in self._variables:
            return np.zeros((len(images), config.projection), np.float32)
        return self._run(self._vectors, "clip_vision", preprocess(images, config.image_size))

    def _run(self, function: Any, name: str, *inputs: np.ndarray) -> Any:
        rows = len(inputs[0])
        even = rows % self._mesh.size == 0  # else every device computes all
        sharding = NamedSharding(self._mesh, PartitionSpec("data") if even else PartitionSpec())
        out = function(self._variables[name], *(jax.device_put(x, sharding) for x in inputs))
        return jax.tree.map(functools.partial(np.asarray, dtype=np.float32), out)


def load_encoders(sources: Sources, dtype: str = "float32", without: Sequence[str] = ()) -> Encoders:
    """The encoders of converted checkpoints or training runs, but for those in `without`.

    Raises:
        UserError: one is missing, or its files are damaged.
    """
    wanted = [name for name in NAMES if name not in without]
    sources.require(wanted, "caching", {name: f"--without {name}" for name in OPTIONAL})
    base = sources.config or CascadeConfig()
    # Networks that are missing give zeros, as wide as the sources' stage C takes them.
    found = {name: entry.config for name, entry in sources.entries.items() if name not in without}
    fitting = consistent(found, base)
    configs = {name: fitting.get(name, getattr(base, name)) for name in NAMES}
    variables = {name: sources.load(name, configs[name], dtype=jnp.dtype(dtype)) for name in wanted}
    tokenizer = Tokenizer(sources.tokenizer, configs["clip_text"].positions)
    return Encoders(configs, variables, tokenizer, jnp.dtype(dtype))
