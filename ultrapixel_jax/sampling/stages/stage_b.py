"""Stage B: from stage C's latent to stage A's, which is up to ten times longer on each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion.sampler import (
    Segment,
    as_arrays,
    begin,
    in_turn,
    initial_noise,
    run_steps,
    segments,
)
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.sampling.stages.base import (
    STAGE_B,
    LoopInputs,
    Setup,
    Stage,
    Variants,
    Watch,
    check_reuse,
    halves,
    in_segments,
    in_steps,
)
from ultrapixel_jax.sizes import HW


class StageBSampler(Stage):
    """Stage B and its pass."""

    networks = ("stage_b",)

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        self._channels = config.stage_b.c_latent
        compute, stage_b = setup.dtype, StageB(config.stage_b, setup.dtype, setup.scanned)

        def condition(v: Any, pooled: Any, latent: Any, size: HW) -> Any:
            effnet = jnp.concatenate([latent, jnp.zeros_like(latent)]).astype(compute)
            pooled = pooled.astype(compute)
            return stage_b.apply(v["stage_b"], pooled, effnet, size, method="condition")

        def steps(
            v: Any, state: Any, conditioning: Any, deep: Any, inputs: LoopInputs, first: Any, last: Any,
            *, unconditional: bool,
        ) -> Any:  # fmt: skip
            table = as_arrays(inputs.table)

            def network(x: Any, r: Any, conditioning: Any, deep: Any) -> Any:
                return stage_b.apply(
                    v["stage_b"], x.astype(compute), r, conditioning, deep=deep, method="step"
                )

            def denoise(x: Any, r: Any, i: Any, deep: Any) -> tuple[Any, Any]:
                def run(deep: Any) -> Any:
                    one = setup.cfg_in_turn and unconditional
                    given = (x, r, conditioning, deep)
                    return in_turn(network, *given) if one else network(*given)

                def whole(deep: Any) -> Any:
                    epsilon, inner = run(None)
                    return epsilon, None if deep is None else inner.astype(deep.dtype)

                return whole(deep) if deep is None else jax.lax.cond(table.anew[i] > 0, whole, run, deep)

            fresh = inputs.fresh(state.x)
            return run_steps(denoise, state, deep, table, first, last, fresh, unconditional=unconditional)

        def empty(x: Any, *, copies: int) -> Any:
            h, w, channels = config.stage_b.inner(x.shape[1], x.shape[2])
            return jnp.zeros((copies * x.shape[0], h, w, channels), compute)

        self._outer = config.stage_b.outer
        self._start = setup.program("start", initial_noise, batched=[0], static=(1,))
        self._condition = setup.program("condition_b", condition, batched=[1, 2], static=(3,), wide_maps=True)
        self._steps = Variants(partial(setup.program, batched=[1, 2, 3], wide_maps=True), "b", steps)
        self._empty = Variants(partial(setup.program, batched=[0]), "empty_b", empty)

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

        Raises:
            UserError: inner levels are to be reused, and it has none.
        """
        check_reuse("stage B", self._outer, settings)
        inputs = LoopInputs.of(seeds, STAGE_B, settings)
        runs = segments(settings)
        given = halves(self._condition(self.variables, pooled, latent, size), runs, len(seeds))

        def enter(segment: Segment, state: Any) -> Any:
            copies = 2 if segment.unconditional else 1
            return state[0], self._empty(copies=copies)(state[0].x) if settings.reuse > 1 else None

        def run(segment: Segment, state: Any, i: int, j: int) -> Any:
            both = segment.unconditional
            return self._steps(unconditional=both)(
                self.variables, state[0], given[both], state[1], inputs, i, j
            )

        return in_steps(
            in_segments(runs, run, enter),
            (begin(self._start(inputs.keys, (*size, self._channels))), None),
            settings.steps,
            watch,
            lambda *_: latent,
        )[0].x
