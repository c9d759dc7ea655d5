"""Stage C, twice: the LR pass plans the picture, and the HR pass draws it under the LR pass's guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax import sizes
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import clean, guidance_step, initial_noise, steps_from
from ultrapixel_jax.diffusion.two_branch import (
    Control,
    Features,
    Known,
    Prompts,
    ScaleInputs,
    StageCModel,
    Steering,
)
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import Conditioning, StageC
from ultrapixel_jax.sampling.stages.base import HR, LR, LoopInputs, Setup, Stage, Watch, in_steps
from ultrapixel_jax.sizes import Bucket


class Maps(NamedTuple):
    """One ControlNet's maps for a pass, of the images of a batch."""

    maps: dict[int, Float[Array, "b h w c"]]
    """By ResBlock of stage C, at the size of the pass's latent."""
    strength: Float[np.ndarray, " b"]
    """What they are multiplied by."""
    start: Float[np.ndarray, " b"]
    """Share of the steps from which they count."""
    until: Float[np.ndarray, " b"]
    """Share of the steps up to which they count."""

    def in_steps(self, steps: int) -> Control:
        """For a pass of so many steps: step i counts where start ≤ i/steps < until."""
        first, stop = (
            np.ceil(np.round(share.astype(np.float64) * steps, 6)) for share in (self.start, self.until)
        )
        steps_of = (jnp.asarray(v, jnp.int32) for v in (first, stop))
        return Control(self.maps, jnp.asarray(self.strength), *steps_of)


class Given(NamedTuple):
    """What a pass is given beside the text; by default nothing."""

    controls: tuple[Maps, ...] = ()
    start: Float[Array, "b h w c"] | None = None
    """The latent that it starts from."""
    strength: float = 1.0
    """The t at which it does; 1 is noise alone."""
    known: Float[Array, "b h w c"] | None = None
    """The latent that stays but for where it is painted over."""
    mask: Float[np.ndarray, "b h w 1"] | None = None
    """1 where it is."""


NOTHING = Given()


class Begun(NamedTuple):
    """A pass before its first step."""

    x: Float[Array, "b h w c"]
    inputs: LoopInputs
    steps: int
    steering: Steering


