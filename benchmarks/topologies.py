"""Which meshes start on which slices of TPUs and nodes of GPUs: a table, without any of them.

    python -m benchmarks.topologies

Devices are made up, with the coordinates and numbers of processes that real ones have; the order of those
of TPUs is compared with the TPU compiler's by tests/test_topologies.py, with what the following line writes
in an environment of jax==0.10.2 and libtpu==0.0.42:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.topologies --record tests/topologies.json

A cell says what happened with plain `jax.make_mesh` and processes that had to hold one aligned slice of the
batch each, as it was before, and what happens now:

    ok       it starts
    refused  every process said that it holds scattered rows
    hung     some processes said so and the others waited for them
    error    `jax.make_mesh` raised
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrapixel_jax import commands

RECORDED = ("v4:2x2x4", "v5p:2x2x2", "v5e:4x4", "v6e:4x4", "v6e:8x8")
MESHES: tuple[dict[str, int], ...] = (
    {}, {"fsdp": 4}, {"fsdp": 8}, {"fsdp": -1}, {"tensor": 2}, {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 4},
    {"rows": 2}, {"tensor": 2, "rows": 2}, {"fsdp": 2, "rows": 4},
)  # fmt: skip
"""Sizes of the axes; `data` takes what is left, and so does -1."""
KINDS = {"v4": "TPU v4", "v5p": "TPU v5", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite"}


class Client:
    """What `jax.sharding` asks of a device's client: whose process it is in."""

    def process_index(self) -> int:
        """Process 0."""
        return 0


CLIENT = Client()


@dataclasses.dataclass(eq=False)
class Device:
    """A device that is not there, with the attributes that meshes are made by."""

    id: int
    process_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0
    slice_index: int = 0
    client: Client = CLIENT


def tpus(name: str, *, slices: int = 1, host: tuple[int, int, int] = (2, 2, 1)) -> list[Device]:
    """Chips of `name`, like v5e:4x4 or v4:2x2x4, as `jax.devices()` has them: host by host, x first.

    Args:
        name: generation and sides of a slice in chips.
        slices: such slices.
        host: sides of the chips of one host.
    """
    kind, _, text = name.partition(":")
    sides = [int(side) for side in text.split("x")]
    x, y, z = (*sides, 1)[:3]
    hosts = [
        (i, j, k) for k in range(0, z, host[2]) for j in range(0, y, host[1]) for i in range(0, x, host[0])
    ]
    return [
        Device(
            id=i + x * (j + y * k) + math.prod((x, y, z)) * number,
            process_index=len(hosts) * number + process,
            platform="tpu", device_kind=KINDS[kind], coords=(i, j, k), slice_index=number,
        )
        for number in range(slices)
        for process, (i0, j0, k0) in enumerate(hosts)
        for k in range(k0, k0 + host[2])
        for j in range(j0, j0 + host[1])
        for i in range(i0, i0 + host[0])
    ]  # fmt: skip


def gpus(*nodes: int, each: bool = False) -> list[Device]:
    """GPUs of nodes with so many each; a process has those of a node, or with `each` a single one."""
    owners = [(node, i) for node, count in enumerate(nodes) for i in range(count)]
    return [
        Device(
            id=number, process_index=number if each else node, platform="gpu",
            device_kind="NVIDIA H100 80GB HBM3", slice_index=node,
        )
        for number, (node, _) in enumerate(owners)
    ]  # fmt: skip


