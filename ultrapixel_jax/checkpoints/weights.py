"""What sampling loads: configuration and variables, from a checkpoint, the demo, or made from names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultrapixel_jax import flops
from ultrapixel_jax.checkpoints import loras, named_weights
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath
from ultrapixel_jax.models import components, lora
from ultrapixel_jax.models.int8 import NETWORKS, quantised
from ultrapixel_jax.models.lora import NewToken
from ultrapixel_jax.sharding import make_mesh, parameter_sharding

DEMO = Path(__file__).parent.parent / "assets" / "demo"
"""The checkpoint that comes with the package: the demo cascade (docs/demo.md)."""
FLOAT32_ALWAYS = ("stage_a", "previewer")
"""Components that are kept in float32: bfloat16 has fewer values in [0, 1] than a byte."""
TOKENS = "without effect until a --token '[name]=PATTERN' names them"

SMALL = 100_000_000
"""Parameters of stage C below which a model is small."""


@dataclasses.dataclass
class Weights:
    """A loaded model."""

    config: CascadeConfig
    identity: str
    """Tells two models apart; stored in pictures."""
    tokenizer: Path
    """Directory with the tokenizer's files."""
    variables: dict[str, Any]
    """By component."""
    dtype: str = "float32"
    """Of the networks, but for `FLOAT32_ALWAYS`."""
    unused: tuple[str, ...] = ()
    """What the sources hold beside them that changes no picture, a line each."""
    tokens: tuple[NewToken, ...] = ()
    """New words that the sources bring."""


def load_weights(
    checkpoint: AnyPath | None,
    config: CascadeConfig | None,
    *,
    dtype: str | None,
    mesh: jax.sharding.Mesh | None,
    preview: bool,
    ema: bool = True,
    int8: bool = False,
    on_host: bool = False,
) -> Weights:
    """Load what sampling needs, straight onto the devices.

    Args:
        checkpoint: directory written by conversion, or that of a training run; None for the demo, or
            with a `config` for weights made from the names of its parameters.
        config: what to use instead of the checkpoint's own configuration, where weights allow.
        dtype: of the weights, but for `FLOAT32_ALWAYS`; None is `natural_dtype`'s.
        mesh: devices to spread over.
        preview: the previewer instead of stages B and A.
        ema: of a training run, the moving average of its parameters.
        int8: kernels of `models.int8.NETWORKS` in eight bits.
        on_host: leave them in the host's memory.

    Raises:
        UserError: a component is missing, damaged, or of another size than `config` says.
    """
    if int8 or on_host:  # the device need not have room for all of it
        near = make_mesh({}, [_host()])
        with jax.default_device(_host()):
            whole = load_weights(checkpoint, config, dtype=dtype, mesh=near, preview=preview, ema=ema)
            variables = {
                name: quantised(values) if int8 and name in NETWORKS else values
                for name, values in whole.variables.items()
            }
        variables = (
            jax.device_get(variables) if on_host else jax.device_put(variables, jax.local_devices()[0])
        )
        return dataclasses.replace(whole, variables=variables)
    wanted = ["clip_text", "stage_c", "guidance", *(["previewer"] if preview else ["stage_b", "stage_a"])]
    if checkpoint is None and config is not None:
        return untrained(config, wanted, dtype, mesh)
    checkpoint = checkpoint or DEMO
    sources = Sources([checkpoint], ema=ema, traced=True)
    return from_sources(sources, config, wanted, what=f"sampling from {checkpoint}", dtype=dtype, mesh=mesh)


def _host() -> Any:
    """The processor as a device of jax's.

    Raises:
        UserError: jax was told to do without.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "weights are prepared on the host: add cpu to JAX_PLATFORMS, or leave it out"
        ) from error


def from_sources(
    sources: Sources,
    config: CascadeConfig | None,
    wanted: Sequence[str],
    *,
    what: str,
    dtype: str | None,
    mesh: jax.sharding.Mesh | None,
) -> Weights:
    """The networks `wanted` of `sources`; `guidance` may be missing, and LoRA is added where there is one."""
    cascade = _configuration(sources, config, wanted, what)
    dtype = dtype or natural_dtype(cascade)
    place = None if mesh is None else lambda path, struct: parameter_sharding(path, struct.shape, mesh)
    variables = {
        name: sources.load(name, getattr(cascade, name), dtype=_dtype(name, dtype), place=place)
        for name in wanted
        if getattr(cascade, name) is not None
    }
    lines = [line for name, entry in sources.entries.items() if (line := not_used(name, entry.origin))]
    tokens: tuple[NewToken, ...] = ()
    if "stage_c" in variables and "lora" in sources.entries:
        sources.check("lora", cascade.lora)
        own = loras.of_sources(sources, cascade.clip_text.vocab_size)
        if why := lora.misfit(own, cascade.stage_c, cascade.clip_text):
            raise UserError(f"the LoRA in {own.origin} does not fit the model: {why}; convert it again")
        for name in own.changes.keys() & variables.keys():
            variables[name] = lora.merge(variables[name], [(own.changes[name], 1.0)])
        tokens = own.tokens
        if any(token.name is None for token in tokens):
            lines.append(f"the new text tokens of {own.origin}: {TOKENS}")
    return Weights(cascade, sources.identity, sources.tokenizer, variables, dtype, tuple(lines), tokens)


def not_used(component: str, origin: str) -> str | None:
    """What to say of a checkpoint's component that no picture depends on; None of all others."""
    known = components.kind_of(component)
    return None if known else f"{component} of {origin} without effect: no network here is made of it"


