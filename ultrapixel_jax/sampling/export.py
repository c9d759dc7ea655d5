"""The two-branch sampler as one portable artefact for all sizes (`jax.export`, symbolic sizes).

Height and width of both latents stay symbols, so one file serves every bucket; a call still compiles
once per concrete size. Weights are arguments, not part of the artefact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import Table, initial_noise, make_table, noise
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models import components
from ultrapixel_jax.models.guidance import POSITIONS, Guidance
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.target import traced_for

for _kind in (Prompts, ScaleInputs, Table):  # a program that reads an artefact imports this module too
    jax_export.register_namedtuple_serialization(_kind, serialized_name=f"ultrapixel_jax.{_kind.__name__}")


def export_sampler(
    config: CascadeConfig,
    batch: int = 1,
    dtype: Any = jnp.float32,
    platforms: Sequence[str] | None = None,
) -> jax_export.Exported:
    """Export both stage C passes with symbolic latent sizes `h`×`w` (LR) and `H`×`W` (HR).

    For one of `platforms` it has that platform's kernels, whatever the process runs on; for several, the
    plain form that all of them run. None is the process's own.

    The artefact's arguments:

    - variables of stage C, and of the guidance networks
    - `Prompts` of `2·batch` (conditional, unconditional)
    - the keys of both passes, (2, batch, 2) uint32, from `sampler.image_keys`
    - two arrays whose shapes are the LR and HR latents', (batch, h, w, 16) float32; their values are
      not used
    - `ScaleInputs`, `Table`, number of steps (int32), step that gives the guidance (int32)

    It returns the LR and HR latents. `exported.serialize()` writes it, `jax.export.deserialize` reads
    it, `exported.call` runs it.
    """
    stage_c = StageC(config.stage_c, dtype)
    guidance = None if config.guidance is None else Guidance(config.guidance, dtype)

    def sample(
        variables: Any, guidance_variables: Any, prompts: Prompts, keys: Any, lr: Any, hr: Any,
        scale: ScaleInputs, table: Table, steps: Any, capture: Any,
    ) -> Any:  # fmt: skip
        model = StageCModel(stage_c, variables, guidance, guidance_variables, dtype)

        def start(stream: int, like: Any) -> tuple[Any, Any]:
            shape = like.shape[1:]
            return initial_noise(keys[stream], shape), lambda i: noise(keys[stream], i + 1, shape)

        (x_lr, fresh_lr), (x_hr, fresh_hr) = start(0, lr), start(1, hr)
        return two_branch.sample(model, prompts, x_lr, x_hr, scale, table, steps, capture, fresh_lr, fresh_hr)

    c = config.stage_c
    # An LR map has at most as many pixels as there are position embeddings.
    h, w, H, W = jax_export.symbolic_shape(
        "h, w, H, W", constraints=("h >= 1", "w >= 1", "H >= 1", "W >= 1", f"h*w <= {POSITIONS}")
    )

    def spec(*shape: Any, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    scalar = spec(dtype=jnp.int32)
    args = (
        components.abstract("stage_c", c, dtype),
        None if config.guidance is None else components.abstract("guidance", config.guidance, dtype),
        Prompts(
            spec(2 * batch, config.clip_text.positions, c.c_clip_text),
            spec(2 * batch, c.c_clip_text_pooled),
            spec(2 * batch, c.c_clip_img),
        ),
        spec(2, batch, 2, dtype=jnp.uint32),
        spec(batch, h, w, c.c_latent),
        spec(batch, H, W, c.c_latent),
        ScaleInputs(spec(), spec()),
        jax.tree.map(lambda v: spec(*v.shape), make_table(config.sampling_c)),
        scalar,
        scalar,
    )
    one = list(platforms or ())
    with traced_for(one[0]) if len(one) == 1 else contextlib.nullcontext():
        return jax_export.export(jax.jit(sample), platforms=platforms)(*args)
