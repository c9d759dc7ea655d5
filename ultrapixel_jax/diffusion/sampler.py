"""DDPM, DDIM and DPM-Solver++(2M) as one loop over a table of coefficients (§5).

The table is made on the host and has room for `MAX_STEPS` rows. Sampler, schedule, shift, eta, number of
steps and guidance weight are therefore run-time values: only new shapes compile.

DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, and its SDE form), with λ = logSNR/2, is DDIM's or DDPM's step
and `momentum` times what the predicted x₀ has changed by since the step before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from ultrapixel_jax.config import MAX_STEPS, DiffusionConfig
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.models import random_keys

Carry = TypeVar("Carry")
Vector = Any
"""`MAX_STEPS` float32 values, numpy or jax."""
Scalar = Any
"""One float32 value, numpy or jax."""
MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde")
"""Samplers of second order, which go by the step before."""


class Table(NamedTuple):
    """Coefficients of every step, float32, padded to `MAX_STEPS` rows; numpy or jax."""

    r: Vector
    """Noise level that the network is given."""
    a: Vector
    """Scaling of x₀ before the step."""
    b: Vector
    """Scaling of the noise before the step."""
    a_next: Vector
    """Scaling of x₀ after the step."""
    direction: Vector
    """Factor of the predicted noise after the step: `sqrt(b'² − σ²)`."""
    sigma: Vector
    """Factor of the fresh noise: `eta·(b'/b)·sqrt(1 − a²/a'²)`."""
    momentum: Vector
    """Factor of what the predicted x₀ changed by since the step before; 0 for samplers of first order."""
    anew: Vector
    """1 where the network's inner levels are computed, 0 where those of an earlier step are taken."""
    cfg: Scalar
    """Classifier-free guidance weight."""
    cfg_hr: Scalar
    """That of the guided HR pass."""
    rescale: Scalar
    """Share of the guided noise that is rescaled."""


class State(NamedTuple):
    """What goes from step to step."""

    x: Float[Array, "b h w c"]
    """The noised latent."""
    x0: Float[Array, "b h w c"]
    """The clean latent that the step before was heading for; zeros before the first."""


class Segment(NamedTuple):
    """Consecutive steps that run the same halves of the batch."""

    first: int
    stop: int
    """One past the last."""
    unconditional: bool
    """Whether the unconditional half is among them, and with it classifier-free guidance."""


def begin(x: Float[Array, "b h w c"]) -> State:
    """The state before the first step, from noise or a noised latent."""
    return State(x, jnp.zeros_like(x))


def as_arrays(table: Table) -> Table:
    """`table` in jax, to be read at a step that is a run-time value."""
    return Table(*(jnp.asarray(v) for v in table))


def capturing(table: Table, capture: int) -> Table:
    """`table` with the inner levels computed in step `capture`, whose features are taken."""
    anew = np.array(table.anew)
    anew[capture] = 1
    return table._replace(anew=anew)


def timesteps(steps: int, start: float = 1.0) -> np.ndarray:
    """The `steps + 1` values of t from `start` to 0."""
    return np.linspace(start, 0.0, steps + 1, dtype=np.float32)


def steps_from(steps: int, start: float) -> int:
    """How many of `steps` are left where sampling starts from t = `start`, above 0: their share, rounded."""
    return max(1, round(steps * start))


def segments(config: DiffusionConfig, start: float = 1.0) -> tuple[Segment, ...]:
    """The steps from t = `start` on, in at most three runs: before, in and after the guided interval."""
    steps = steps_from(config.steps, start)
    if config.cfg == 1:
        return (Segment(0, steps, unconditional=False),)
    done = np.round(1 - np.linspace(start, 0.0, steps + 1)[:-1], 6)
    first, stop = (int(np.searchsorted(done, end)) for end in (config.cfg_from, config.cfg_until))
    ends = (0, first, stop, steps)
    runs = (Segment(*run) for run in zip(ends, ends[1:], (False, True, False), strict=False))
    return tuple(run for run in runs if run.first < run.stop)


def halves(config: DiffusionConfig) -> frozenset[bool]:
    """Whether steps of `config` have the unconditional half: of a pass from noise, all answers."""
    return frozenset(segment.unconditional for segment in segments(config))


def make_table(config: DiffusionConfig, start: float = 1.0) -> Table:
    """Coefficients of the steps that `config` describes, from t = `start` on (`steps_from`)."""
    steps = steps_from(config.steps, start)
    level = schedule.logsnr(timesteps(steps, start), config.schedule, config.shift)
    a, b = schedule.scalings(level)
    r = schedule.noise_level(level)
    a0, b0, a1, b1 = a[:-1], b[:-1], a[1:], b[1:]
    eta = np.float32(config.effective_eta)
    sigma = eta * np.sqrt(b1**2 / b0**2) * np.sqrt(np.maximum(1 - a0**2 / a1**2, 0))
    direction = np.sqrt(np.maximum(b1**2 - sigma**2, 0))
    anew, momentum = np.zeros(steps), _momentum(config, level)
    for segment in segments(config, start):  # with the unconditional half, what is kept and x₀ itself change
        anew[segment.first : segment.stop : config.reuse] = 1
        momentum[segment.first] = 0

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values.astype(np.float32), (0, MAX_STEPS - steps), constant_values=1)

    return Table(
        r=padded(r[:-1]),
        a=padded(a0),
        b=padded(b0),
        a_next=padded(a1),
        direction=padded(direction),
        sigma=padded(sigma),
        momentum=padded(momentum * (a1 - direction * a0 / b0)),
        anew=padded(anew),
        cfg=np.float32(config.cfg),
        cfg_hr=np.float32(config.effective_cfg_hr),
        rescale=np.float32(config.cfg_rescale),
    )


