"""Captioned images to records: every source, every kind of damage, and a kill in the middle."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import SIZES, WRITERS, encoded, write_folder, write_lines, write_tars
from ultrapixel_jax.data import build as command
from ultrapixel_jax.data import images
from ultrapixel_jax.data.build import build
from ultrapixel_jax.data.records import CachedLatents, CaptionedImages, open_dataset
from ultrapixel_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def contents(directory: Path) -> list[tuple[str, str, int, int, bytes]]:
    dataset = open_dataset(directory, CaptionedImages)
    rows = []
    for i in range(len(dataset)):
        e = dataset.source[i]
        assert (e["height"], e["width"]) == tuple(dataset.sizes[i])
        rows.append((e["id"].decode(), e["caption"].decode(), e["height"], e["width"], e["image"]))
    return rows


@pytest.mark.parametrize("kind", WRITERS)
def test_every_source_keeps_bytes_caption_and_size(kind: str, tmp_path: Path) -> None:
    source = WRITERS[kind](tmp_path / "source", 9)
    report = build(str(source), str(tmp_path / "out"), shard_images=4, quiet=True)
    assert (report["examples"], report["skipped_items"]) == (9, [])
    rows = {row[1]: row for row in contents(tmp_path / "out")}
    assert set(rows) == {f"caption {i}" for i in range(9)}
    for i in range(9):
        id_, _, height, width, data = rows[f"caption {i}"]
        assert (height, width) == SIZES[i % len(SIZES)]
        assert f"{i:03d}" in id_
        encoding = ("JPEG", "PNG", "WEBP")[i % 3] if kind == "folder" else "JPEG"
        assert data == encoded(i, kind=encoding)


@pytest.mark.parametrize("kind", WRITERS)
def test_options_without_effect_are_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And those that have one are not."""
    source = WRITERS[kind](tmp_path / "source", 2)
    tables = kind in ("jsonl", "csv", "parquet")
    out = str(tmp_path / "out")
    options = [
        "--caption",
        "x",
        "--image-key",
        "picture",
        "--encoding",
        "cp1252",
        "--workers",
        "0",
        "--quiet",
    ]
    command.main([str(source), out, *options])
    said = capsys.readouterr().err
    assert ("--image-key 'picture' without effect: the images are files" in said) != tables
    assert ("--encoding 'cp1252' without effect" in said) == (kind == "parquet")
    if not tables:
        assert "--caption without effect: every image has one of its own" in said


def test_captions_decide_which_options_have_an_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.jpg").write_bytes(encoded(0))
        (source / f"{name}.txt").write_text("a cat")
    options = ["--caption-key", "title", "--caption", "x", "--workers", "0", "--quiet"]

    def said(output: str) -> str:
        assert command.main([str(source), str(tmp_path / output), *options]) == 0
        return capsys.readouterr().err

    assert said("one").splitlines() == [
        "warning: --caption-key 'title' without effect: no caption is in JSON",
        "warning: --caption without effect: every image has one of its own",
    ]
    (source / "a.txt").unlink()
    (source / "b.txt").rename(source / "b.json")
    (source / "b.json").write_text('{"title": "a dog"}')
    assert said("two") == ""
    assert {row[1] for row in contents(tmp_path / "two")} == {"x", "a dog"}