def load_network(
    name: str,
    checkpoint: AnyPath | None,
    config: CascadeConfig | None,
    *,
    mesh: jax.sharding.Mesh | None,
    ema: bool = True,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Variables of the network `name` alone, by component, as `load_weights` finds them."""
    if checkpoint is None and config is not None:
        return untrained(config, [name], dtype, mesh).variables
    sources = Sources([checkpoint or DEMO], ema=ema, traced=True)
    what = {"clip_vision": "an image prompt", "effnet_encoder": "drawing from a picture"}.get(name, name)
    return from_sources(sources, config, [name], what=what, dtype=dtype, mesh=mesh).variables


def natural_dtype(config: CascadeConfig) -> str:
    """What a model of this size computes in: bfloat16, but for small ones, where it gains nothing."""
    c = config.stage_c
    # Every weight of a one-pixel map is multiplied once, but for those of repeated blocks.
    parameters = flops.stage_c_flops(c, (c.patch_size, c.patch_size), text_tokens=0) // 2
    return "float32" if parameters < SMALL else "bfloat16"


def _configuration(
    sources: Sources, given: CascadeConfig | None, wanted: Sequence[str], what: str
) -> CascadeConfig:
    """The sources' configuration, or the given one."""
    found = {name: entry.config for name, entry in sources.entries.items() if name in components.CONFIGS}
    guided = "guidance" in found if given is None else given.guidance is not None
    sources.require([name for name in wanted if name != "guidance" or (given and guided)], what)
    if given is not None:
        return given
    base = sources.config or CascadeConfig()
    parts = {"guidance": found.get("guidance"), **consistent(found, base), **sources.sampling}
    return dataclasses.replace(base, **parts)


def consistent(found: Mapping[str, Any], base: CascadeConfig) -> dict[str, Any]:
    """Configurations of networks by name, with those of absent ones, from `base`, of the widths that fit."""
    c = found.get("stage_c", base.stage_c)
    fitting = {
        "stage_b": {"c_effnet": c.c_latent, "c_clip": c.c_clip_text_pooled},
        "clip_text": {"width": c.c_clip_text, "projection": c.c_clip_text_pooled},
        "clip_vision": {"projection": c.c_clip_img},
    }
    absent = {
        name: dataclasses.replace(getattr(base, name), **widths)
        for name, widths in fitting.items()
        if name not in found
    }
    return {**found, **absent}


def _dtype(name: str, dtype: str) -> Any:
    return jnp.float32 if name in FLOAT32_ALWAYS else jnp.dtype(dtype)


def untrained(
    config: CascadeConfig, wanted: Sequence[str], dtype: str | None, mesh: jax.sharding.Mesh | None
) -> Weights:
    """Weights made from the names of parameters: the same everywhere, and trained on nothing."""
    dtype = dtype or natural_dtype(config)
    variables = {}
    for name in wanted:
        if getattr(config, name) is None:
            continue

        def make(path: Any, struct: Any, name: str = name) -> jax.Array:
            keys = [str(k.key) for k in path]
            array = _named(f"{name}/{'/'.join(keys)}", struct.shape).astype(_dtype(name, dtype))
            if mesh is None:
                return jnp.asarray(array)
            return jax.device_put(array, parameter_sharding("/".join(keys), struct.shape, mesh))

        abstract = components.abstract(name, getattr(config, name))
        variables[name] = jax.tree_util.tree_map_with_path(make, abstract)
    return Weights(config, "untrained", BYTE_TOKENIZER, variables, dtype)


def _named(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """`named_weights.tensor` for a path of ours: its scale rule knows torch's order of axes and names."""
    key = path.replace("/", ".").replace(".scale", ".weight")
    if path.endswith("/var"):
        key = key.removesuffix("var") + "running_var"
    return named_weights.tensor(key, shape[::-1]).T