class LowPass(NamedTuple):
    """What the LR pass leaves for the HR pass."""

    conditioning: Conditioning
    """Keys and values of the text, conditional and unconditional halves."""
    latent: Float[Array, "b h w c"] | None
    """Its latent; None where both passes run side by side, and without guidance."""
    guidance: Features
    """Its features at the HR size, by place; empty where both passes run side by side or one alone."""
    begun: Begun | None = None
    """Where both passes run side by side, what this one starts from."""


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
            v: Any, x: Any, features: Any, conditioning: Any, steering: Any, inputs: LoopInputs, capture: Any,
            i: Any, j: Any,
        ) -> Any:  # fmt: skip
            return two_branch.lr_steps(
                model(v), x, features, conditioning, inputs.table, capture, i, j, inputs.fresh(x), steering
            )

        def prepare(v: Any, features: Any, size: sizes.HW) -> Any:
            return model(v).prepare(features, size)

        def high(
            v: Any, x: Any, conditioning: Any, prepared: Any, steering: Any, scale: Any, inputs: LoopInputs,
            i: Any, j: Any, *, unconditional: bool,
        ) -> Any:  # fmt: skip
            return two_branch.hr_steps(
                model(v), x, conditioning, prepared, scale, inputs.table, i, j, inputs.fresh(x), steering,
                unconditional=unconditional,
            )  # fmt: skip

        def both(
            v: Any, x_lr: Any, x_hr: Any, conditioning: Any, steering: Any, scale: Any, inputs_lr: LoopInputs,
            inputs: LoopInputs, i: Any, j: Any,
        ) -> Any:  # fmt: skip
            return two_branch.synchronized_steps(
                model(v), x_lr, x_hr, conditioning, scale, inputs.table, i, j, inputs_lr.fresh(x_lr),
                inputs.fresh(x_hr), *steering,
            )  # fmt: skip

        def estimate(x: Any, after: Any, inputs: LoopInputs, i: Any) -> Any:
            return clean(x, after, inputs.table, i, inputs.fresh(x)(i))

        def noised(noise: Any, latent: Any, a: Any, b: Any) -> Any:
            return a * latent + b * noise

        def kept(x: Any, known: Any) -> Any:
            return known.kept(x)

        self._start = setup.program("start", initial_noise, batched=[0], static=(1,))
        self._condition = setup.program("condition_c", condition, batched=[1])
        self._empty = setup.program("empty", empty, batched=[1])
        self._noised = setup.program("noised", noised, batched=[0, 1])
        self._kept = setup.program("kept", kept, batched=[0, 1])
        self._low = setup.program("lr", low, batched=[1, 2, 3, 4])
        self._prepare = setup.program("prepare", prepare, batched=[1], static=(2,))
        self._high = setup.program("hr", partial(high, unconditional=True), batched=[1, 2, 3, 4])
        self._high_conditional = setup.program(
            "hr_conditional", partial(high, unconditional=False), batched=[1, 2, 3, 4]
        )
        self._both = setup.program("both", both, batched=[1, 2, 3, 4])
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
        given: Given = NOTHING,
    ) -> LowPass:
        """The LR pass, if there is one, up to its guidance upsampled to the HR size."""
        conditioning = self._condition(self.variables, prompts)
        if self._config is None:
            return LowPass(conditioning, None, {})
        begun = self._begun(LR, bucket.lr, seeds, settings, given)
        if self.synchronized:
            return LowPass(conditioning, None, {}, begun)
        inputs, steering = begun.inputs, begun.steering
        capture = guidance_step(settings.steps, float(self._config.timestep), given.strength)
        x, features = in_steps(
            lambda s, i, j: self._low(self.variables, *s, conditioning, steering, inputs, capture, i, j),
            (begun.x, self._empty(self.variables, begun.x)),
            begun.steps,
            watch,
            lambda s, t, i: self._clean(s[0], t[0], begun, i),
        )
        x = self._finished(x, begun)
        return LowPass(conditioning, x, self._prepare(self.variables, features, bucket.hr))

    def high(
        self,
        plan: LowPass,
        bucket: Bucket,
        seeds: Sequence[int],
        settings: DiffusionConfig,
        watch: Watch | None = None,
        given: Given = NOTHING,
    ) -> StageCLatents:
        """The HR pass under the guidance of `plan`; where they run side by side, both."""
        begun, conditioning, scale = (
            self._begun(HR, bucket.hr, seeds, settings, given), plan.conditioning, self._scale(bucket)
        )  # fmt: skip
        inputs, steering = begun.inputs, begun.steering
        if plan.begun is not None:
            other = plan.begun
            both = (other.steering, steering)
            low, x = in_steps(
                lambda s, i, j: self._both(
                    self.variables, *s, conditioning, both, scale, other.inputs, inputs, i, j
                ),
                (other.x, begun.x),
                begun.steps,
                watch,
                lambda s, t, i: self._clean(s[1], t[1], begun, i),
            )
            return StageCLatents(self._finished(low, other), self._finished(x, begun))
        run = self._high
        if plan.guidance and settings.effective_cfg_hr == 1:
            run, conditioning = self._high_conditional, jax.tree.map(lambda y: y[: len(seeds)], conditioning)
        x = in_steps(
            lambda s, i, j: run(
                self.variables, s, conditioning, plan.guidance, steering, scale, inputs, i, j
            ),
            begun.x,
            begun.steps,
            watch,
            lambda s, t, i: self._clean(s, t, begun, i),
        )
        return StageCLatents(plan.latent, self._finished(x, begun))

    def _begun(
        self, stream: int, size: sizes.HW, seeds: Sequence[int], settings: DiffusionConfig, given: Given
    ) -> Begun:
        """A pass of latents of `size` before its first step."""
        steps = steps_from(settings.steps, given.strength)
        inputs = LoopInputs.of(seeds, stream, settings, given.strength)
        x = noise = self._start(inputs.keys, (*size, self._channels))
        if given.start is not None and given.strength < 1:
            x = self._noised(noise, given.start, inputs.table.a[0], inputs.table.b[0])
        known = None if given.known is None else Known(given.known, given.mask, noise)  # pyright: ignore
        return Begun(x, inputs, steps, Steering(tuple(c.in_steps(steps) for c in given.controls), known))

    def _finished(self, x: Any, begun: Begun) -> Any:
        """The latent after the last step, what is known of it as it was."""
        known = begun.steering.known
        return x if known is None else self._kept(x, known)

    def _clean(self, before: Any, after: Any, begun: Begun, i: int) -> Any:
        """The clean latent that step `i` was heading for; before the first step, what it starts from."""
        return after if i < 0 else self._finished(self._estimate(before, after, begun.inputs, i), begun)

    def _scale(self, bucket: Bucket) -> ScaleInputs:
        """What the guidance networks must know of the HR size."""
        if self._config is None:
            return ScaleInputs(np.float32(1), np.float32(0))
        weight = sizes.up_guide_weight(*bucket.hr, self._config.up_guide_weights)
        return ScaleInputs(sizes.scale(*bucket.hr), np.float32(weight))
