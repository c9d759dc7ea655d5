"""NVIDIA GPUs that need not be there: what XLA is told of them, and how fast they can be at most.

Sizes of a chip are NVIDIA's (architecture white papers and data sheets). Matrix rates are of dense products
with sums in float32: the data sheet's, times the share of it that an H100 reached when it was measured, 790
of 989 TFLOP/s in bfloat16.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Mapping
from typing import Any

from ultrapixel_jax.errors import UserError

REACHED = 790 / 989
"""Of a data sheet's matrix rate."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind."""

    title: str
    """As its driver names it."""
    capability: tuple[int, int]
    cores: int
    """Streaming multiprocessors."""
    lanes: int
    """Float32 units of each."""
    threads: int
    """That each holds."""
    shared: int
    """Bytes of shared memory of each; a block may have 1 KiB less."""
    cache: int
    """Bytes of the second-level cache."""
    clock: float
    """GHz."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second, of memory."""
    matrix: Mapping[str, float]
    """Operations a second of a data sheet's dense matrix products, by dtype."""

    def rate(self, dtype: str) -> float:
        """Operations a second that products of `dtype` reach at most."""
        return REACHED * self.matrix[dtype]

    def described(self) -> str:
        """XLA's description of the device, a `GpuTargetConfigProto` in text."""
        major, minor = self.capability
        return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
            shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
            shared_memory_per_block_optin: {self.shared - 1024} threads_per_core_limit: {self.threads}
            core_count: {self.cores} fpus_per_core: {self.lanes} block_dim_limit_x: 2147483647
            block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {self.bandwidth:.0f}
            l2_cache_size: {self.cache} clock_rate_ghz: {self.clock} device_memory_size: {self.memory}
            cuda_compute_capability {{ major: {major} minor: {minor} }}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.title}" """


def _hopper(title: str, memory: int, bandwidth: float) -> Gpu:
    return Gpu(
        title, (9, 0), cores=132, lanes=128, threads=2048, shared=233472, cache=50 << 20, clock=1.98,
        memory=memory, bandwidth=bandwidth, matrix={"bfloat16": 989e12, "float32": 67e12},
    )  # fmt: skip


def _ada(
    title: str, cores: int, cache: int, clock: float, bandwidth: float, half: float, single: float
) -> Gpu:
    return Gpu(
        title, (8, 9), cores=cores, lanes=128, threads=1536, shared=102400, cache=cache, clock=clock,
        memory=24 << 30, bandwidth=bandwidth, matrix={"bfloat16": half, "float32": single},
    )  # fmt: skip


GPUS: Mapping[str, Gpu] = {
    "h100": _hopper("NVIDIA H100 80GB HBM3", 84942979072, 3.352e12),
    "h200": _hopper("NVIDIA H200", 150754820096, 4.8e12),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), cores=108, lanes=64, threads=2048, shared=167936, cache=40 << 20,
        clock=1.41, memory=85051572224, bandwidth=2.039e12, matrix={"bfloat16": 312e12, "float32": 19.5e12},
    ),
    "l4": _ada("NVIDIA L4", 58, 48 << 20, 2.04, 0.3e12, 121e12, 30.3e12),
    "rtx4090": _ada("NVIDIA GeForce RTX 4090", 128, 72 << 20, 2.52, 1.008e12, 165.2e12, 82.6e12),
}  # fmt: skip
"""By the names that the command line has for them."""


def device_of(name: str) -> Any:
    """A device of this kind, for which programs can be compiled and none can run.

    Raises:
        UserError: CUDA's plugin is not installed, or does not take the description.
    """
    import jax
    from jax.experimental import topologies

    try:
        plugin = importlib.import_module("jax_plugins.xla_cuda13")
    except ImportError as error:
        raise UserError(
            'no compiler for NVIDIA GPUs here; pip install "jax[cuda13]" into an environment of its own'
        ) from error
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)  # it misses a driver
    with contextlib.suppress(Exception):  # as this does, which leaves the compiler behind all the same
        plugin.initialize()
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=name, target_config=GPUS[name].described(), topology="1x1x1"
        )
    except Exception as error:  # whatever the plugin raises
        raise UserError(
            f"jax {jax.__version__} cannot compile for an absent {name}: {' '.join(str(error).split()):.300}"
        ) from error
    return described.devices[0]
