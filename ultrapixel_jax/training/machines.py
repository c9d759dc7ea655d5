"""Many processes: joining them, and the mesh over all their devices."""

from __future__ import annotations

import math

import jax
from jax.sharding import Mesh

from ultrapixel_jax import processes
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import make_mesh, nearest, written
from ultrapixel_jax.training.config import MachinesConfig, MeshConfig


def join(config: MachinesConfig) -> None:
    """Connect to the other processes, before anything else of jax runs.

    Raises:
        UserError: nothing was detected, or the others were not reached.
    """
    if config.distributed or config.coordinator:
        processes.join(
            config.coordinator, config.process_id, config.process_count,
            silence=config.silence, patience=config.patience,
        )  # fmt: skip


def mesh_of(config: MeshConfig) -> Mesh:
    """The mesh over all devices of all processes.

    Raises:
        UserError: it does not fit them.
    """
    devices = len(jax.devices())
    owners = [device.process_index for device in jax.devices()]
    counts = sorted({owners.count(process) for process in owners})
    if len(counts) > 1:  # which Orbax's checkpoints do not take
        raise UserError(
            f"some processes have {counts[0]} devices and others {counts[-1]}; start processes of as many "
            "devices each, such as one for each GPU"
        )
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor, "rows": config.rows}
    if config.data == -1:
        others = (config.fsdp, config.tensor, config.rows)
        if devices % math.prod(others):
            raise UserError(
                f"mesh fsdp·tensor·rows = {math.prod(others)} does not divide the {devices} devices that "
                f"there are; {written(nearest((1, *others), devices))} starts here"
            )
        sizes["data"] = devices // math.prod(others)
    return make_mesh(sizes)
