"""What stages have in common: how their programs are compiled, their variables, their loop of steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
from jaxtyping import Array, Float

from ultrapixel_jax.compilation.executables import Executables
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.diffusion.sampler import Segment, image_keys, make_table, noise
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.report import Report

LR, HR, STAGE_B = range(3)
"""Streams of an image's random numbers: one for each pass."""

CHUNK_SECONDS = 0.5
"""How much work is dispatched between two calls of a `Watch`."""

State = TypeVar("State")
Run = TypeVar("Run", bound=Any)
"""Consecutive steps with their `first` and `stop`, such as a `Segment`."""
Estimate = Callable[[], Array]
"""Makes the clean latent that a pass is heading for, (b, h, w, c)."""
Watch = Callable[[int, int, Estimate], None]
"""Told (steps done, steps in all, the latent so far, computed when called) while a pass runs."""


class LoopInputs(NamedTuple):
    """Run-time inputs of a pass: where its noise comes from, and the coefficients of its steps."""

    keys: Any
    """One key per image, (b, 2) uint32."""
    table: Any
    """`sampler.Table`."""

    @classmethod
    def of(
        cls, seeds: Sequence[int], stream: int, settings: DiffusionConfig, start: float = 1.0
    ) -> LoopInputs:
        """Those of a pass with the noise of `stream`, from t = `start` on."""
        return cls(image_keys(list(seeds), stream), make_table(settings, start))

    def fresh(self, x: Float[Array, "b h w c"]) -> Callable[[Any], Any]:
        """The noise that step i adds to `x`."""
        return lambda i: noise(self.keys, i + 1, x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the programs of all stages are compiled."""

    dtype: Any
    """Of computing, but for the decoders."""
    mesh: jax.sharding.Mesh | None
    """None for one device."""
    report: Report
    """Compilation counts to its stage `compile`."""
    executables: Executables | None
    """Where compiled programs are kept."""
    cfg_in_turn: bool = False
    """Whether the halves of classifier-free guidance run one after the other."""
    scanned: bool = False
    """Whether the blocks of a level are a loop over stacked weights, in stages C and B."""

    def program(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        batched: Sequence[int],
        static: tuple[int, ...] = (),
        dtype: Any = None,
        wide_maps: bool = False,
    ) -> Program:
        """`function` as a `Program`; `static` are the positions of arguments that are no arrays."""
        return Program(
            function, batched=batched, mesh=self.mesh, report=self.report, dtype=dtype or self.dtype,
            name=name, executables=self.executables, static_argnums=static, wide_maps=wide_maps,
        )  # fmt: skip


class Stage:
    """One part of the cascade: networks, their variables, and the programs that run them."""

    networks: ClassVar[tuple[str, ...]]
    """Names of its networks in `CascadeConfig`."""

    offloaded = False
    """Whether its variables wait in the host's memory while it has nothing to do."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables: dict[str, Any] = {}
        """By network, the first argument of its programs; other values of the same shapes compile nothing."""
        self.replace_variables(variables)

    def replace_variables(self, variables: Mapping[str, Any]) -> None:
        """Run with those of `variables`, by network, that belong to this stage."""
        self.variables |= {name: variables[name] for name in self.networks if name in variables}

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """With its variables on the device; if `offloaded`, they are on the host before and after."""
        if not self.offloaded:
            yield
            return
        self.variables = jax.device_get(self.variables)
        waiting = dict(self.variables)
        self.variables = jax.device_put(waiting)
        try:
            yield
        finally:
            # What it has loaded meanwhile waits beside the others.
            self.variables = jax.device_get({**self.variables, **waiting})

    @property
    def compilations(self) -> int:
        """How many programs it has compiled, or read from disk."""
        return sum(p.compilations for p in vars(self).values() if isinstance(p, (Program, Variants)))


def halves(conditioning: Any, segments: Sequence[Segment], count: int) -> dict[bool, Any]:
    """What the steps of `segments` are conditioned on, by whether they have the unconditional half.

    Args:
        conditioning: of both halves.
        segments: of the pass; what none of them needs is not made.
        count: images of the batch.
    """
    return {
        both: conditioning if both else jax.tree.map(lambda y: y[:count], conditioning)
        for both in {segment.unconditional for segment in segments}
    }


def check_reuse(name: str, outer: int, settings: DiffusionConfig) -> None:
    """Refuse to reuse inner levels of a network of one level.

    Raises:
        UserError: that is asked for.
    """
    if settings.reuse > 1 and not outer:
        raise UserError(f"reuse {settings.reuse}: {name} of this model has no inner levels; leave it out")


class Variants:
    """One function as several programs, by static keywords of its; each compiles when first run."""

    def __init__(self, make: Callable[[str, Callable[..., Any]], Program], name: str, function: Any) -> None:
        self._make, self._name, self._function = make, name, function
        self._programs: dict[tuple[Any, ...], Program] = {}

    def __call__(self, **static: Any) -> Program:
        """The program with these keywords."""
        key = tuple(sorted(static.items()))
        if key not in self._programs:
            name = "_".join([self._name, *(f"{k}-{v}" for k, v in key)])
            self._programs[key] = self._make(name, functools.partial(self._function, **static))
        return self._programs[key]

    @property
    def compilations(self) -> int:
        """Those of all of them."""
        return sum(program.compilations for program in self._programs.values())


def in_segments(
    segments: Sequence[Run],
    run: Callable[[Run, State, int, int], State],
    enter: Callable[[Run, State], State] = lambda _, state: state,
) -> Callable[[State, int, int], State]:
    """What takes steps of a pass, for `in_steps`.

    Args:
        segments: of the pass.
        run: takes steps of one of them.
        enter: the state before the first step of one.
    """

    def steps(state: State, i: int, j: int) -> State:
        for segment in segments:
            first, stop = max(i, segment.first), min(j, segment.stop)
            if first < stop:
                state = enter(segment, state) if first == segment.first else state
                state = run(segment, state, first, stop)
        return state

    return steps


def in_steps(
    run: Callable[[State, int, int], State],
    state: State,
    steps: int,
    watch: Watch | None,
    estimate: Callable[[State, int], Array],
) -> State:
    """`run(state, first, last)` over all `steps`: at once or, where somebody watches, in chunks.

    Splitting changes no bit: first and last step are run-time values.

    Args:
        run: some of the pass's steps.
        state: before the first.
        steps: how many there are.
        watch: told after every chunk.
        estimate: the clean latent, from the state after a number of steps.
    """
    if watch is None:
        return jax.block_until_ready(run(state, 0, steps))
    watch(0, steps, lambda state=state: estimate(state, 0))
    done, chunk = 0, 1
    while done < steps:
        began, last = time.perf_counter(), min(done + chunk, steps)
        state = jax.block_until_ready(run(state, done, last))
        per_step = (time.perf_counter() - began) / (last - done)
        done, chunk = last, max(1, min(steps, int(CHUNK_SECONDS / max(per_step, 1e-6))))
        watch(done, steps, lambda state=state, done=done: estimate(state, done))
    return state
