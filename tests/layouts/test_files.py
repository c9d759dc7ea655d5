"""Reading and writing released files: right values, nothing run, every kind of damage one clear error."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layouts.reading import BF16, as_numpy, assert_same, one, refused, tensors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.files import (
    SAFETENSORS_DTYPES,
    check_finite,
    find_files,
    open_file,
    write_safetensors,
)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "torch":
        torch.save({"a": torch.randn(50, 20), "b": torch.randn(9)}, path)
    else:
        safetensors.torch.save_file({"a": torch.randn(50, 20), "b": torch.randn(9)}, path)
    original = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 20, 100, len(original) // 2, len(original) - 100, len(original) - 1):
        path.write_bytes(original[:size])
        refused(path, "again")


def test_safetensors(tmp_path: Path) -> None:
    content = {key: tensor.contiguous().clone() for key, tensor in tensors().items()}
    path = tmp_path / "weights"  # recognised without a suffix
    safetensors.torch.save_file(content, path)
    file = one(path)
    assert file.format == "safetensors" and file.sha256 is None
    assert file.specs.keys() == content.keys()
    for key, tensor in content.items():
        assert file.specs[key] == (tuple(tensor.shape), as_numpy(tensor).dtype)
        assert_same(file.read(key), as_numpy(tensor))


def test_safetensors_nested_in_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"state_dict.x": torch.ones(2), "state_dict.y.z": torch.zeros(3)}, path)
    file = one(path)
    assert set(file.specs) == {"x", "y.z"}
    assert_same(file.read("y.z"), np.zeros(3, np.float32))


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        raw({"a": entry(0, 8)}, bytes(8), length=10**9),
        raw({"a": entry(0, 8)}, bytes(8), length=2**63 + 5),
        raw({"a": entry(0, 8)}, bytes(8), length=20),
        raw({"a": entry(0, 16)}, bytes(8)),
        raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        raw({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        raw({"a": entry(0, 8)}, bytes(12)),
        raw({"a": entry(0, 8, [3])}, bytes(8)),
        raw({"a": entry(8, 0, [2])}, bytes(8)),
        raw({"a": entry(0, 8, [2**33, 2**33])}, bytes(8)),
        raw({"a": entry(0, 8, dtype="F99")}, bytes(8)),
        raw({"a": entry(0, 8, dtype="C64", shape=[1])}, bytes(8)),
        raw(b"{not json", bytes(8)),
        raw(b'{"a": "\xff"}', bytes(8)),
        raw({}, b""),
    ],
)
def test_bad_safetensors_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path)


def test_safetensors_header_flips(tmp_path: Path) -> None:
    """No checksum protects the header: a flip is a UserError or gives a header that is consistent."""
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"abc": torch.ones(2, 3), "def": torch.ones(4, dtype=torch.bfloat16)}, path)
    original = path.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    noticed = 0
    for position in range(end):
        for bit in range(8):
            data = bytearray(original)
            data[position] ^= 1 << bit
            path.write_bytes(data)
            try:
                file = one(path)
                size = sum(file.read(key).nbytes for key in file.specs)
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                noticed += 1
            else:
                assert len(file.specs) == 2 and size == len(original) - end
    assert noticed > 4 * end


@pytest.mark.parametrize("name", ["model.safetensors.sha256", "SHA256SUMS"])
def test_sidecar(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2000)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / name).write_text(f"{'0' * 64}  other.bin\n{digest.upper()} *model.safetensors\n"
                                 if name == "SHA256SUMS" else f"{digest}  model.safetensors\n")  # fmt: skip
    assert one(path).sha256 == digest
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the data, where the format itself notices nothing
    path.write_bytes(data)
    refused(path, "sha256", "again")
    (tmp_path / name).write_text("nonsense  model.safetensors\n")
    with pytest.raises(UserError, match="holds no sha256"):
        one(path)


def make_shards(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    places = {}
    for i in range(3):
        name = f"model-0000{i}-of-00003.safetensors"
        shard = {f"layer{i}.w": torch.full((2, 2), float(i)), f"layer{i}.b": torch.ones(1)}
        safetensors.torch.save_file(shard, directory / name)
        places |= dict.fromkeys(shard, name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": places}))
    return index


def test_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "m")
    for path in (tmp_path, index):
        file = one(path)
        assert (file.path, file.format, len(file.parts)) == (index, "safetensors shards", 3)
        assert len(file.specs) == 6
        assert_same(file.read("layer2.w"), np.full((2, 2), 2, np.float32))


def test_bad_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "m")
    content = json.loads(index.read_text())
    last = index.with_name("model-00002-of-00003.safetensors")
    for change, word in (
        ({"layer2.extra": last.name}, "is not in"),
        ({"layer2.w": "../elsewhere.safetensors"}, "no file beside it"),
        ({"layer2.w": "model-00001-of-00003.safetensors"}, "is not in"),
    ):
        index.write_text(json.dumps({"weight_map": content["weight_map"] | change}))
        refused(index, word)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in content["weight_map"].items() if "w" in k}}))
    refused(index, "does not list")
    index.write_text(json.dumps(content)[:-9])
    refused(index, "not a valid index")
    index.write_text(json.dumps(content))
    last.unlink()
    refused(index, last.name, "missing")


def test_find_files(tmp_path: Path) -> None:
    for name in ("b/model.safetensors", "a.ckpt", "c/deep/x", ".cache/part.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({"w": torch.ones(1)}, path)
    (tmp_path / ".cache/part.safetensors").write_bytes(b"half")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "c/deep/x")
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "config.json").write_text('{"weight_map": 3}')
    (tmp_path / "other.index.json").write_text("[]")
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "empty.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    found = [file.path.relative_to(tmp_path).as_posix() for file in find_files([tmp_path, tmp_path / "b"])]
    assert found == ["a.ckpt", "b/model.safetensors", "link.safetensors"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"<html><head>404", "web page"),
        (b'{"error": "not found"}', "neither"),
        (b"", "empty"),
        (b"plain text", "neither"),
        (b"PK\x03\x04 and so on", "again"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pth"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes, word: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, word)
    with pytest.raises(UserError):
        find_files([tmp_path])


def test_nothing_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        refused(path)
    other = tmp_path / "notes.txt"
    other.write_text("words")
    refused(other, "neither")  # named by the user, so not passed over
    assert open_file(other, required=False) is None


def test_check_finite() -> None:
    for dtype in (np.float16, np.float32, np.float64, BF16):
        good = np.array([0.0, -1.0, 3.0, np.finfo(np.float16).max], np.float32).astype(dtype)
        check_finite("a", good)
        check_finite("a", good[::2])
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            bad = np.zeros((700, 2000), dtype)
            bad[-1, -1] = bad[3, 4] = value
            with pytest.raises(UserError, match=r"tensor block\.w: 2 of 1400000"):
                check_finite("block.w", bad)
            with pytest.raises(UserError, match=r"2 of"):
                check_finite("block.w", bad.T)
    check_finite("count", np.array(7))
    check_finite("empty", np.zeros((0, 3), np.float32))


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda key: not key.startswith(("state_dict.", "__metadata__"))
        ),
        st.tuples(
            st.sampled_from(list(SAFETENSORS_DTYPES.values())), st.lists(st.integers(0, 5), max_size=4)
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32 - 1),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, layout: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = {}
    for key, (dtype, shape) in layout.items():
        size = int(np.prod(shape)) * dtype.itemsize
        data = rng.integers(0, 2 if dtype.kind == "b" else 256, size, np.uint8)
        content[key] = data.view(dtype).reshape(shape)
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    specs = {key: (array.shape, array.dtype) for key, array in content.items()}
    write_safetensors(path, specs, content.__getitem__, {"a": "b"})
    file = one(path)
    library = safetensors.numpy.load_file(path)
    assert file.specs.keys() == content.keys() == library.keys()
    for key, expected in content.items():
        assert_same(file.read(key), expected)
        assert library[key].tobytes() == expected.tobytes()


def test_write_takes_views(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_safetensors(tmp_path / "x", {"a": (array.shape, array.dtype)}, lambda key: array)
    assert_same(one(tmp_path / "x").read("a"), np.ascontiguousarray(array))


def test_failing_write_leaves_nothing(tmp_path: Path) -> None:
    spec = ((3,), np.dtype(np.float32))

    def broken(key: str) -> np.ndarray:
        if key == "b":
            raise KeyboardInterrupt
        return np.ones(3, np.float32)

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "x", {"a": spec, "b": spec}, broken)
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x", {"a": spec}, lambda key: np.ones(3))
    with pytest.raises(UserError, match="cannot be written"):
        write_safetensors(tmp_path / "absent" / "x", {"a": spec}, broken)
    assert list(tmp_path.iterdir()) == []


def test_write_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_safetensors(path, {}, np.zeros)
    path.unlink()

    def meanwhile(key: str) -> np.ndarray:
        path.write_text("mine")
        return np.ones(3, np.float32)

    with pytest.raises(UserError, match="exists"):
        write_safetensors(path, {"a": ((3,), np.dtype(np.float32))}, meanwhile)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and path.read_text() == "mine"


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **k: opened(
        Path("/dev/full") if mode == "xb" else self, "wb" if mode == "xb" else mode, **k))  # fmt: skip
    with pytest.raises(UserError, match="no space left"):
        write_safetensors(tmp_path / "x", {"a": ((3,), np.dtype("f4"))}, lambda key: np.ones(3, "f4"))
    assert list(tmp_path.iterdir()) == []
