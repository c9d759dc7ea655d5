"""Buckets beside local paths: what they hold is read, what they refuse is one line; files are written whole.

`tests/launch/buckets_here.py` does the same with a server.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sample
import train
from convert.__main__ import main as convert
from tests.training.tiny_run import STAGE_C
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, restore
from ultrapixel_jax.checkpoints.manifest import ComponentInfo, identity, read_manifest, verify_files
from ultrapixel_jax.checkpoints.runs import COMMITTED, RunWeights, is_run, saved_steps
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, Tokenizer
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import bucket_errors, place, refusal, write_whole


def theirs(module: str) -> Exception:
    """An exception of another package's."""
    return type("Error", (Exception,), {"__module__": module})("too many\nrequests")


def caused(error: Exception) -> Exception:
    outer = RuntimeError("saving failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("Please install gcsfs to access Google Storage"), "pip install 'ultrapixel_jax[gcs]'"),
        (ModuleNotFoundError("No module named 'google.cloud'"), "pip install 'ultrapixel_jax[gcs]'"),
        (OSError("Forbidden: http://a/b\nno"), "Forbidden: http://a/b no; check its name"),
        (theirs("gcsfs.retry"), "too many requests; check"),
        (theirs("aiohttp.client_exceptions"), "your credentials and the network"),
        (theirs("google.auth.exceptions"), "your credentials and the network"),
        (ValueError("PERMISSION_DENIED: Error writing gs://b/k"), "PERMISSION_DENIED"),
        (caused(theirs("google.api_core.exceptions")), "too many requests"),
        (ValueError("a wrong shape"), None),
        (ModuleNotFoundError("No module named 'torch'"), None),
        (FileNotFoundError(2, "No such file"), None),
    ],
)
def test_what_a_bucket_says(error: Exception, said: str | None) -> None:
    found = refusal(error)
    assert (found is None) == (said is None)
    assert said is None or said in found
    assert "\n" not in (found or "")
    if said:
        with pytest.raises(UserError, match=r"^gs://b/k cannot be reached: "), bucket_errors("gs://b/k"):
            raise error
    with pytest.raises(type(error)), bucket_errors("/local"):  # of local paths others tell
        raise error


def test_commands_name_the_package_that_a_bucket_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert sample.main(["--checkpoint", "gs://b/c", "--prompt", "a"]) == 2
    assert convert(["--export", "gs://b/c", str(tmp_path / "out")]) == 2
    assert convert(["gs://b/c", str(tmp_path / "out")]) == 2
    assert (
        train.main([str(STAGE_C), "--data.path", "gs://b/d", "--data.batch-size", "8", "--output", "run"])
        == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    for line in said:
        assert line.startswith("error: ")
        assert line.endswith("pip install 'ultrapixel_jax[gcs]'")
    assert convert(["--export", "run", "gs://b/out"]) == 2
    assert "write to a local directory" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["gs://run", "gs://run/"])
def test_a_checkpoint_that_is_not_committed_does_not_count(path: str, buckets: Path) -> None:
    """Orbax writes in place into a bucket, and the commit file last."""
    shutil.rmtree(buckets / "run", ignore_errors=True)
    for step in (2, 10, 30):
        data = buckets / "run" / "checkpoints" / str(step) / "data"
        data.mkdir(parents=True)
        (data / "metadata").write_text(json.dumps({"checksums": {"params": step}}))
        (data.parent / COMMITTED).touch()
    (buckets / "run" / "config.json").write_text("{}")
    manifest = {"version": 1, "stacked": {"stage_c": False}, "ema": False, "model": {}, "sources": [],
                "random_seed": None}  # fmt: skip
    (buckets / "run" / "run.json").write_text(json.dumps(manifest))
    assert is_run(path)
    assert saved_steps(path) == [2, 10, 30]
    (buckets / "run" / "checkpoints" / "30" / COMMITTED).unlink()
    run = RunWeights.open(path)
    assert (run.step, run.checksums) == (10, {"params": 10})
    for step in (2, 10):
        (buckets / "run" / "checkpoints" / str(step) / COMMITTED).unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        RunWeights.open(path)
    assert saved_steps(buckets / "run") == [2, 10, 30], "what is renamed when whole needs no such file"
    assert saved_steps("gs://run/none") == []


def test_a_converted_checkpoint_in_a_bucket(buckets: Path, tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "checkpoint") as writer:
        writer.add("other", {"params": {"a": np.arange(6.0)}}, ComponentInfo({"x": 1}))
        for file in BYTE_TOKENIZER.iterdir():
            writer.add_file(file, f"tokenizer/{file.name}")
    shutil.copytree(tmp_path / "checkpoint", buckets / "converted")
    there = place("gs://converted")
    assert read_manifest(there) == read_manifest(tmp_path / "checkpoint")
    assert identity(there) == identity(tmp_path / "checkpoint")
    sources = Sources(["gs://converted"])
    assert list(sources.entries) == ["other"]
    assert (
        Tokenizer(sources.tokenizer)(["a cat"])[0].tolist()
        == Tokenizer(BYTE_TOKENIZER)(["a cat"])[0].tolist()
    )
    with pytest.raises(UserError, match="gs://converted has no component 'none', only other"):
        restore(there, "none")
    verify_files(there, "other", True)
    file = max((p for p in (buckets / "converted" / "other").rglob("*") if p.is_file()),
               key=lambda p: p.stat().st_size)  # fmt: skip
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="its checksum is wrong"):
        verify_files(there, "other", True)
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match="bytes instead of"):
        verify_files(there, "other", False)


def test_a_file_that_cannot_be_written_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.md"
    write_whole(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"another")
    assert path.read_text(encoding="utf-8") == "größer\n" and list(tmp_path.iterdir()) == [path]