def _momentum(config: DiffusionConfig, logsnr: np.ndarray) -> np.ndarray:
    """`h / (2·h_before)` of every step, h its change of λ; its share of x₀'s change that x₀ still goes on by.

    First and last step are of first order: nothing is known before the one, and the other is so long that it
    would overshoot.
    """
    h = np.diff(logsnr.astype(np.float64))
    out = np.zeros(len(h))
    if config.sampler in MULTISTEP:
        before, inner = h[:-2], slice(1, -1)
        # Where the schedule is clipped λ stands still, and there is no change to go on by.
        out[inner] = np.divide(h[inner], 2 * before, out=np.zeros_like(before), where=before > 1e-6)
    return out


def guidance_step(steps: int, timestep: float, start: float = 1.0) -> int:
    """The step whose t is nearest `timestep`: the one that gives the LR pass's guidance (§6)."""
    return int(np.argmin(np.abs(timesteps(steps_from(steps, start), start)[:-1] - timestep)))


def image_keys(seeds: np.ndarray | list[int], stream: int) -> np.ndarray:
    """One key per image, (b, 2) uint32, from the images' own seeds.

    `stream` separates the passes of one image. Nothing else enters, so that an image does not depend
    on its neighbours in the batch.
    """
    words = [[(int(s) >> 32) & 0xFFFFFFFF, int(s) & 0xFFFFFFFF] for s in seeds]
    keys = random_keys.of_data(jnp.asarray(words, jnp.uint32))
    return np.asarray(jax.random.key_data(jax.vmap(lambda k: jax.random.fold_in(k, stream))(keys)))


def noise(keys: UInt32[Array, "b 2"], index: Int[Array, ""] | int, shape: tuple) -> Float[Array, "b h w c"]:
    """Standard normal noise number `index` of every image, `shape` without the batch axis."""

    def one(key: Array) -> Array:
        key = jax.random.fold_in(random_keys.of_data(key), index)
        return jax.random.normal(key, shape, jnp.float32)

    return jax.vmap(one)(keys)


def initial_noise(keys: UInt32[Array, "b 2"], shape: tuple) -> Float[Array, "b h w c"]:
    """The noise that sampling starts from; steps use the numbers from 1 on."""
    return noise(keys, 0, shape)


def in_turn(function: Callable[..., Any], *batched: Any) -> Any:
    """`function` of `[conditional, unconditional]` halves, one after the other, in the memory of one.

    Args:
        function: of arrays whose leading axis is that of images.
        batched: its arguments, of both halves.
    """
    halves = jax.tree.map(lambda y: y.reshape(2, y.shape[0] // 2, *y.shape[1:]), batched)
    out = jax.lax.map(lambda half: function(*half), halves)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), out)


def guide(
    epsilon: Float[Array, "b2 h w c"], cfg: Float[Array, ""], rescale: Float[Array, ""]
) -> Float[Array, "b h w c"]:
    """Classifier-free guidance of `[conditional, unconditional]`, rescaled, per image (§5).

    The standard deviation is Bessel-corrected. It is taken over each image; the released
    implementation takes it over the batch.
    """
    conditional, unconditional = jnp.split(epsilon.astype(jnp.float32), 2)
    guided = unconditional + cfg * (conditional - unconditional)

    def std(x: Array) -> Array:
        return jnp.std(x, axis=(1, 2, 3), ddof=1, keepdims=True)

    rescaled = guided * std(conditional) / (std(guided) + 1e-9)
    return rescale * rescaled + (1 - rescale) * guided


def step(
    state: State,
    epsilon: Float[Array, "b h w c"],
    table: Table,
    i: Int[Array, ""],
    fresh: Float[Array, "b h w c"],
) -> State:
    """Step `i`: the next x, and the x₀ that it is built from."""
    x, before = state
    x0 = (x - table.b[i] * epsilon) / table.a[i]
    first_order = table.a_next[i] * x0 + table.direction[i] * epsilon + table.sigma[i] * fresh
    return State(first_order + table.momentum[i] * (x0 - before), x0)


def run_steps(
    denoise: Callable[[Array, Array, Array, Carry], tuple[Array, Carry]],
    state: State,
    carry: Carry,
    table: Table,
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    fresh: Callable[[Array], Array],
    *,
    unconditional: bool = True,
    before: Callable[[Array, Array], Array] | None = None,
) -> tuple[State, Carry]:
    """Steps `start` to `stop`, both run-time values, inside one loop.

    Args:
        denoise: `(x of [conditional, unconditional], r, step, carry)` to the predicted noise of both
            and the new carry.
        state: before the first of these steps.
        carry: whatever `denoise` hands from step to step.
        table: from `make_table`.
        start: first step.
        stop: one past the last step.
        fresh: the noise that step i adds.
        unconditional: False leaves out the unconditional half and with it classifier-free guidance, as a
            weight of 1 would; `denoise` gets and gives the conditional half alone.
        before: `(x, step)` to what takes its place in that step.

    Returns:
        The state after the last step, and the carry.
    """
    table = as_arrays(table)

    def body(i: Array, both: tuple[State, Carry]) -> tuple[State, Carry]:
        state, carry = both
        x = state.x if before is None else before(state.x, i)
        given = jnp.concatenate([x, x]) if unconditional else x
        r = jnp.broadcast_to(table.r[i], (given.shape[0],))
        epsilon, carry = denoise(given, r, i, carry)
        epsilon = guide(epsilon, table.cfg, table.rescale) if unconditional else epsilon.astype(jnp.float32)
        return step(State(x, state.x0), epsilon, table, i, fresh(i)), carry

    return jax.lax.fori_loop(start, stop, body, (state, carry))
