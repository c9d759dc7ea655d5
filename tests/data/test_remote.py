"""Paths in a bucket, with a file system of fsspec that keeps the bucket in a local directory."""

import shutil
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry

from tests.data.conftest import AREAS, RATIOS, WRITERS
from ultrapixel_jax.data import build as command
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.files import is_remote


def test_what_is_remote() -> None:
    assert is_remote("gs://bucket/data")
    assert not is_remote("/data")


def test_a_missing_package_is_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert command.main(["gs://bucket/images", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "install gcsfs" in capsys.readouterr().err


@pytest.mark.parametrize("kind", WRITERS)
def test_source_records_and_reading_in_a_bucket(kind: str, buckets: Path, tmp_path: Path) -> None:
    source = WRITERS[kind](tmp_path / "source", 8)
    shutil.copytree(source if source.is_dir() else source.parent, buckets / kind / "source")
    remote = f"gs://{kind}/source" + ("" if source.is_dir() else f"/{source.name}")
    arguments = ["--shard-images", "3", "--workers", "0", "--quiet"]
    assert command.main([remote, f"gs://{kind}/out", *arguments]) == 0
    assert command.main([str(source), str(tmp_path / "out"), *arguments]) == 0
    config = {"areas": AREAS, "ratios": RATIOS, "batch_size": 2, "lr_latent": 1}
    cache = str(tmp_path / "cache")
    for _ in range(2):  # the second time from the copy
        with (
            Loader(DataConfig(path=f"gs://{kind}/out", cache_dir=cache, **config)) as a,
            Loader(DataConfig(path=str(tmp_path / "out"), **config)) as b,
        ):
            for _ in range(4):
                x, y = next(a), next(b)
                assert x["ids"] == y["ids"]
                assert x["image"].tobytes() == y["image"].tobytes()


def test_a_rebuilt_dataset_is_read_anew(
    buckets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards are padded to one size, so size tells nothing: the content does."""
    source = WRITERS["folder"](buckets / "again" / "source", 4)
    arguments = ["gs://again/source", "gs://again/out", "--workers", "0", "--quiet"]
    config = DataConfig(path="gs://again/out", cache_dir=str(tmp_path), areas=AREAS, ratios=RATIOS,
                        batch_size=4, lr_latent=1, caption_dropout=0.0)  # fmt: skip
    assert command.main(arguments) == 0
    sizes = {p.name: p.stat().st_size for p in (buckets / "again" / "out").iterdir()}

    def captions() -> set[str]:
        with Loader(config) as loader:
            return set(next(loader)["caption"]) | set(next(loader)["caption"])

    first = captions()
    (source / "part1" / "001.txt").write_text("capture 1\n")
    assert command.main(arguments) == 2, "the source has changed"
    shutil.rmtree(buckets / "again" / "out")
    assert command.main(arguments) == 0
    shard = next(name for name in sizes if "array_record" in name)
    assert (buckets / "again" / "out" / shard).stat().st_size == sizes[shard], "the sizes are the same"
    assert captions() == first - {"caption 1"} | {"capture 1"}
    assert "was built anew" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2


def test_a_bucket_that_takes_no_more(
    buckets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with what the bucket says; the same command goes on once it takes more."""
    source = WRITERS["folder"](tmp_path / "source", 8)
    arguments = [str(source), "gs://full/out", "--shard-images", "3", "--workers", "0", "--quiet"]
    system, left = _registry["gcs"], [2]

    def limited(name: str):
        real = getattr(system, name)

        def write(self, *args, **named):
            if name != "_open" or "w" in str(named.get("mode", args[1:2])):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("403: the billing account is closed")
            return real(self, *args, **named)

        return write

    with monkeypatch.context() as patch:
        for name in ("_open", "put_file", "cp_file"):
            patch.setattr(system, name, limited(name))
        assert command.main(arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ")
    assert "gs://full/out" in said[0] and "the billing account is closed" in said[0]
    assert command.main(arguments) == 0
    config = DataConfig(path="gs://full/out", cache_dir=str(tmp_path / "cache"), areas=AREAS, ratios=RATIOS,
                        batch_size=2, lr_latent=1)  # fmt: skip
    with Loader(config) as loader:
        assert len(next(loader)["ids"]) == 2
