"""UltraPixel's two-branch sampling of stage C (§6): the LR pass gives guidance, the HR pass takes it.

Each function is meant to be jitted by its caller; sizes are those of the arrays, everything else about
the sampling is a run-time value. What does not depend on the step is computed by `condition` and
`prepare`, outside the loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ultrapixel_jax.diffusion.sampler import State, Table, as_arrays, begin, in_turn, run_steps
from ultrapixel_jax.models.embeddings import sinusoidal
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.resize import Size
from ultrapixel_jax.models.stage_c import PLACES, Conditioning, Fuse, StageC, StageCOutput

Features = dict[str, Float[Array, "_b _h _w _c"]]
Fresh = Callable[[Array], Array]
"""Step number to the noise that this step adds."""


class ScaleInputs(NamedTuple):
    """What the guidance networks must know of the HR size, made on the host (`sizes`)."""

    scale: Float[Array, ""] | Any
    """`sqrt(log(H·W)/log(24·24))`, rounded to float32 at the end."""
    up_weight: Float[Array, ""] | Any
    """Guide weight of the up places; 1 in training."""


class Prompts(NamedTuple):
    """The encoders' outputs, conditional and unconditional halves stacked along the batch."""

    states: Float[Array, "b t e"]
    """Text states."""
    pooled: Float[Array, "b p"]
    """Pooled text vector."""
    image: Float[Array, "b *n i"]
    """CLIP image vector, or several of each; zeros for text to image."""


class Control(NamedTuple):
    """What one ControlNet adds, for the images of a batch."""

    maps: dict[int, Float[Array, "b h w c"]]
    """By ResBlock of stage C, counted in order of execution."""
    strength: Float[Array, " b"]
    """What they are multiplied by."""
    first: Int[Array, " b"]
    """The step from which they count."""
    stop: Int[Array, " b"]
    """The step up to which they count."""


class Known(NamedTuple):
    """A picture of which a part stays."""

    latent: Float[Array, "b h w c"]
    mask: Float[Array, "b h w 1"]
    """1 where it is painted anew, 0 where it stays."""
    noise: Float[Array, "b h w c"]
    """What is added to the latent, in every step the same."""

    def kept(self, x: Float[Array, "b h w c"], a: Any = 1.0, b: Any = 0.0) -> Float[Array, "b h w c"]:
        """`x` with the known latent, noised to `a` and `b`, where it stays."""
        return self.mask * x + (1 - self.mask) * (a * self.latent + b * self.noise)


class Steering(NamedTuple):
    """What steers one pass beside its conditioning; by default nothing."""

    controls: tuple[Control, ...] = ()
    """They add up."""
    known: Known | None = None

    def maps(self, step: Int[Array, ""] | int, copies: int) -> dict[int, Float[Array, "b h w c"]]:
        """What is added in `step`, by ResBlock, for `copies` halves of the batch."""
        out: dict[int, Array] = {}
        for control in self.controls:
            counts = (control.first <= step) & (step < control.stop)
            weight = jnp.where(counts, control.strength, 0)[:, None, None, None]
            for slot, values in control.maps.items():
                added = weight.astype(values.dtype) * values
                out[slot] = out[slot] + added if slot in out else added
        return {slot: jnp.concatenate([values] * copies) for slot, values in out.items()}

    def before(self, table: Table) -> Callable[[Array, Array], Array] | None:
        """What takes the place of x in a step, for `run_steps`."""
        known = self.known
        if known is None:
            return None
        a, b = jnp.asarray(table.a), jnp.asarray(table.b)
        return lambda x, i: known.kept(x, a[i], b[i])


NOT_STEERED = Steering()


class Carried(NamedTuple):
    """What the LR pass carries from step to step beside its state."""

    features: Features
    """For the HR pass's guidance."""
    deep: Float[Array, "b h w c"] | None = None
    """What stage C's inner levels gave; None where every step computes them."""

    def after(self, features: Features, deep: Float[Array, "b h w c"]) -> Carried:
        """The same after a whole step."""
        return Carried(features, None if self.deep is None else deep.astype(self.deep.dtype))


