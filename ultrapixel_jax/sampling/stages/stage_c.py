"""Stage C, twice: the LR pass plans the picture, and the HR pass draws it under the LR pass's guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ultrapixel_jax import sizes
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import (
    Segment,
    State,
    begin,
    capturing,
    guidance_step,
    initial_noise,
    segments,
    steps_from,
)
from ultrapixel_jax.diffusion.two_branch import (
    Carried,
    Control,
    Features,
    Known,
    Prompts,
    ScaleInputs,
    StageCModel,
    Steering,
)
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.stage_c import Conditioning, StageC
from ultrapixel_jax.sampling.stages.base import (
    HR,
    LR,
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


class Both(NamedTuple):
    """Consecutive steps of both passes side by side that run the same halves of the batch in each."""

    first: int
    stop: int
    """One past the last."""
    unconditional: tuple[bool, bool]
    """Of the LR and of the HR pass."""


def side_by_side(low: Sequence[Segment], high: Sequence[Segment]) -> list[Both]:
    """The segments of two passes of as many steps, cut where either changes."""
    pairs = ((max(a.first, b.first), min(a.stop, b.stop), a, b) for a in low for b in high)
    return [Both(i, j, (a.unconditional, b.unconditional)) for i, j, a, b in pairs if i < j]


class Begun(NamedTuple):
    """A pass before its first step."""

    state: State
    inputs: LoopInputs
    steps: int
    segments: tuple[Segment, ...]
    steering: Steering
    reuse: bool
    """Whether inner levels are kept from step to step."""


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
        self._outer = config.stage_c.outer
        stage_c = StageC(config.stage_c, setup.dtype, setup.scanned)
        guidance = None if config.guidance is None else Guidance(config.guidance, setup.dtype)

        def model(v: Any) -> StageCModel:
            own, other = v["stage_c"], v.get("guidance")
            return StageCModel(stage_c, own, guidance, other, setup.dtype, setup.cfg_in_turn)

        def condition(v: Any, prompts: Prompts) -> Any:
            return model(v).condition(prompts)

        def empty(v: Any, x: Any) -> Any:
            return two_branch.empty_features(model(v), x)

        def empty_deep(v: Any, x: Any, *, copies: int) -> Any:
            return two_branch.empty_deep(model(v), x, copies)

        def low(
            v: Any, state: Any, carried: Any, conditioning: Any, steering: Any, inputs: LoopInputs,
            capture: Any, i: Any, j: Any, *, unconditional: bool,
        ) -> Any:  # fmt: skip
            return two_branch.lr_steps(
                model(v), state, carried, conditioning, inputs.table, capture, i, j, inputs.fresh(state.x),
                steering, unconditional=unconditional,
            )  # fmt: skip

        def prepare(v: Any, features: Any, size: sizes.HW) -> Any:
            return model(v).prepare(features, size)

        def high(
            v: Any, state: Any, conditioning: Any, prepared: Any, steering: Any, deep: Any, scale: Any,
            inputs: LoopInputs, i: Any, j: Any, *, unconditional: bool,
        ) -> Any:  # fmt: skip
            return two_branch.hr_steps(
                model(v), state, conditioning, prepared, scale, inputs.table, i, j, inputs.fresh(state.x),
                steering, deep=deep, unconditional=unconditional,
            )  # fmt: skip

        def both(
            v: Any, lr: Any, hr: Any, conditioning: Any, steering: Any, scale: Any,
            inputs: tuple[LoopInputs, ...], i: Any, j: Any, *, unconditional: tuple[bool, bool],
        ) -> Any:  # fmt: skip
            tables, fresh = (inputs[0].table, inputs[1].table), (inputs[0].fresh(lr.x), inputs[1].fresh(hr.x))
            return two_branch.synchronized_steps(
                model(v), lr, hr, conditioning, scale, tables, i, j, *fresh, *steering,
                unconditional=unconditional,
            )  # fmt: skip

        def noised(noise: Any, latent: Any, a: Any, b: Any) -> Any:
            return a * latent + b * noise

        def kept(x: Any, known: Any) -> Any:
            return known.kept(x)

        self._start = setup.program("start", initial_noise, batched=[0], static=(1,))
        self._condition = setup.program("condition_c", condition, batched=[1])
        self._empty = setup.program("empty", empty, batched=[1])
        self._noised = setup.program("noised", noised, batched=[0, 1])
        self._kept = setup.program("kept", kept, batched=[0, 1])
        self._empty_deep = Variants(partial(setup.program, batched=[1]), "empty_deep", empty_deep)
        self._low = Variants(partial(setup.program, batched=[1, 2, 3, 4]), "lr", low)
        self._prepare = setup.program("prepare", prepare, batched=[1], static=(2,))
        self._high = Variants(partial(setup.program, batched=[1, 2, 3, 4, 5]), "hr", high)
        self._both = Variants(partial(setup.program, batched=[1, 2, 3, 4]), "both", both)

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
        capture = guidance_step(settings.steps, float(self._config.timestep), given.strength)
        inputs = begun.inputs._replace(table=capturing(begun.inputs.table, capture))
        of = halves(conditioning, begun.segments, len(seeds))

        def enter(segment: Segment, state: Any) -> Any:
            return state[0], Carried(state[1].features, self._deep(begun, segment))

        def run(segment: Segment, state: Any, i: int, j: int) -> Any:
            both = segment.unconditional
            program = self._low(unconditional=both)
            return program(self.variables, *state, of[both], begun.steering, inputs, capture, i, j)

        state, carried = in_steps(
            in_segments(begun.segments, run, enter),
            (begun.state, Carried(self._empty(self.variables, begun.state.x))),
            begun.steps,
            watch,
            lambda s, done: self._clean(s[0], begun, done),
        )
        x = self._finished(state.x, begun)
        return LowPass(conditioning, x, self._prepare(self.variables, carried.features, bucket.hr))

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
        own = settings if self._config is None else settings.of_hr
        begun, conditioning, scale = (
            self._begun(HR, bucket.hr, seeds, own, given), plan.conditioning, self._scale(bucket)
        )  # fmt: skip
        if plan.begun is not None:
            return self._side_by_side(plan.begun, begun, conditioning, scale, watch)
        of = halves(conditioning, begun.segments, len(seeds))

        def enter(segment: Segment, state: Any) -> Any:
            return state[0], self._deep(begun, segment)

        def run(segment: Segment, state: Any, i: int, j: int) -> Any:
            both, (x, deep) = segment.unconditional, state
            program = self._high(unconditional=both)
            return program(
                self.variables, x, of[both], plan.guidance, begun.steering, deep, scale, begun.inputs, i, j
            )

        state, _ = in_steps(
            in_segments(begun.segments, run, enter),
            (begun.state, None),
            begun.steps,
            watch,
            lambda s, done: self._clean(s[0], begun, done),
        )
        return StageCLatents(plan.latent, self._finished(state.x, begun))

    def _side_by_side(
        self, low: Begun, high: Begun, conditioning: Conditioning, scale: ScaleInputs, watch: Watch | None
    ) -> StageCLatents:
        """Both passes, step by step (paper, table 2)."""
        if low.steps != high.steps or low.reuse or high.reuse:
            raise UserError("both passes of this model run side by side: leave out steps_hr and reuse")

        def run(segment: Both, state: Any, i: int, j: int) -> Any:
            program, steering = self._both(unconditional=segment.unconditional), (low.steering, high.steering)
            inputs = (low.inputs, high.inputs)
            return program(self.variables, *state, conditioning, steering, scale, inputs, i, j)

        lr, hr = in_steps(
            in_segments(side_by_side(low.segments, high.segments), run),
            (low.state, high.state),
            high.steps,
            watch,
            lambda s, done: self._clean(s[1], high, done),
        )
        return StageCLatents(self._finished(lr.x, low), self._finished(hr.x, high))

    def _deep(self, begun: Begun, segment: Segment) -> Any:
        """Room for what the inner levels give in `segment`; None where they are not kept."""
        copies = 2 if segment.unconditional else 1
        return self._empty_deep(copies=copies)(self.variables, begun.state.x) if begun.reuse else None

    def _begun(
        self, stream: int, size: sizes.HW, seeds: Sequence[int], settings: DiffusionConfig, given: Given
    ) -> Begun:
        """A pass of latents of `size` before its first step."""
        check_reuse("stage C", self._outer, settings)
        steps = steps_from(settings.steps, given.strength)
        inputs = LoopInputs.of(seeds, stream, settings, given.strength)
        x = noise = self._start(inputs.keys, (*size, self._channels))
        if given.start is not None and given.strength < 1:
            x = self._noised(noise, given.start, inputs.table.a[0], inputs.table.b[0])
        known = None if given.known is None else Known(given.known, given.mask, noise)  # pyright: ignore
        steering = Steering(tuple(c.in_steps(steps) for c in given.controls), known)
        runs = segments(settings, given.strength)
        return Begun(begin(x), inputs, steps, runs, steering, settings.reuse > 1)

    def _finished(self, x: Any, begun: Begun) -> Any:
        """The latent after the last step, what is known of it as it was."""
        known = begun.steering.known
        return x if known is None else self._kept(x, known)

    def _clean(self, state: State, begun: Begun, done: int) -> Any:
        """The clean latent that the last of `done` steps was heading for; before it, what it starts from."""
        return state.x if done == 0 else self._finished(state.x0, begun)

    def _scale(self, bucket: Bucket) -> ScaleInputs:
        """What the guidance networks must know of the HR size."""
        if self._config is None:
            return ScaleInputs(np.float32(1), np.float32(0))
        weight = sizes.up_guide_weight(*bucket.hr, self._config.up_guide_weights)
        return ScaleInputs(sizes.scale(*bucket.hr), np.float32(weight))
