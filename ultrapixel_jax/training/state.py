"""What a run consists of between two steps, and where each part of it lies on the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt32

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.compilation.options import options_to_initialise
from ultrapixel_jax.diffusion.loss import BUCKETS, AdaptiveState, adaptive_init
from ultrapixel_jax.models import components
from ultrapixel_jax.sharding import parameter_sharding
from ultrapixel_jax.training.tasks.base import Task, Variables

BORROWED = "task.backbone effnet_encoder"
WITHOUT_BORROWED = {"effnet_encoder": "--task.backbone nothing"}


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the data and the frozen networks."""

    step: Int[Array, ""] | Any
    """Updates done."""
    params: dict[str, Any]
    """Trained parameters by component, float32."""
    collections: dict[str, Any]
    """The components' other collections: batch statistics, and what a released file carries along."""
    ema: dict[str, Any]
    """Moving average of `params`; empty without."""
    optimizer: Any
    """optax's state."""
    adaptive: AdaptiveState
    """Running losses by logSNR."""
    key: UInt32[Array, "2"] | Any
    """Random key of the run; step n folds n in."""


def given(task: Task, sources: Sources, mesh: Mesh) -> dict[str, Variables]:
    """Trained networks that start from the sources, where the configuration asks for that: float32, as the
    state has them, spread over `mesh`.

    Raises:
        UserError: no source has the network that one begins with.
    """
    found = {}
    for name, source in started(task, sources).items():
        found[name] = _load(task, sources, mesh, source, jnp.float32)
        if source != name:
            begin = functools.partial(task.begin, name, initial_key(task, name))
            shardings = variables_shardings(jax.eval_shape(begin, found[name]), mesh)
            found[name] = jax.jit(begin, out_shardings=shardings)(found[name])
    return found


def started(task: Task, sources: Sources) -> dict[str, str]:
    """Trained networks that start from a network of the sources, and its name.

    Raises:
        UserError: no source has the network that one begins with.
    """
    found = {}
    for name in task.trained:
        if task.config.start_from_sources and sources.has(name, getattr(task.config.model, name)):
            found[name] = name
        elif name in task.borrows:
            found[name] = task.borrows[name]
            sources.require([found[name]], BORROWED, WITHOUT_BORROWED)
    return found


def origins(task: Task, sources: Sources, *, fresh: bool) -> str:
    """Where the weights of the frozen networks come from, and of a `fresh` run those that it begins with."""
    begun = started(task, sources) if fresh else {}
    taken = [(name, name) for name in task.frozen if name in sources.entries]
    taken += [(f"{name}, to begin with,", of) for name, of in begun.items()]
    return "; ".join(f"{what} from {sources.entries[name].origin}" for what, name in taken)


def initial_key(task: Task, name: str) -> Array:
    """Random key of a trained network's fresh weights."""
    return components.key_for(task.config.seed, "initial", name)


def frozen(task: Task, sources: Sources, mesh: Mesh) -> dict[str, Variables]:
    """Frozen networks, spread over `mesh`, blocks stacked where scanned."""
    return {name: _load(task, sources, mesh, name, frozen_dtype(task, name)) for name in task.frozen}


def frozen_dtype(task: Task, name: str) -> Any:
    """In which a frozen network is held: the computation's; stage A's pixels need more than bfloat16."""
    return jnp.float32 if name == "stage_a" else task.dtype


def abstract(task: Task, name: str, mesh: Mesh, dtype: Any) -> dict[str, Any]:
    """A component as `task` holds it, without values: shapes, dtypes, and where its arrays lie on `mesh`."""
    variables = components.abstract(name, getattr(task.config.model, name), dtype)
    variables = jax.eval_shape(lambda v: task.arrange(name, v), variables)
    return place(variables, variables_shardings(variables, mesh))


def _load(task: Task, sources: Sources, mesh: Mesh, name: str, dtype: Any) -> dict[str, Any]:
    """A component as `task` holds it, straight onto the mesh."""

    def place(path: str, struct: jax.ShapeDtypeStruct) -> NamedSharding:
        return parameter_sharding(path, struct.shape, mesh)

    stacked, config = task.stacks(name), getattr(task.config.model, name)
    variables = sources.load(name, config, dtype=dtype, place=place, stacked=stacked)
    return variables if stacked else task.arrange(name, variables)


def fresh(
    task: Task, optimizer: optax.GradientTransformation, sources: Sources, mesh: Mesh, shardings: TrainState
) -> TrainState:
    """The state before the first step, where `shardings` say; what sources give becomes part of it."""
    variables = given(task, sources, mesh)
    make = creator(task, optimizer)
    options = options_to_initialise(jax.eval_shape(make, variables).params)
    return jax.jit(make, donate_argnums=0, out_shardings=shardings, compiler_options=options)(variables)


def creator(
    task: Task, optimizer: optax.GradientTransformation
) -> Callable[[Mapping[str, Variables]], TrainState]:
    """The function from `given` variables to the state before the first step; the rest is initialised."""
    config = task.config

    def make(given: Mapping[str, Variables]) -> TrainState:
        variables = {
            name: given[name] if name in given else task.initial(name, initial_key(task, name))
            for name in task.trained
        }
        buckets = task.diffusion.adaptive_buckets if task.diffusion else BUCKETS
        return create(variables, optimizer, config.seed, bool(config.optimizer.ema_decay), buckets)

    return make


def create(
    variables: Mapping[str, Variables],
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool,
    buckets: int = BUCKETS,
) -> TrainState:
    """The state before the first step, of trained `variables` by component. Can be traced."""
    params = {name: dict(v["params"]) for name, v in variables.items()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections={name: {k: c for k, c in v.items() if k != "params"} for name, v in variables.items()},
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        optimizer=optimizer.init(params),
        adaptive=adaptive_init(buckets),
        key=jax.random.key_data(components.key_for(seed, "steps")),
    )


def tree_shardings(tree: Any, mesh: Mesh, collection: str = "params") -> Any:
    """Placement of every array of one component's collection, by the rules of `sharding`."""
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore
    placed = {p: parameter_sharding(f"{collection}/{p}", x.shape, mesh) for p, x in flat.items()}
    return traverse_util.unflatten_dict(placed, sep="/")


def variables_shardings(variables: Variables, mesh: Mesh) -> dict[str, Any]:
    """Placement of all collections of one component."""
    return {kind: tree_shardings(tree, mesh, kind) for kind, tree in variables.items()}


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Placement of an abstract state: moments and average lie where their parameters do."""
    whole = NamedSharding(mesh, PartitionSpec())
    params = {name: tree_shardings(tree, mesh) for name, tree in state.params.items()}
    collections = {name: variables_shardings(kinds, mesh) for name, kinds in state.collections.items()}
    return TrainState(
        step=whole,
        params=params,
        collections=collections,
        ema=params if state.ema else {},
        optimizer=optax.tree_utils.tree_map_params(
            optimizer,
            lambda x, s: x if _is_masked(x) else s,  # what another algorithm has the moments of
            state.optimizer,
            params,
            transform_non_params=lambda _: whole,
            is_leaf=_is_masked,
        ),
        adaptive=AdaptiveState(whole),  # pyright: ignore[reportArgumentType]
        key=whole,
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def place(abstract: Any, shardings: Any) -> Any:
    """Abstract arrays with their placement: what restoring a state needs."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