class StageCModel(NamedTuple):
    """Stage C with its guidance networks, and the variables of both."""

    stage_c: StageC
    variables: Mapping[str, Any]
    guidance: Guidance | None = None
    guidance_variables: Any = None
    dtype: Any = jnp.float32
    """Compute dtype of the networks; the sampler's own state is float32."""
    in_turn: bool = False
    """Whether the halves of a guided batch run one after the other."""

    def condition(self, prompts: Prompts) -> Conditioning:
        """Keys and values of the conditioning."""
        args = (jnp.asarray(v, self.dtype) for v in prompts)
        return self.stage_c.apply(self.variables, *args, method="condition")  # pyright: ignore

    def prepare(self, features: Features, size: Size) -> Features:
        """The step-independent part of the guidance at the HR `size`; empty without guidance."""
        if self.guidance is None:
            return {}
        return self.guidance.apply(  # pyright: ignore
            self.guidance_variables, features, size, method="prepare"
        )

    def denoise(
        self,
        x: Float[Array, "b h w c"],
        r: Float[Array, " b"],
        conditioning: Conditioning,
        prepared: Features | None = None,
        scale: ScaleInputs | None = None,
        *,
        copies: int = 1,
        **batched: Any,
    ) -> StageCOutput:
        """One pass of stage C, guided where `prepared` (for as many images as x) is given.

        `copies` are the halves of the batch, and `batched` further arguments of stage C.
        """
        if self.in_turn and copies > 1:

            def half(x: Any, r: Any, conditioning: Any, prepared: Any, batched: Any) -> StageCOutput:
                return self._replace(in_turn=False).denoise(x, r, conditioning, prepared, scale, **batched)

            return in_turn(half, x, r, conditioning, prepared, batched)
        fuse: Fuse | None = None
        if self.guidance is not None and prepared and scale is not None:
            apply = functools.partial(self.guidance.apply, self.guidance_variables, method="fuse")
            e_t, e_s = sinusoidal(r), sinusoidal(jnp.asarray(scale.scale, jnp.float32)[None])
            weights = {place: scale.up_weight if place.startswith("up") else 1.0 for place in PLACES}

            def fuse_at(place: str, y: Array) -> Any:
                return apply(place, y, prepared[place], e_t, e_s, weights[place])

            fuse = fuse_at

        return self.stage_c.apply(  # pyright: ignore
            self.variables, x.astype(self.dtype), r, conditioning, fuse=fuse, **batched
        )


def empty_features(model: StageCModel, x: Float[Array, "b h w c"]) -> Features:
    """Zeros in the place of the guidance that the LR pass will give; x is the LR latent."""
    patch = model.stage_c.config.patch_size
    widths = [level.channels for level in model.stage_c.config.levels]
    by_place = dict(zip(PLACES, (*widths, *reversed(widths)), strict=True))
    b, h, w = x.shape[0], x.shape[1] // patch, x.shape[2] // patch
    return {place: jnp.zeros((b, h, w, c), model.dtype) for place, c in by_place.items()}


def empty_deep(model: StageCModel, x: Float[Array, "b h w c"], copies: int) -> Float[Array, "b2 h2 w2 c2"]:
    """Zeros in the place of what stage C's inner levels will give for `copies` halves of the batch x."""
    h, w, channels = model.stage_c.config.inner(x.shape[1], x.shape[2])
    return jnp.zeros((copies * x.shape[0], h, w, channels), model.dtype)


def lr_steps(
    model: StageCModel,
    state: State,
    carried: Carried,
    conditioning: Conditioning,
    table: Table,
    capture: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    fresh: Fresh,
    steering: Steering = NOT_STEERED,
    *,
    unconditional: bool = True,
) -> tuple[State, Carried]:
    """Steps of the LR pass; the features in `carried` become those of the conditional half at step `capture`.

    That step's inner levels have to be computed anew (`capturing`).
    """

    def denoise(x: Array, r: Array, i: Array, carried: Carried) -> tuple[Array, Carried]:
        copies = 2 if unconditional else 1
        controls, b = steering.maps(i, copies), x.shape[0] // copies

        def whole(carried: Carried) -> tuple[Array, Carried]:
            kept = carried.features
            out = model.denoise(x, r, conditioning, controls=controls, copies=copies)

            def captured() -> Features:
                return {place: out.features[place][:b].astype(kept[place].dtype) for place in kept}

            # A branch, since on a mesh half of a batch lies on half of the devices: other steps move nothing.
            features = jax.lax.cond(i == capture, captured, lambda: kept)
            return out.epsilon, carried.after(features, out.deep)

        def outer(carried: Carried) -> tuple[Array, Carried]:
            out = model.denoise(x, r, conditioning, controls=controls, copies=copies, deep=carried.deep)
            return out.epsilon, carried

        return (
            whole(carried) if carried.deep is None else jax.lax.cond(table.anew[i] > 0, whole, outer, carried)
        )

    table = as_arrays(table)
    return run_steps(
        denoise, state, carried, table, start, stop, fresh,
        unconditional=unconditional, before=steering.before(table),
    )  # fmt: skip


