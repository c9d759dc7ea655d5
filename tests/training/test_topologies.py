"""Every mesh on slices and nodes that are not there: who holds which rows, and that they make the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.topologies import MESHES, TOPOLOGIES, before, gpus, now, sizes_on, tpus
from tests.training.tiny_run import ROOT
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import MESH_AXES, batch_sharding, make_mesh, nearest
from ultrapixel_jax.training import machines
from ultrapixel_jax.training.config import MeshConfig
from ultrapixel_jax.training.inputs import held, rows_of_processes

RECORDED = {
    name: value
    for name, value in json.loads((ROOT / "tests" / "topologies.json").read_text()).items()
    if ":" in name
}
COMBINATIONS = [
    (name, sizes)
    for name, devices in TOPOLOGIES.items()
    for mesh in MESHES
    if (sizes := sizes_on(mesh, len(devices)))
]


@pytest.mark.parametrize("name", RECORDED)
def test_devices_are_those_of_the_compiler(name: str) -> None:
    devices = tpus(name)
    assert [[d.id, d.process_index, *d.coords] for d in devices] == RECORDED[name]["id, process, coordinates"]
    assert {d.device_kind for d in devices} == {RECORDED[name]["device_kind"]}


def test_every_mesh_starts() -> None:
    assert len(COMBINATIONS) > 350
    for name, sizes in COMBINATIONS:
        devices = TOPOLOGIES[name]
        mesh = make_mesh(sizes, devices)
        assert dict(mesh.shape) == {axis: sizes.get(axis, 1) for axis in MESH_AXES}, name
        assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in devices), name


def test_rows_are_those_of_the_devices() -> None:
    """Against a batch that is dealt by hand, along the first two axes of the mesh."""
    for name, sizes in COMBINATIONS:
        mesh = make_mesh(sizes, TOPOLOGIES[name])
        data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
        batch = np.arange(3 * data * fsdp)
        by_hand: dict[int, set[int]] = {}
        for place in np.ndindex(mesh.devices.shape):
            first = 3 * (place[0] * fsdp + place[1])
            device: Any = mesh.devices[place]
            rows = by_hand.setdefault(device.process_index, set())
            rows |= {first, first + 1, first + 2}
        found = rows_of_processes(mesh, len(batch))
        assert {process: set(rows.tolist()) for process, rows in found.items()} == by_hand, (name, sizes)
        assert all(np.array_equal(rows, np.unique(rows)) for rows in found.values())
        # What each device is given of what its process has read.
        indices = batch_sharding(mesh).devices_indices_map(batch.shape)
        for place in np.ndindex(mesh.devices.shape):
            device: Any = mesh.devices[place]
            rows = found[device.process_index]
            first = 3 * (place[0] * fsdp + place[1])
            given = batch[rows][held(rows, indices[device][0], len(batch))]
            assert given.tolist() == [first, first + 1, first + 2], (name, sizes)


LOADED: tuple[tuple[str, dict[str, int]], ...] = (
    ("v6e 4x4", {"data": 16}),
    ("v6e 4x4", {"fsdp": 8, "data": 2}),
    ("v5p 2x2x4", {"data": 8, "tensor": 2}),  # two processes hold the same rows
    ("2 nodes of 4 GPUs", {"data": 2, "rows": 4}),
    ("nodes of 8 and 4 GPUs", {"data": 12}),  # one holds twice as many
)


@pytest.mark.parametrize(("name", "sizes"), LOADED, ids=lambda x: str(x))
def test_batches_are_those_of_one_process(name: str, sizes: dict[str, int], latents: Path) -> None:
    mesh = make_mesh(sizes, TOPOLOGIES[name])
    batch_size = 2 * sizes["data"] * sizes.get("fsdp", 1)
    config = DataConfig(path=str(latents), cached=True, batch_size=batch_size)
    rows = rows_of_processes(mesh, batch_size)
    with Loader(config) as loader:
        loader.seek(3)
        whole = [next(loader) for _ in range(2)]
    seen = set()
    for own in rows.values():
        with Loader(config, rows=own) as loader:
            loader.seek(3)
            for batch in whole:
                part = next(loader)
                assert part["ids"] == [batch["ids"][row] for row in own]
                assert part["latent"].tobytes() == batch["latent"][own].tobytes()
        seen |= set(own.tolist())
    assert seen == set(range(batch_size))


def test_the_first_axes_cross_slow_networks() -> None:
    for name, sizes in (
        ("2 nodes of 8 GPUs", {"data": 2, "fsdp": 8}),
        ("8 nodes of 8 GPUs", {"data": 8, "fsdp": 2, "tensor": 4}),
        ("2 nodes of 8 GPUs, a process each", {"data": 4, "fsdp": 4}),
        ("v6e 4x4, two slices", {"data": 2, "fsdp": 8, "tensor": 2}),
        ("v5p 2x2x4, four slices", {"data": 2, "fsdp": 16, "rows": 2}),
    ):
        mesh = make_mesh(sizes, TOPOLOGIES[name])
        slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        assert (slices == slices[:, :, :1, :1]).all(), name  # no layer and no map crosses
        if sizes["data"] % len(np.unique(slices)) == 0:
            assert (slices == slices[:, :1]).all(), name


def test_what_jax_cannot_arrange_keeps_its_order() -> None:
    holes = [device for device in tpus("v6e:4x4") if device.process_index != 2]
    mesh = make_mesh({"data": 12}, holes)
    assert [d.id for d in mesh.devices.flat] == sorted(d.id for d in holes)


def test_a_refusal_names_a_mesh_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = tpus("v6e:4x4")
    for sizes, proposed in (
        ({"data": 3, "fsdp": 4}, "data=4,fsdp=4,tensor=1,rows=1"),
        ({"fsdp": 32}, "data=1,fsdp=16,tensor=1,rows=1"),
        ({"fsdp": 3, "tensor": 2}, "data=8,fsdp=1,tensor=2,rows=1"),
    ):
        assert f"there are 16; {proposed} starts here" in now(sizes, devices, 16)
        shape = {part.split("=")[0]: int(part.split("=")[1]) for part in proposed.split(",")}
        assert now(shape, devices, 16) == "ok"
    monkeypatch.setattr(machines, "make_mesh", lambda sizes: make_mesh(sizes, devices))
    monkeypatch.setattr("jax.devices", lambda: devices)
    with pytest.raises(UserError, match=r"= 3 does not divide the 16 devices .*; data=16,fsdp=1,"):
        machines.mesh_of(MeshConfig(fsdp=3))
    assert machines.mesh_of(MeshConfig(fsdp=8)).shape["data"] == 2
    devices = gpus(8, 4)
    with pytest.raises(UserError, match="some processes have 4 devices and others 8"):
        machines.mesh_of(MeshConfig())
    devices = gpus(8, 4, each=True)
    assert machines.mesh_of(MeshConfig()).shape["data"] == 12


@given(st.lists(st.integers(1, 64), min_size=4, max_size=4), st.integers(1, 4096))
def test_the_nearest_mesh_has_the_devices(shape: list[int], count: int) -> None:
    sizes = nearest(shape, count)
    assert math.prod(sizes) == count
    assert all(size % n == 0 for size, n in zip(shape[1:], sizes[1:]))
    if math.prod(shape) == count:
        assert list(sizes) == shape


def test_a_batch_that_does_not_divide_is_refused_everywhere() -> None:
    """By what all processes know, so that none goes on alone."""
    mesh = make_mesh({"data": 12}, gpus(8, 4))
    with pytest.raises(UserError, match=r"batch_size 16 does not .*; take a multiple of 12"):
        rows_of_processes(mesh, 16)
    with pytest.raises(UserError, match="accumulate 4 makes parts of 6 examples"):
        rows_of_processes(mesh, 24, 4)


def test_what_was_refused_before() -> None:
    """The first line of the table in the manual, so that it is not about fakes that always start."""
    devices: list[Any] = tpus("v6e:4x4")
    outcomes = [before(sizes, devices, 32) for mesh in MESHES if (sizes := sizes_on(mesh, 16))]
    assert outcomes[:4] == ["hung", "refused", "error", "hung"]
