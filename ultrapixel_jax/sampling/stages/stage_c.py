"""Stage C, twice: the LR pass plans the picture, and the HR pass draws it under the LR pass's guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax import sizes
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import clean, guidance_step, initial_noise
from ultrapixel_jax.diffusion.two_branch import Features, Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import Conditioning, StageC
from ultrapixel_jax.sampling.stages.base import HR, LR, LoopInputs, Setup, Stage, Watch, in_steps
from ultrapixel_jax.sizes import Bucket


class LowPass(NamedTuple):
    """What the LR pass leaves for the HR pass."""

    conditioning: Conditioning
    """Keys and values of the text, conditional and unconditional halves."""
    latent: Float[Array, "b h w c"] | None
    """Its latent; noise where both passes run side by side, None without guidance."""
    guidance: Features
    """Its features at the HR size, by place; empty where both passes run side by side or one alone."""


class StageCLatents(NamedTuple):
    """What stage C draws."""

    stage_c_low: Float[Array, "b h w c"] | None
    """Of the LR pass; None without guidance."""
    stage_c: Float[Array, "b H W c"]
    """Of the HR pass: the one that is decoded."""


class TwoBranchSampler(Stage):
    """Stage C and the guidance networks, and both passes through them."""

    networks = ("stage_c", "guidance")

    def __init__(self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any]) -> None:
        super().__init__(variables)
        self._config, self._channels = config.guidance, config.stage_c.c_latent
        stage_c = StageC(config.stage_c, setup.dtype)
        guidance = None if config.guidance is None else Guidance(config.guidance, setup.dtype)

        def model(v: Any) -> StageCModel:
            return StageCModel(stage_c, v["stage_c"], guidance, v.get("guidance"), setup.dtype)

        def condition(v: Any, prompts: Prompts) -> Any:
            return model(v).condition(prompts)

        def empty(v: Any, x: Any) -> Any:
            return two_branch.empty_features(model(v), x)

        def low(
            v: Any, x: Any, features: Any, conditioning: Any, inputs: LoopInputs, capture: Any, i: Any, j: Any
        ) -> Any:
            fresh = inputs.fresh(x)
            return two_branch.lr_steps(
                model(v), x, features, conditioning, inputs.table, capture, i, j, fresh
            )

        def prepare(v: Any, features: Any, size: sizes.HW) -> Any:
            return model(v).prepare(features, size)

        def high(
            v: Any, x: Any, conditioning: Any, prepared: Any, scale: Any, inputs: LoopInputs, i: Any, j: Any,
            *, unconditional: bool,
        ) -> Any:  # fmt: skip
            return two_branch.hr_steps(
                model(v), x, conditioning, prepared, scale, inputs.table, i, j, inputs.fresh(x),
                unconditional=unconditional,
            )  # fmt: skip

        def both(
            v: Any, x_lr: Any, x_hr: Any, conditioning: Any, scale: Any, inputs_lr: LoopInputs,
            inputs: LoopInputs, i: Any, j: Any,
        ) -> Any:  # fmt: skip
            return two_branch.synchronized_steps(
                model(v), x_lr, x_hr, conditioning, scale, inputs.table, i, j, inputs_lr.fresh(x_lr),
                inputs.fresh(x_hr),
            )  # fmt: skip

        def estimate(x: Any, after: Any, inputs: LoopInputs, i: Any) -> Any:
            return clean(x, after, inputs.table, i, inputs.fresh(x)(i))

        self._start = setup.program("start", initial_noise, batched=[0], static=(1,))
        self._condition = setup.program("condition_c", condition, batched=[1])
        self._empty = setup.program("empty", empty, batched=[1])
        self._low = setup.program("lr", low, batched=[1, 2, 3])
        self._prepare = setup.program("prepare", prepare, batched=[1], static=(2,))
        self._high = setup.program("hr", partial(high, unconditional=True), batched=[1, 2, 3])
        self._high_conditional = setup.program(
            "hr_conditional", partial(high, unconditional=False), batched=[1, 2, 3]
        )
        self._both = setup.program("both", both, batched=[1, 2, 3])
        self._estimate = setup.program("estimate", estimate, batched=[0, 1])

    @property
    def synchronized(self) -> bool:
        """Whether both passes run side by side (paper, table 2)."""
        return self._config is not None and self._config.timestep == "synchronized"

    def low(
        self,
        prompts: Prompts,
        bucket: Bucket,
        seeds: Sequence[int],
        settings: DiffusionConfig,
        watch: Watch | None = None,
    ) -> LowPass:
        """The LR pass, if there is one, up to its guidance upsampled to the HR size."""
        conditioning = self._condition(self.variables, prompts)
        if self._config is None:
            return LowPass(conditioning, None, {})
        inputs = LoopInputs.of(seeds, LR, settings)
        x = self._start(inputs.keys, (*bucket.lr, self._channels))
        if self.synchronized:
            return LowPass(conditioning, x, {})
        capture = guidance_step(settings.steps, float(self._config.timestep))
        x, features = in_steps(
            lambda s, i, j: self._low(self.variables, *s, conditioning, inputs, capture, i, j),
            (x, self._empty(self.variables, x)),
            settings.steps,
            watch,
            lambda s, t, i: self._clean(s[0], t[0], inputs, i),
        )
        return LowPass(conditioning, x, self._prepare(self.variables, features, bucket.hr))

    def high(
        self,
        plan: LowPass,
        bucket: Bucket,
        seeds: Sequence[int],
        settings: DiffusionConfig,
        watch: Watch | None = None,
    ) -> StageCLatents:
        """The HR pass under the guidance of `plan`; where they run side by side, both."""
        inputs, conditioning = LoopInputs.of(seeds, HR, settings), plan.conditioning
        scale = self._scale(bucket)
        x = self._start(inputs.keys, (*bucket.hr, self._channels))
        if self.synchronized:
            inputs_lr = LoopInputs.of(seeds, LR, settings)
            low, x = in_steps(
                lambda s, i, j: self._both(self.variables, *s, conditioning, scale, inputs_lr, inputs, i, j),
                (plan.latent, x),
                settings.steps,
                watch,
                lambda s, t, i: self._clean(s[1], t[1], inputs, i),
            )
            return StageCLatents(low, x)
        run = self._high
        if plan.guidance and settings.effective_cfg_hr == 1:
            run, conditioning = self._high_conditional, jax.tree.map(lambda y: y[: len(seeds)], conditioning)
        x = in_steps(
            lambda s, i, j: run(self.variables, s, conditioning, plan.guidance, scale, inputs, i, j),
            x,
            settings.steps,
            watch,
            lambda s, t, i: self._clean(s, t, inputs, i),
        )
        return StageCLatents(plan.latent, x)

    def _clean(self, before: Any, after: Any, inputs: LoopInputs, i: int) -> Any:
        """The clean latent that step `i` was heading for; before the first step, the noise."""
        return after if i < 0 else self._estimate(before, after, inputs, i)

    def _scale(self, bucket: Bucket) -> ScaleInputs:
        """What the guidance networks must know of the HR size."""
        if self._config is None:
            return ScaleInputs(np.float32(1), np.float32(0))
        weight = sizes.up_guide_weight(*bucket.hr, self._config.up_guide_weights)
        return ScaleInputs(sizes.scale(*bucket.hr), np.float32(weight))
