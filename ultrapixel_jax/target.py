"""What a program is traced for: the platform of its mesh, of one that is not there, or of this process.

A kernel that one platform alone has is chosen while tracing. JAX keeps the device of a mesh, also of an
abstract one, among what a traced function is kept under, so that nothing traced for one is taken for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import AbstractDevice, AbstractMesh

GPUS = ("cuda", "rocm")
"""JAX's names of GPUs where a program is lowered; where it is traced, both are `gpu`."""


def platform() -> str:
    """`cpu`, `gpu` or `tpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Trace for platform `name`, such as `tpu` or `cuda`, which need not be there; lower for it too."""
    # From jax 0.11 on, Pallas' Triton kernels are lowered for a kind of GPU.
    kind = {"cuda": "NVIDIA H100 80GB HBM3", "rocm": "gpu"}.get(name, name)
    device = AbstractDevice(kind, None, "gpu" if name in GPUS else name)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield
