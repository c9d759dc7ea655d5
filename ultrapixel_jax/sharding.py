"""Meshes and placements: which parameter and which activation lies where.

Two tables: `PARAMETER_RULES`, from parameter path to partition spec, and `ACTIVATION_AXES`, from the
name of an axis to the mesh axes it is split over. Without a mesh everything here does nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from ultrapixel_jax.config import MESH_AXES
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.target import platform

P = PartitionSpec

PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # The last linear layer of an MLP or of an attention takes what `tensor` split and joins it again.
    (r".*/(out|contract|fuse_out|mlp_out)/kernel:2", P("tensor", "fsdp")),
    (r".*/(token_embedding|codebook)(/embedding)?:2", P("fsdp", None)),
    (r".*/(position_embedding|posemb|wtokens|class_embedding)(/embedding)?:[12]", P()),
    (r".*/(wb0|wb1):2", P()),
    (r".*/depthwise[^/]*/kernel:3", P()),
    (r".*/kernel:2", P("fsdp", "tensor")),
    (r".*/kernel:4", P(None, None, "fsdp", "tensor")),
    (r".*/kernel:3", P()),
    (r".*/down:2", P(None, "fsdp")),  # LoRA: (rank, in)
    (r".*/up:2", P("fsdp", None)),  # and (out, rank)
    (r".*:[01]", P()),  # biases, scales, statistics
    (r"params/embeddings:2", P()),  # new text tokens
    (r"unused/.*", P()),
)
"""(pattern of `path:rank`, placement); full match, the first wins, no match is an error."""

ACTIVATION_AXES: Mapping[str, Any] = {
    "batch": ("data", "fsdp"),
    "height": ("rows",),
    "width": None,
    "tokens": None,
    "channel": None,
    "heads": P.UNCONSTRAINED,
}
"""Mesh axes by the name of an axis; None is whole, and unconstrained is as the compiler likes."""


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the given sizes of `MESH_AXES`; axes not named have size 1.

    Raises:
        UserError: an unknown axis, or a product that is not the number of devices.
    """
    if unknown := set(sizes) - set(MESH_AXES):
        raise UserError(f"mesh axis {sorted(unknown)[0]!r} is not known; axes are {', '.join(MESH_AXES)}")
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {written(shape)} needs {math.prod(shape)} devices, but there are {len(devices)}; "
            f"{written(nearest(shape, len(devices)))} starts here"
        )
    mesh = Mesh(arranged(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    _introduce(mesh)
    return mesh


def _introduce(mesh: Mesh) -> None:
    """Let the processes of a mesh of CPUs meet, in every group that its axes make.

    A group is made when a program first speaks in it, and waits 30 s for all to come: not long enough where
    one compiles a program that another found in the cache. Once it is made, it waits for as long as it takes.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for names in (names for n in range(len(axes)) for names in itertools.combinations(axes, n + 1)):
        count = jax.shard_map(
            functools.partial(jax.lax.psum, axis_name=names),
            mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
        )  # fmt: skip
        jax.block_until_ready(jax.jit(count)(np.ones(1, np.float32)))


def arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """`devices` as an array of `shape`, neighbours in the network along its last axes.

    Slices of TPUs and nodes of GPUs, between which the network is slow, are told apart along the first axes
    that they divide. Within one, jax follows the torus, which may scatter the devices of a process; an axis
    of the torus is split where no other way is left. What jax cannot arrange (a slice with holes, chips of
    two devices) keeps the order of its numbers.
    """
    granules: dict[int, list[Any]] = {}
    for device in devices:
        granules.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    slices = [granules[number] for number in sorted(granules)]
    counts = {len(part) for part in slices}
    if len(counts) > 1:  # of different sizes
        return np.array([device for part in slices for device in part], object).reshape(shape)
    outer, left = [], len(slices)
    for size in shape:
        outer.append(math.gcd(size, left))
        left //= outer[-1]
    inner = tuple(size // n for size, n in zip(shape, outer, strict=True))
    blocks = np.empty(len(slices), object)
    for i, part in enumerate(slices):
        blocks[i] = _arranged_in_slice(inner, part)
    return np.block(blocks.reshape(outer).tolist())


def _arranged_in_slice(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):
        return np.array(sorted(devices, key=lambda device: device.id), object).reshape(shape)


def nearest(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Sizes whose product is `count`: later axes as far as they divide it, the first one the rest."""
    sizes, left = [], count
    for size in reversed(shape[1:]):
        sizes.append(math.gcd(size, left))
        left //= sizes[-1]
    return (left, *reversed(sizes))


def written(shape: Sequence[int]) -> str:
    """As on a command line: `data=2,fsdp=2,tensor=1,rows=1`."""
    return ",".join(f"{axis}={n}" for axis, n in zip(MESH_AXES, shape, strict=True))


def parameter_spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Placement of the parameter at `path`, such as `params/down_0/layer_2/query/kernel`.

    Raises:
        KeyError: no rule knows it.
    """
    if "/rest/" in path:  # stacked over the blocks of a level
        return P(None, *parameter_spec(path.replace("/rest/", "/"), shape[1:]))
    for pattern, spec in PARAMETER_RULES:
        if re.fullmatch(pattern, f"{path}:{len(shape)}"):
            return spec
    raise KeyError(f"no sharding rule for parameter {path} of shape {shape}")


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """`parameter_spec` on `mesh`; a dimension that an axis does not divide is replicated."""
    spec = parameter_spec(path, shape)
    fitted = [
        axis if axis is None or shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(spec)
    ]
    return NamedSharding(mesh, P(*fitted))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of arrays whose first axis is the batch."""
    return NamedSharding(mesh, P(ACTIVATION_AXES["batch"]))


def device_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays, abstract or not, on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if hasattr(x, "sharding")
    )


def by_batch(x: Array) -> Array:
    """`x`, where devices of a mesh share it, divided along its first axis alone, if that divides."""
    placed = x.sharding
    if not isinstance(placed, NamedSharding) or x.shape[0] % batch_multiple(placed.mesh):  # pyright: ignore
        return x
    return jax.device_put(x, batch_sharding(placed.mesh))  # pyright: ignore


def fetch(x: Any) -> Shaped[np.ndarray, "..."]:
    """An array on the host; where processes share it, all of it in each of them."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def batch_multiple(mesh: Mesh | None) -> int:
    """What the batch must be divisible by."""
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in ACTIVATION_AXES["batch"] or ())


def rows_mesh(size: Any) -> AbstractMesh | None:
    """The mesh, where its `rows` axis divides an axis of `size` rows or tokens; else None."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else mesh.shape.get("rows", 1)
    return mesh if count > 1 and isinstance(size, int) and size % count == 0 else None


def one_device() -> bool:
    """Whether what is traced is for one device alone: there is no mesh, or a mesh of one."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def divides_rows_and_kernels() -> bool:
    """Whether the mesh divides both the rows of maps and the channels of kernels."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("rows", 1) > 1 and mesh.shape.get("tensor", 1) > 1


def by_rows(
    function: Callable[..., Array],
    mesh: AbstractMesh,
    *,
    takes: Sequence[Literal["rows", "whole"]],
    beside: PartitionSpec | None = None,
) -> Callable[..., Array]:
    """`function` of each device's own rows (the second axis of its arguments), with `rows` a named axis.

    Args:
        function: from arrays to one whose second axis is divided, too.
        mesh: from `rows_mesh`.
        takes: by argument, whether a device gets its own rows of it, or the whole.
        beside: placement of the other axes of all arguments and of the result, where a device is to get its
            own part of them, too. One division does it: XLA (jax 0.10) aborts on gradients of one in another.
    """
    beside = beside or P(None, None)
    first, others = beside[0], beside[2:]
    specs = tuple(P(first, "rows" if what == "rows" else None, *others) for what in takes)
    names = {"rows", *axis_names(beside)}

    def divided(*arrays: Array) -> Array:
        own = jax.shard_map(
            lambda *given: function(*(x.astype(y.dtype) for x, y in zip(given, arrays, strict=True))),
            mesh=mesh, in_specs=specs, out_specs=P(first, "rows", *others), axis_names=names, check_vma=False,
        )  # fmt: skip
        # The gradient of what every device gets whole is a sum over devices. XLA aborts on CPUs where that
        # is in bfloat16 ("Invalid binary instruction opcode copy").
        on_cpu = platform() == "cpu"
        wide = [on_cpu and x.dtype == jnp.bfloat16 and what == "whole" for x, what in zip(arrays, takes)]
        return own(*(x.astype(jnp.float32) if w else x for x, w in zip(arrays, wide, strict=True)))

    return divided  # the other axes stay with the compiler


def by_examples_and_heads(function: Callable[..., Array], *, kernel: bool = False) -> Callable[..., Array]:
    """`function` of arrays (batch, tokens, heads, width), of each device's own examples and heads.

    The compiler alone gathers heads that `tensor` divides as soon as they are merged with the batch, and
    what a loop takes one by one. What the mesh does not divide, every device computes. A `kernel` the
    compiler divides along no axis at all, so that it gets each device's own part of all of them.
    """

    def divided(*arrays: Array) -> Array:
        mesh: Any = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        spec = examples_and_heads(mesh, arrays[0])
        names = set(mesh.axis_names) - set(mesh.manual_axes) if kernel else axis_names(spec)
        if not kernel and math.prod(mesh.shape[name] for name in names) == 1:
            return function(*arrays)
        own = jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=names, check_vma=False)
        return own(*arrays)

    return divided


