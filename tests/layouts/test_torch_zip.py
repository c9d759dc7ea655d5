"""torch's zip files: right values, nothing run, every kind of damage one clear error."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.layouts.reading import as_numpy, assert_same, one, refused, tensors
from ultrapixel_jax.errors import UserError


def test_torch_zip(tmp_path: Path) -> None:
    # Released files of this format are called .safetensors.
    path = tmp_path / "model.safetensors"
    torch.save({**tensors(), "step": 7, "config": {"a": 1}, "dtype": torch.float32}, path)
    with path.open("rb") as opened:  # by name torch would take it for safetensors
        expected = torch.load(opened)
    file = one(path)
    assert file.format == "torch zip"
    assert file.skipped == ("step", "config", "dtype")
    assert list(file.specs) == list(tensors())
    for key, (shape, dtype) in file.specs.items():
        assert_same(file.read(key), np.ascontiguousarray(as_numpy(expected[key])).reshape(shape))
        assert file.read(key).dtype == dtype


@pytest.mark.parametrize("nested", [False, True])
def test_torch_state_dict(tmp_path: Path, nested: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()  # an OrderedDict with a _metadata attribute
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "state_dict": state} if nested else state, path)
    file = one(path)
    assert set(file.specs) == set(state)
    assert file.skipped == (("epoch",) if nested else ())
    for key in state:
        assert_same(file.read(key), as_numpy(state[key]))


def test_compressed_zip(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(9.0), "b": torch.ones(3)}, tmp_path / "plain.pt")
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert_same(one(path).read("a"), np.arange(9, dtype=np.float32))


def rewrite(path: Path, change: dict[str, bytes]) -> None:
    """Replace members of a torch zip, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(name for name in members if name.endswith("/data.pkl")).removesuffix("data.pkl")
    members |= {root + name: data for name, data in change.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


class Malicious:
    """Unpickling an instance the usual way runs a shell command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["top", "beside", "inside"])
def test_malicious_pickle(tmp_path: Path, place: str) -> None:
    target = tmp_path / "harm"
    evil = Malicious(target)
    content = {
        "top": evil,
        "beside": {"weight": torch.ones(2), "x": evil, "bias": torch.ones(2)},
        "inside": {"state_dict": OrderedDict(a=torch.ones(2)), "history": [1, (2, {"y": evil})]},
    }[place]
    path = tmp_path / "model.safetensors"
    torch.save(content, path)
    refused(path, "system", "refused", "nothing in the file was run")
    assert not target.exists()
    with path.open("rb") as opened:
        torch.load(opened, weights_only=False)  # the attack itself works
    assert target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04cbuiltins\neval\n(V1+1\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        b"(S'touch x'\nios\nsystem\n.",
        b"ctorch\nload\n(Vx\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}V__name__\nVx\nsb.",  # a state for one of our own functions
        b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI1000000\ntQ.",
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\ntQI0\n(I9\nt(I1\ntI00\nNtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\ntQI-1\n(I1\nt(I1\ntI00\nNtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\ntQI0\n(I9999999999\nt(I0\ntI00\nNtR.",
        b"\x80\x02N\x94r\xff\xff\xff\xff.",  # the C unpickler would make room for 2^32 entries
        b"",
        b"garbage",
        pickle.dumps([1, 2]),
        pickle.dumps({"a": 1}),
    ],
)  # fmt: skip
def test_hostile_descriptions(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path)
    rewrite(path, {"data.pkl": pickled})
    refused(path)


def test_big_endian_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path)
    rewrite(path, {"byteorder": b"big"})
    refused(path, "big-endian")


def test_torch_flips(tmp_path: Path) -> None:
    """A flipped bit anywhere is noticed, or changes no tensor."""
    content = {"a": torch.arange(300.0), "b": torch.arange(5, dtype=torch.bfloat16), "c": torch.ones(2, 3).T}
    path = tmp_path / "model.pt"
    torch.save(content, path)
    original = path.read_bytes()
    expected = {key: one(path).read(key) for key in content}
    rng = random.Random(0)
    noticed = 0
    for position in sorted(rng.sample(range(len(original)), 900)):
        data = bytearray(original)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            file = one(path)
            read = {key: file.read(key) for key in file.specs}
        except UserError:
            noticed += 1
            continue
        assert read.keys() == expected.keys(), position
        for key, array in read.items():
            assert_same(array, expected[key])
    assert noticed > 500