def test_damage_is_skipped_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "source", 12)
    whole = encoded(0, (300, 300))
    (source / "part0" / "000.jpeg").write_bytes(whole[: len(whole) * 2 // 3])  # truncated
    (source / "part1" / "001.txt").unlink()
    (source / "part0" / "002.json").write_text("{not json")
    (source / "part1" / "003.txt").write_text(" \n")
    (source / "part0" / "004.json").write_text('{"title": "another key"}')
    (source / "part1" / "005.webp").write_bytes(b"RIFF nothing of the kind")
    (source / "part0" / "._006.jpg").write_bytes(b"what another file system left")
    arguments = [str(source), str(tmp_path / "out"), "--shard-images", "5", "--workers", "0", "--quiet"]
    assert command.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["examples"] == 6 == len(contents(tmp_path / "out"))
    assert report["skipped"] == {"broken image": 2, "missing caption": 4}
    named = {entry["id"]: entry["reason"] for entry in report["skipped_items"]}
    assert named == {
        "part0/000.jpeg": "broken image", "part1/001.png": "missing caption",
        "part0/002.webp": "missing caption", "part1/003.jpeg": "missing caption",
        "part0/004.png": "missing caption", "part1/005.webp": "broken image",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert all(id_ in out for id_ in named)
    assert "6 skipped" in out
    with_one = build(str(source), str(tmp_path / "again"), quiet=True, caption="a photo of [x]")
    assert with_one["skipped"] == {"broken image": 2, "missing caption": 3}  # those of damaged files
    assert ("part1/001.png", "a photo of [x]") in [row[:2] for row in contents(tmp_path / "again")]


def test_damage_in_tars_and_lines_is_named(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 6)
    data = (tars / "00001.tar").read_bytes()
    (tars / "00001.tar").write_bytes(data[: len(data) // 2])
    report = build(str(tars), str(tmp_path / "a"), quiet=True)
    assert report["examples"] >= 3
    assert "broken source" in report["skipped"]

    lines = write_lines(tmp_path / "lines", 4)
    (tmp_path / "lines" / "pictures" / "001.jpg").unlink()
    with lines.open("a") as file:
        file.write('no json\n\n{"caption": "no image"}\n{"image": "pictures/002.jpg"}\n')
    report = build(str(lines), str(tmp_path / "b"), quiet=True)
    named = {entry["id"]: entry["reason"] for entry in report["skipped_items"]}
    assert named == {
        "pictures/001.jpg": "missing image", "list.jsonl:5": "broken source", "list.jsonl:7": "broken source",
        "pictures/002.jpg#list.jsonl:8": "missing caption",
    }  # fmt: skip


def test_a_killed_build_goes_on_to_the_same_result(tmp_path: Path) -> None:
    source, large = tmp_path / "source", encoded(1, (900, 900), "PNG")
    source.mkdir()
    for i in range(60):  # large enough that the kill comes in the middle
        (source / f"{i:03d}.png").write_bytes(large)
        (source / f"{i:03d}.txt").write_text(f"caption {i}")
    (source / "010.png").write_bytes(b"broken")
    out = tmp_path / "out"
    arguments = [str(source), str(out), "--shard-images", "3", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ultrapixel_jax.data.build", *arguments, "--workers", "2"], cwd=ROOT
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob(".build/0*.json"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers end with it
    done = {p: p.stat().st_mtime_ns for p in out.glob(".build/0*.json")}
    assert 3 <= len(done) < 20
    with pytest.raises(UserError, match="unfinished"):
        open_dataset(out, CaptionedImages)
    with pytest.raises(UserError, match="unfinished build of another"):
        build(str(source), str(out), shard_images=4, quiet=True)
    written = {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")}

    assert command.main([*arguments, "--workers", "0"]) == 0
    kept = [p for p in written if p.stat().st_mtime_ns == written[p]]
    assert len(kept) >= len(done), "finished shards were made again"
    report = build(str(source), str(tmp_path / "fresh"), shard_images=3, quiet=True)
    assert contents(out) == contents(tmp_path / "fresh")
    assert report == json.loads((out / "report.json").read_text())
    assert not (out / ".build").exists()
    assert command.main([*arguments, "--workers", "0"]) == 0, "repeating a complete build is no error"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "no images"),
        (lambda p: [write_folder(p, 3), *(f.unlink() for f in p.rglob("0*.[tj][xs][to]*"))], "has a caption"),
        (lambda p: [write_folder(p, 2), (p / "a.tar").write_bytes(b"")], "several kinds"),
        (lambda p: [p.mkdir(), (p / "a.tar.gz").write_bytes(b"")], "compressed tar"),
        (lambda p: [p.mkdir(), (p / "a.jpg").write_bytes(b""), (p / "a.txt").write_text("a")], "is usable"),
    ],
)
def test_bad_sources_are_one_line(prepare, words, tmp_path, capsys) -> None:
    prepare(tmp_path / "source")
    assert command.main([str(tmp_path / "source"), str(tmp_path / "out"), "--workers=0", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_bad_arguments_and_outputs(records: Path, tmp_path: Path, capsys) -> None:
    source = str(write_folder(tmp_path / "source", 2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    for arguments, words in (
        ([source], "OUTPUT"),
        ([source, "out", "--wrkers", "3"], "did you mean '--workers'"),
        ([source, "out", "--shard-images", "0"], "outside 1"),
        ([source, str(tmp_path / "full"), "--workers=0"], "not empty"),
        ([source, str(records), "--workers=0"], "another dataset"),
        ([source, "/proc/nowhere", "--workers=0"], "/proc/nowhere"),
    ):
        assert command.main(arguments) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match=r"training takes it with --data\.(no-)?cached"):
        open_dataset(records, CachedLatents)


def test_a_full_disk_is_one_line_and_the_build_goes_on(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "source", 6), tmp_path / "out"
    program = f"{sys.executable} -m ultrapixel_jax.data.build {source} {out} --shard-images 3 --workers 0"
    limited = f"ulimit -f 100; exec {program} --quiet"  # in kilobytes: no file may have more
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no space left" in done.stderr
    assert command.main([*program.split()[3:], "--quiet"]) == 0
    assert len(contents(out)) == 6


@pytest.mark.parametrize("name", ["build", "cache"])
def test_arguments_are_checked_without_jax_or_tensorflow(name: str) -> None:
    code = (
        f"import sys; from ultrapixel_jax.data import {name} as c;"
        "assert c.main(['a', 'b', 'c', '--x']) == 2;"
        "assert not {'jax', 'tensorflow', 'torch', 'grain', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_building_and_reading_import_no_tensorflow(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "source", 2), tmp_path / "out"
    code = (
        "import sys; from ultrapixel_jax.data import build, config, loader;"
        f"assert build.main([{str(source)!r}, {str(out)!r}, '--workers=0', '--quiet']) == 0;"
        f"settings = config.DataConfig(path={str(out)!r}, areas=(64,), ratios=('1/1',), batch_size=1);"
        "next(loader.Loader(settings)); assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_decoding_is_upright_rgb_over_white() -> None:
    photo = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    out = io.BytesIO()
    photo.save(out, "JPEG", exif=exif)
    assert images.decode(out.getvalue()).size == (4, 8)

    def through_png(array: np.ndarray, mode: str | None = None) -> np.ndarray:
        out = io.BytesIO()
        (Image.fromarray(array).convert(mode) if mode else Image.fromarray(array)).save(out, "PNG")
        return images.pixels(images.decode(out.getvalue()))

    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = 9, 8, 7, 255
    assert through_png(clear)[0, 0].tolist() == [9, 8, 7]
    assert through_png(clear)[1, 1].tolist() == [255, 255, 255]
    deep = np.full((2, 2), 0x8040, np.uint16)
    assert through_png(deep).tolist() == np.full((2, 2, 3), 0x80).tolist()
    assert through_png(np.full((2, 2), 77, np.uint8)).tolist() == np.full((2, 2, 3), 77).tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_truncation_is_noticed(kind: str) -> None:
    data = encoded(3, (60, 80), kind)
    images.decode(data)
    for end in range(0, len(data) - 20, max(1, len(data) // 40)):
        with pytest.raises(images.BrokenImage):
            images.decode(data[:end])


def test_nothing_is_left_among_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    build(str(write_folder(tmp_path / "images", 6)), str(tmp_path / "out"), shard_images=2, quiet=True)
    assert len(open_dataset(tmp_path / "out", CaptionedImages)) == 6
    assert list(temporary.iterdir()) == []
