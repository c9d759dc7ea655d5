"""Our checkpoint directory: exact round trips onto any placement, all or nothing, one line per damage."""

import dataclasses
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ultrapixel_jax import config
from ultrapixel_jax.checkpoints import directory as checkpoint
from ultrapixel_jax.checkpoints.directory import (
    CheckpointWriter,
    ComponentInfo,
    identity,
    read_manifest,
    restore,
)
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components

BF16 = np.dtype(ml_dtypes.bfloat16)
INFO = ComponentInfo(config={"width": 8}, variant="lite", source="stage_c.safetensors")


def make_variables(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "dense": {
                "kernel": rng.normal(size=(16, 8)).astype(BF16),
                "bias": rng.normal(size=8).astype(np.float32),
            },
            "down_0": {"conv": {"kernel": rng.normal(size=(3, 3, 4, 8)).astype(np.float32)}},
            "scale": np.array(0.5, np.float32),
        },
        "batch_stats": {
            "norm": {"mean": rng.normal(size=8).astype(np.float32), "steps": np.array(3, np.int32)}
        },
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = tmp_path / "ckpt"
    with CheckpointWriter(directory) as writer:
        writer.add("stage_c", make_variables(), INFO)
    return directory


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def refused(directory: Path, *words: str, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        restore(directory, "stage_c", **arguments)
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert word in message, message
    return message


def test_round_trip(saved: Path) -> None:
    variables = make_variables()
    got = restore(saved, "stage_c", like=variables)
    assert_equal(got, variables)
    assert {a.devices().pop() for a in jax.tree.leaves(got)} == {jax.devices()[0]}
    assert sorted(p.name for p in saved.parent.iterdir()) == ["ckpt"]
    assert sorted(p.name for p in saved.iterdir()) == ["checksums.json", "manifest.json", "stage_c"]


def test_compressed(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).normal(size=(512, 512)).astype(BF16)
    sizes = []
    for compressed in (False, True):
        with CheckpointWriter(tmp_path / str(compressed), compressed=compressed) as writer:
            writer.add("stage_c", {"params": {"kernel": kernel}}, INFO)
        assert_equal(restore(tmp_path / str(compressed), "stage_c"), {"params": {"kernel": kernel}})
        sizes.append(sum(p.stat().st_size for p in (tmp_path / str(compressed)).rglob("*") if p.is_file()))
    assert kernel.nbytes < sizes[0] and sizes[1] < 0.85 * sizes[0]


def test_manifest(tmp_path: Path) -> None:
    tokens = np.arange(77, dtype=np.int64)[None]
    info = ComponentInfo(
        config=config.to_dict(config.StageCConfig()),
        variant="3.6B",
        source="a.safetensors",
        source_sha256="0" * 64,
        layout="released",
        kept_aside={"position_ids": tokens, "half": np.ones(2, BF16), "count": np.array(5)},
    )
    (tmp_path / "vocab.json").write_text("{}")
    with CheckpointWriter(tmp_path / "new" / "ckpt") as writer:
        writer.add("stage_c", make_variables(), info)
        writer.add("other", make_variables(1), INFO)
        writer.add_file(tmp_path / "vocab.json", "tokenizer/vocab.json")
    directory = tmp_path / "new" / "ckpt"
    manifest = read_manifest(directory)
    assert list(manifest.components) == ["stage_c", "other"]
    got = manifest.components["stage_c"]
    assert config.from_dict(config.StageCConfig, got.config) == config.StageCConfig()
    assert (got.variant, got.source, got.source_sha256, got.layout) == (
        "3.6B", "a.safetensors", "0" * 64, "released")  # fmt: skip
    assert (got.tensors, got.parameters) == (6, 16 * 8 + 8 + 3 * 3 * 4 * 8 + 1)
    assert got.dtype == "bfloat16,float32,int32"
    for name, array in info.kept_aside.items():
        kept = got.kept_aside[name]
        assert (kept.dtype, kept.shape, kept.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert got.sha256 != manifest.components["other"].sha256
    assert (directory / "tokenizer/vocab.json").read_text() == "{}"


def test_identity(tmp_path: Path) -> None:
    def write(name: str, change: Any = None, info: ComponentInfo = INFO) -> str:
        variables = make_variables()
        if change is not None:
            change(variables["params"])
        with CheckpointWriter(tmp_path / name) as writer:
            writer.add("stage_c", variables, info)
        return identity(tmp_path / name)

    def flip(params: dict) -> None:
        params["dense"]["kernel"].view(np.uint16)[5, 5] ^= 1

    def rename(params: dict) -> None:
        params["dense2"] = params.pop("dense")

    def reshape(params: dict) -> None:
        params["dense"]["kernel"] = params["dense"]["kernel"].reshape(8, 16)

    first = write("a")
    assert len(first) == 16
    assert write("b") == first
    different = [write("c", flip), write("d", rename), write("e", reshape),
                 write("f", info=ComponentInfo(config={"width": 9}))]  # fmt: skip
    assert len({first, *different}) == 5


def test_contiguous_copies(tmp_path: Path) -> None:
    """Views are saved by value, and the identity is that of the values."""
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    for name, array in (("a", kernel.T), ("b", np.ascontiguousarray(kernel.T))):
        variables = {"params": {"kernel": array}}
        with CheckpointWriter(tmp_path / name) as writer:
            writer.add("stage_c", variables, INFO)
        assert_equal(restore(tmp_path / name, "stage_c"), {"params": {"kernel": kernel.T}})
        assert np.array_equal(variables["params"]["kernel"], kernel.T)
    assert identity(tmp_path / "a") == identity(tmp_path / "b")


def test_shardings(saved: Path) -> None:
    variables = make_variables()
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = {
        "params/dense/kernel": PartitionSpec("data", "model"),
        "params/dense/bias": PartitionSpec("model"),
    }
    seen = {}

    def place(path: str, struct: jax.ShapeDtypeStruct) -> NamedSharding:
        seen[path] = struct
        return NamedSharding(mesh, split.get(path, PartitionSpec()))

    got = restore(saved, "stage_c", shardings=place)
    assert_equal(got, variables)
    assert seen["params/down_0/conv/kernel"] == jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    assert len(seen) == 6
    kernel = got["params"]["dense"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec("data", "model"))
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 2)}

    tree = jax.tree.map(lambda a: a.sharding, got)
    again = restore(saved, "stage_c", shardings=tree)
    assert_equal(again, variables)
    assert jax.tree.map(lambda a: a.sharding, again) == tree

    everywhere = restore(saved, "stage_c", shardings=NamedSharding(mesh, PartitionSpec()))
    assert all(len(a.devices()) == 8 for a in jax.tree.leaves(everywhere))


