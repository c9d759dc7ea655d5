"""Stage B: from stage C's latent to stage A's, which is up to ten times longer on each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion.sampler import initial_noise, run_steps
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.sampling.stages.base import STAGE_B, LoopInputs, Setup, Stage, Watch, in_steps
from ultrapixel_jax.sizes import HW


class StageBSampler(Stage):
    """Stage B and its pass."""

    networks = ("stage_b",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        self._channels = config.stage_b.c_latent
        compute, stage_b = setup.dtype, StageB(config.stage_b, setup.dtype)

        def condition(v: Any, pooled: Any, latent: Any, size: HW) -> Any:
            effnet = jnp.concatenate([latent, jnp.zeros_like(latent)]).astype(compute)
            pooled = pooled.astype(compute)
            return stage_b.apply(v["stage_b"], pooled, effnet, size, method="condition")

        def steps(v: Any, x: Any, conditioning: Any, inputs: LoopInputs, first: Any, last: Any) -> Any:
            def denoise(x: Any, r: Any, i: Any, carry: Any) -> tuple[Any, Any]:
                del i
                return stage_b.apply(v["stage_b"], x.astype(compute), r, conditioning), carry

            return run_steps(denoise, x, (), inputs.table, first, last, inputs.fresh(x))[0]

        self._start = setup.program("start", initial_noise, batched=[0], static=(1,))
        self._condition = setup.program("condition_b", condition, batched=[1, 2], static=(3,), wide_maps=True)
        self._steps = setup.program("b", steps, batched=[1, 2], wide_maps=True)

    def __call__(
        self,
        pooled: Float[Array, "b2 p"],
        latent: Float[Array, "b h w c"],
        size: HW,
        seeds: Sequence[int],
        settings: DiffusionConfig,
        watch: Watch | None = None,
    ) -> Float[Array, "b h4 w4 c4"]:
        """Stage A's latent of `size`.

        Args:
            pooled: of the text, conditional and unconditional halves.
            latent: stage C's.
            size: of the result; even.
            seeds: one for each image.
            settings: of sampling.
            watch: told of the steps; what it is shown stays stage C's latent.
        """
        inputs = LoopInputs.of(seeds, STAGE_B, settings)
        conditioning = self._condition(self.variables, pooled, latent, size)
        return in_steps(
            lambda x, i, j: self._steps(self.variables, x, conditioning, inputs, i, j),
            self._start(inputs.keys, (*size, self._channels)),
            settings.steps,
            watch,
            lambda *_: latent,
        )