def examples_and_heads(mesh: AbstractMesh, x: Array) -> PartitionSpec:
    """Placement of `x` (batch, tokens, heads, width), as far as the mesh divides it and has not yet."""
    batch, _, heads, _ = x.shape
    examples = tuple(a for a in ACTIVATION_AXES["batch"] or () if a not in mesh.manual_axes)
    tensor = "tensor" if "tensor" not in mesh.manual_axes and heads % mesh.shape["tensor"] == 0 else None
    divides = examples and batch % math.prod(mesh.shape[a] for a in examples) == 0
    return P(examples if divides else None, None, tensor)


def axis_names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in `spec`."""
    return {name for place in spec for name in ((place,) if isinstance(place, str) else place or ())}


def constrain(x: Array, *axes: str) -> Array:
    """Place activation `x`, whose axes have these names, as the table says; nothing without a mesh.

    An axis that the mesh does not divide stays whole, such as the rows of a small LR map.

    Raises:
        KeyError: an axis name that is not in the table.
    """
    places = [ACTIVATION_AXES[name] for name in axes]
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def fits(size: Any, place: Any) -> bool:
        if place is P.UNCONSTRAINED:
            return True
        return isinstance(size, int) and size % math.prod(mesh.shape[a] for a in place or ()) == 0

    fitted = [place if fits(size, place) else None for size, place in zip(x.shape, places, strict=True)]
    return jax.lax.with_sharding_constraint(x, P(*fitted))