def test_sharding_that_does_not_divide(saved: Path) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    refused(saved, "params/down_0/conv/kernel", "does not divide",
            shardings=lambda path, struct: NamedSharding(
                mesh, PartitionSpec("x" if path.endswith("conv/kernel") else None)
                if struct.shape else PartitionSpec()))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", jnp.bfloat16])
def test_dtype(saved: Path, dtype: Any) -> None:
    expected = jax.tree.map(
        lambda a: a if a.dtype == np.int32 else a.astype(jnp.dtype(dtype)), make_variables()
    )
    assert_equal(restore(saved, "stage_c", dtype=dtype), expected)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = restore(saved, "stage_c", dtype=dtype, shardings=lambda path, struct: NamedSharding(
        mesh, PartitionSpec("x" if path == "params/dense/kernel" else None)
        if struct.shape else PartitionSpec()))  # fmt: skip
    assert_equal(sharded, expected)


def test_like(saved: Path) -> None:
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_variables()))
    assert_equal(restore(saved, "stage_c", like=like), make_variables())
    like["params"]["dense"]["kernel"] = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    like["params"]["new"] = {"kernel": jax.ShapeDtypeStruct((1,), jnp.float32)}
    del like["params"]["down_0"]
    refused(
        saved,
        "params/dense/kernel has shape (16, 8), expected (8, 16)",
        "params/new/kernel is missing",
        "params/down_0/conv/kernel is unexpected",
        like=like,
    )


def test_unknown_component(saved: Path) -> None:
    with pytest.raises(UserError, match=r"no component 'stage_b', only stage_c"):
        restore(saved, "stage_b")


def data_files(directory: Path) -> list[Path]:
    return sorted(p for p in (directory / "stage_c").rglob("*") if p.is_file())


@pytest.mark.parametrize("verify", [True, False])
def test_missing_and_truncated_files(saved: Path, verify: bool) -> None:
    for file in data_files(saved):
        content = file.read_bytes()
        file.unlink()
        refused(saved, "missing", "stage_c", str(saved), "again", verify=verify)
        file.write_bytes(content[:-1])
        refused(saved, "bytes instead of", "stage_c", str(saved), "again", verify=verify)
        file.write_bytes(content)
    assert_equal(restore(saved, "stage_c", verify=verify), make_variables())