TOPOLOGIES: dict[str, list[Device]] = {
    **{f"{kind} {sides}": tpus(f"{kind}:{sides}") for kind in ("v4", "v5p")
       for sides in ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")},
    **{f"{kind} {sides}": tpus(f"{kind}:{sides}") for kind in ("v5e", "v6e")
       for sides in ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")},
    "v5e 2x4, one host": tpus("v5e:2x4", host=(2, 4, 1)),
    "v6e 4x4, two slices": tpus("v6e:4x4", slices=2),
    "v5p 2x2x4, four slices": tpus("v5p:2x2x4", slices=4),
    **{f"{n} node of {g} GPUs" if n == 1 else f"{n} nodes of {g} GPUs": gpus(*[g] * n)
       for g in (2, 4, 8) for n in ((1, 2, 3, 4, 6, 8) if g == 8 else (1, 2, 8))},
    "2 nodes of 8 GPUs, a process each": gpus(8, 8, each=True),
    "nodes of 8 and 4 GPUs": gpus(8, 4),
}  # fmt: skip
"""By name: what `jax.devices()` is there."""


def sizes_on(mesh: Mapping[str, int], count: int) -> dict[str, int] | None:
    """One of `MESHES` on `count` devices; None where it does not divide them."""
    sizes = dict(mesh)
    if -1 in sizes.values():
        sizes = {axis: count if size == -1 else size for axis, size in sizes.items()}
    data, left = divmod(count, math.prod(sizes.values()))
    return None if left else {"data": data, **sizes}


def before(sizes: Mapping[str, int], devices: Sequence[Any], batch_size: int) -> str:
    """What happened up to version 0.1: see the first lines."""
    import jax
    from jax.sharding import AxisType

    from ultrapixel_jax.sharding import MESH_AXES
    from ultrapixel_jax.training.inputs import rows_of_processes

    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    try:
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    except (ValueError, NotImplementedError, AssertionError):
        return "error"
    rows = rows_of_processes(mesh, batch_size).values()
    one = [len(r) == r[-1] - r[0] + 1 and not batch_size % len(r) and not r[0] % len(r) for r in rows]
    return "ok" if all(one) else "hung" if any(one) else "refused"


def now(sizes: Mapping[str, int], devices: Sequence[Any], batch_size: int) -> str:
    """What happens: "ok", or the line of the refusal."""
    from ultrapixel_jax.errors import UserError
    from ultrapixel_jax.sharding import make_mesh
    from ultrapixel_jax.training.inputs import rows_of_processes

    try:
        rows = rows_of_processes(make_mesh(sizes, devices), batch_size)
    except UserError as error:
        return str(error)
    whole = np.unique(np.concatenate(list(rows.values())))
    assert np.array_equal(whole, np.arange(batch_size))
    return "ok"


def table() -> str:
    """Markdown: a row for each topology, a column for each mesh."""
    titles = [
        ",".join(f"{axis}={'N' if n == -1 else n}" for axis, n in mesh.items()) or "data=N" for mesh in MESHES
    ]
    lines = ["| N devices | " + " | ".join(titles) + " |", "|---|" + "---|" * len(MESHES)]
    for name, devices in TOPOLOGIES.items():
        cells = []
        for mesh in MESHES:
            sizes = sizes_on(mesh, len(devices))
            if sizes is None:
                cells.append("–")
                continue
            old, new = (f(sizes, devices, 2 * len(devices)) for f in (before, now))
            cells.append(old if old == new else f"{old} → {new}")
        lines.append(f"| {name} ({len(devices)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def record(file: Path) -> None:
    """Write the devices of `RECORDED` as the TPU compiler has them; needs libtpu, and nothing of ours."""
    from jax.experimental import topologies

    out = {}
    for name in RECORDED:
        # A v4 chip is two devices to the compiler, unless it is told of what jax calls one on a machine.
        more = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
        devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
        out[name] = {
            "device_kind": devices[0].device_kind,
            "id, process, coordinates": [[d.id, d.process_index, *d.coords] for d in devices],
        }
    text = json.dumps({"made by": "benchmarks/topologies.py, libtpu 0.0.42", **out}, indent=0)
    file.write_text(text.replace(",\n", ",").replace("[\n", "[").replace("\n]", "]") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        p = commands.Parser("python -m benchmarks.topologies", __doc__)
        p.option("--record", Path, "write the TPU compiler's order there", metavar="FILE")
        file = p.read(argv).record
        if file is None:
            print(table())
        else:
            record(file)

    return commands.run(run, interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
