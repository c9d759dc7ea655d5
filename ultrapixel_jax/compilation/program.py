"""A jitted function whose compilations are timed, counted, and happen once per shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ultrapixel_jax.compilation.executables import Executables
from ultrapixel_jax.compilation.options import compiler_options
from ultrapixel_jax.compilation.shelf import Shelf
from ultrapixel_jax.report import Report
from ultrapixel_jax.sharding import batch_sharding


class Program:
    """`function` under jit, compiled ahead of its first run for each set of shapes.

    Args:
        function: a pure function of arrays.
        batched: positions of the arguments whose leaves all begin with the batch axis; they are
            split over the mesh. The first argument is left where it lies where it is not among
            them (weights); every other one is replicated.
        mesh: None for one device.
        report: compilation time counts to its stage `compile`.
        static_argnums: arguments that are no arrays.
        dtype: what it mostly computes in, for `compiler_options`.
        wide_maps: whether it is a decoder, with more positions than channels, for these too.
        name: of the function, in `executables`.
        executables: where compiled programs are kept for later processes; used without a mesh.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        batched: Sequence[int],
        mesh: Mesh | None,
        report: Report,
        static_argnums: tuple[int, ...] = (),
        dtype: Any = jax.numpy.float32,
        wide_maps: bool = False,
        name: str = "",
        executables: Executables | None = None,
    ) -> None:
        self._jitted = jax.jit(function, static_argnums=static_argnums)
        self._batched = set(batched)
        self._static = set(static_argnums)
        self._mesh = mesh
        self._report = report
        self._dtype, self._wide_maps = dtype, wide_maps
        self._name = name
        self._executables = executables if mesh is None else None
        self._compiled = Shelf()

    @property
    def compilations(self) -> int:
        """How often it was compiled, or read from disk: once for each set of shapes while there is room."""
        return self._compiled.compilations

    def __call__(self, *args: Any) -> Any:
        """Run on `args`, compiling first where their shapes are new."""
        placed = [self._place(i, arg) for i, arg in enumerate(args)]
        arrays = [arg for i, arg in enumerate(placed) if i not in self._static]
        static = tuple(arg for i, arg in enumerate(placed) if i in self._static)
        leaves, structure = jax.tree.flatten(arrays[1:] if 0 not in self._batched else arrays)
        key = (structure, static, tuple((x.shape, x.dtype) for x in leaves))

        def make() -> Any:
            with self._report.stage("compile"):
                options = compiler_options(self._dtype, wide_maps=self._wide_maps)

                def compiled() -> Any:
                    return self._jitted.lower(*placed).compile(options)

                if self._executables is None:
                    return compiled()
                return self._executables.get(self._name, tuple(arrays), (static, options), compiled)

        return self._compiled.get(key, make)(*arrays)

    def _place(self, i: int, arg: Any) -> Any:
        if i in self._static or (i == 0 and 0 not in self._batched):
            return arg
        arg = jax.tree.map(lambda x: np.asarray(x, np.int32) if isinstance(x, int) else x, arg)
        if self._mesh is None:
            return jax.tree.map(jax.numpy.asarray, arg)
        split = batch_sharding(self._mesh)
        whole = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda x: placed(x, split if i in self._batched else whole), arg)


def placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """`x` on a mesh. What each process has of its own is the same in all of them, which nothing compares."""
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