def test_flipped_bits(saved: Path) -> None:
    """Orbax alone would return other weights: its files carry no checksum of the values."""
    for file in data_files(saved):
        content = bytearray(file.read_bytes())
        for position in range(0, len(content), max(1, len(content) // 3)):
            content[position] ^= 4
            file.write_bytes(content)
            refused(saved, "checksum is wrong", "stage_c", str(saved), "again")
            content[position] ^= 4
        file.write_bytes(content)


# Orbax gives up with reads under way, which complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_files_that_orbax_cannot_read(saved: Path, name: str) -> None:
    """Without the checksums, what Orbax raises still becomes one line."""
    file = saved / "stage_c" / name
    file.write_bytes(b"x" * file.stat().st_size)
    refused(saved, "cannot be read", "stage_c", str(saved), "again", verify=False)
    gc.collect()


def test_bad_directories(tmp_path: Path, saved: Path) -> None:
    def message(directory: Path) -> str:
        texts = set()
        for function in (read_manifest, identity, lambda d: restore(d, "stage_c")):
            with pytest.raises(UserError) as caught:
                function(directory)
            texts.add(str(caught.value))
        assert len(texts) == 1 and "\n" not in str(texts)
        return texts.pop()

    assert "does not exist" in message(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    assert "is not a checkpoint directory" in message(tmp_path / "other")
    content = json.loads((saved / "manifest.json").read_text())
    extra = {"stage_c": content["components"]["stage_c"] | {"x": 1}}
    for bad, word in (
        ("{", "cannot be read"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps(content | {"version": 99}), "newer"),
        (json.dumps(content | {"components": {"stage_c": {}}}), "damaged"),
        (json.dumps(content | {"components": extra}), "damaged"),
    ):
        (saved / "manifest.json").write_text(bad)
        assert word in message(saved)
    (saved / "manifest.json").write_text(json.dumps(content))
    for bad in ("{", "{}", "[]", '{"stage_c/_METADATA": 3}'):
        (saved / "checksums.json").write_text(bad)
        refused(saved, "checksums.json")
    (saved / "checksums.json").unlink()
    refused(saved, "checksums.json")


def test_existing_target(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    target.mkdir()
    with CheckpointWriter(target) as writer:  # empty: fine
        writer.add("stage_c", make_variables(), INFO)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="not empty"), CheckpointWriter(target):
        raise AssertionError
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="no directory"), CheckpointWriter(tmp_path / "file"):
        raise AssertionError
    with pytest.raises(UserError, match="cannot be written"), CheckpointWriter(tmp_path / "file" / "ckpt"):
        raise AssertionError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_nothing_left_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), CheckpointWriter(tmp_path / "deep" / "er" / "ckpt") as writer:
        writer.add("stage_c", make_variables(), INFO)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_target_that_appears_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"), CheckpointWriter(tmp_path / "ckpt") as writer:
        (tmp_path / "ckpt").mkdir()
        (tmp_path / "ckpt" / "mine").write_text("mine")
        writer.add("stage_c", make_variables(), INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["mine"]


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = checkpoint.shutil._ntuple_diskusage(1000, 900, 100)  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="no space left"), CheckpointWriter(tmp_path / "ckpt") as writer:
        writer.add("stage_c", make_variables(), INFO)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys, numpy as np
from ultrapixel_jax.checkpoints.directory import *
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.checkpoints.sources import Sources
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with CheckpointWriter(sys.argv[1]) as writer:
        writer.add("big", {"params": {"a": np.ones((2048, 1024), np.float32)}}, ComponentInfo({}))
except UserError as error:
    print("refused:", error)
"""


def test_disk_that_fills_up(tmp_path: Path) -> None:
    """A write that the kernel refuses half-way, here through a limit on the size of files."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "ckpt")]
    root = Path(checkpoint.__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stdout.startswith("refused: no space left"), result.stdout + result.stderr
    assert result.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


SAVE = """
import resource, sys, numpy as np, ml_dtypes
from ultrapixel_jax.checkpoints.directory import *
rows = {f"layer_{i}": {"kernel": np.full((1024, 8192), i, ml_dtypes.bfloat16).T} for i in range(24)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with CheckpointWriter(sys.argv[1]) as writer:
    writer.add("big", {"params": rows}, ComponentInfo({}))
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_save_holds_no_second_copy(tmp_path: Path) -> None:
    """A 400 MB tree of views is saved with less than half of it on top, so stage C's 7.2 GB fit in 9."""
    command = [sys.executable, "-c", SAVE, str(tmp_path / "ckpt")]
    root = Path(checkpoint.__file__).parent.parent
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    before, after = (int(word) * 1024 for word in output.split())
    assert after - before < 200e6


def test_misuse(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "ckpt") as writer:
        writer.add("stage_c", make_variables(), INFO)
        with pytest.raises(ValueError, match="added before"):
            writer.add("stage_c", make_variables(), INFO)
        with pytest.raises(ValueError, match="identifier"):
            writer.add("../x", make_variables(), INFO)
        with pytest.raises(TypeError, match="numpy"):
            writer.add("other", {"params": {"a": 3.0}}, INFO)
        with pytest.raises(ValueError, match="leads out"):
            writer.add_file(tmp_path / "x", "../../x")
        with pytest.raises(UserError, match="cannot be written"):
            writer.add_file(tmp_path / "absent", "tokenizer/x")


def test_a_network_of_other_shapes_is_refused_at_loading_unless_it_is_traced_next(tmp_path: Path) -> None:
    small = config.PreviewerConfig(channels=(8, 8, 8, 8))
    variables = components.initialise("previewer", dataclasses.replace(small, c_latent=4), jax.random.key(0))
    with CheckpointWriter(tmp_path / "ckpt") as writer:
        writer.add("previewer", jax.tree.map(np.array, variables), ComponentInfo(config.to_dict(small)))
    with pytest.raises(UserError, match="has shape"):
        Sources([tmp_path / "ckpt"]).load("previewer", small)
    loaded = Sources([tmp_path / "ckpt"], traced=True).load("previewer", small)
    latent = jnp.zeros((1, 4, 4, small.c_latent))
    with pytest.raises(UserError, match="has shape"):
        jax.eval_shape(components.build("previewer", small).apply, loaded, latent)