def hr_steps(
    model: StageCModel,
    state: State,
    conditioning: Conditioning,
    prepared: Features,
    scale: ScaleInputs,
    table: Table,
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    fresh: Fresh,
    steering: Steering = NOT_STEERED,
    *,
    deep: Float[Array, "b2 h2 w2 c2"] | None = None,
    unconditional: bool = True,
) -> tuple[State, Float[Array, "b2 h2 w2 c2"] | None]:
    """Steps of the HR pass, with `prepared` guidance for both halves; without any it is a pass of its own.

    Where the weight is 1, `unconditional=False` gives the same in half the time, with the `conditioning` of
    the conditional half alone. What the inner levels gave is carried where `deep` is there.
    """
    if prepared:
        table = table._replace(cfg=table.cfg_hr)
    if unconditional:
        prepared = {place: jnp.concatenate([g, g]) for place, g in prepared.items()}
    table = as_arrays(table)

    def denoise(x: Array, r: Array, i: Array, deep: Any) -> tuple[Array, Any]:
        copies = 2 if unconditional else 1
        given: dict[str, Any] = {"controls": steering.maps(i, copies), "copies": copies}

        def whole(deep: Any) -> tuple[Array, Any]:
            out = model.denoise(x, r, conditioning, prepared, scale, **given)
            return out.epsilon, None if deep is None else out.deep.astype(deep.dtype)

        def outer(deep: Any) -> tuple[Array, Any]:
            return model.denoise(x, r, conditioning, prepared, scale, **given, deep=deep).epsilon, deep

        return whole(deep) if deep is None else jax.lax.cond(table.anew[i] > 0, whole, outer, deep)

    return run_steps(
        denoise, state, deep, table, start, stop, fresh,
        unconditional=unconditional, before=steering.before(table),
    )  # fmt: skip


def synchronized_steps(
    model: StageCModel,
    lr: State,
    hr: State,
    conditioning: Conditioning,
    scale: ScaleInputs,
    tables: tuple[Table, Table],
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    fresh_lr: Fresh,
    fresh_hr: Fresh,
    steering_lr: Steering = NOT_STEERED,
    steering_hr: Steering = NOT_STEERED,
    *,
    unconditional: tuple[bool, bool] = (True, True),
) -> tuple[State, State]:
    """Both passes side by side, each HR step guided by the LR step of the same t (paper table 2).

    `tables` and `unconditional` are of both; the `conditioning` always has both halves.
    """
    size = (hr.x.shape[1], hr.x.shape[2])
    halves = [
        conditioning if u else jax.tree.map(lambda y: y[: hr.x.shape[0]], conditioning) for u in unconditional
    ]
    of_lr, of_hr = tables[0], tables[1]._replace(cfg=tables[1].cfg_hr)

    def denoise(x: Array, r: Array, i: Array, lr: State) -> tuple[Array, State]:
        kept = Carried(empty_features(model, lr.x))
        lr, captured = lr_steps(
            model, lr, kept, halves[0], of_lr, i, i, i + 1, fresh_lr, steering_lr,
            unconditional=unconditional[0],
        )  # fmt: skip
        prepared = model.prepare(captured.features, size)
        copies = 2 if unconditional[1] else 1
        prepared = {place: jnp.concatenate([g] * copies) for place, g in prepared.items()}
        controls = steering_hr.maps(i, copies)
        out = model.denoise(x, r, halves[1], prepared, scale, controls=controls, copies=copies)
        return out.epsilon, lr

    hr, lr = run_steps(
        denoise, hr, lr, of_hr, start, stop, fresh_hr,
        unconditional=unconditional[1], before=steering_hr.before(of_hr),
    )  # fmt: skip
    return lr, hr


def sample(
    model: StageCModel,
    prompts: Prompts,
    x_lr: Float[Array, "b h w c"],
    x_hr: Float[Array, "b H W c"],
    scale: ScaleInputs,
    table: Table,
    steps: Int[Array, ""] | int,
    capture: Int[Array, ""] | int,
    fresh_lr: Fresh,
    fresh_hr: Fresh,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b H W c"]]:
    """Both passes whole, with both halves in every step, from initial noise to the LR and HR latents (§6)."""
    conditioning = model.condition(prompts)
    lr, hr = begin(x_lr), begin(x_hr)
    if model.guidance is not None and model.guidance.config.timestep == "synchronized":
        lr, hr = synchronized_steps(
            model, lr, hr, conditioning, scale, (table, table), 0, steps, fresh_lr, fresh_hr
        )
        return lr.x, hr.x
    carried = Carried(empty_features(model, x_lr))
    lr, carried = lr_steps(model, lr, carried, conditioning, table, capture, 0, steps, fresh_lr)
    # Finish the LR pass before the HR pass starts: their activations need not live at the same time.
    x_lr, features = jax.lax.optimization_barrier((lr.x, carried.features))
    prepared = model.prepare(features, (x_hr.shape[1], x_hr.shape[2]))
    hr, _ = hr_steps(model, hr, conditioning, prepared, scale, table, 0, steps, fresh_hr)
    return x_lr, hr.x
