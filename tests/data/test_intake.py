"""What people have: no name, no home, other encodings, pictures of every name, captions anywhere."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.conftest import encoded, write_folder
from tests.data.test_build import contents
from ultrapixel_jax.data import build as command
from ultrapixel_jax.data.build import build
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.data.sources import list_source
from ultrapixel_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PNG = encoded(0, (40, 40), "PNG")


def built(source: Path, out: Path, **options: Any) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Captions of what was taken and reasons of what was not, by id; and the report."""
    report = build(str(source), str(out), quiet=True, **options)
    assert json.loads((out / "report.json").read_text()) == report
    taken = {row[0]: row[1] for row in contents(out)}
    named = {entry["id"]: entry["reason"] for entry in report["skipped_items"]}
    return taken, named, report


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# ------------------------------------------------------------------ 1: users without a name or a home

NAMELESS = """
import sys
import grp, pwd
def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = grp.getgrgid = unknown
sys.argv = sys.argv[1:]
from ultrapixel_jax.data import build, config, loader, paths
assert build.main([*sys.argv, "--workers=0", "--quiet"]) == 0
next(loader.Loader(config.DataConfig(path=sys.argv[1], areas=(64,), ratios=("1/1",), batch_size=1)))
print(paths._user_cache())
"""


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_users_without_a_name_or_a_home(home: str | None, tmp_path: Path) -> None:
    """The module `pwd` knows no one, as in a container that was started with a number for a user."""
    source, out = write_folder(tmp_path / "source", 3), tmp_path / "out"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **({"HOME": home} if home else {})}
    done = subprocess.run([sys.executable, "-c", NAMELESS, str(source), str(out)], cwd=tmp_path, env=env,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no cache directory" in done.stderr, "where copies of remote data go instead is a warning"
    assert "ultrapixel_jax-" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"], "nothing was left elsewhere"


# ------------------------------------------------------------------ 2: text that is not UTF-8


def test_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    latin = os.fsencode(source) + b"/gr\xf6\xdfe"
    for name, data in ((latin + b".png", PNG), (latin + b".txt", b"a size")):
        Path(os.fsdecode(name)).write_bytes(data)
    (source / "two\nlines\x1b[31m.png").write_bytes(PNG)
    (source / "two\nlines\x1b[31m.txt").write_text("lines")
    folder = Path(os.fsdecode(os.fsencode(source) + b"/\xe9t\xe9"))
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)  # without caption
    assert command.main([str(source), str(tmp_path / "out"), "--workers=0", "--quiet"]) == 0
    taken = {row[0]: row[1] for row in contents(tmp_path / "out")}
    assert taken == {"gr\\xf6\\xdfe.png": "a size", "two\\nlines\\x1b[31m.png": "lines"}
    assert "\\xe9t\\xe9/a.png: missing caption" in capsys.readouterr().out

    tarred = tmp_path / "tars"
    tarred.mkdir()
    with tarfile.open(tarred / "a.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (("größe.png", PNG), ("größe.txt", b"in a tar"), ("ü.bin", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    taken, named, _ = built(tarred, tmp_path / "b")
    assert taken == {"a.tar/gr\\xf6\\xdfe.png": "in a tar"}
    assert named == {"a.tar/\\xfc.bin": "no picture"}


CAPTIONS = {
    b"a cat \xf0\x9f\x90\x88": "a cat 🐈",
    "\ufeffwith a mark".encode(): "with a mark",
    "two bytes each: ж".encode("utf-16"): "two bytes each: ж",
    b"\xfe\xff" + "the other way".encode("utf-16-be"): "the other way",
    "four bytes".encode("utf-32"): "four bytes",
    "caf\xe9 \x93quoted\x94".encode("latin-1"): None,
    "no mark".encode("utf-16-le"): None,
    b"half a character \xe2\x82": None,
    b"\xff\xfea": None,
    b"\0": None,
}


def test_captions_in_other_encodings(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i, data in enumerate(CAPTIONS):
        (source / f"{i}.png").write_bytes(PNG)
        (source / f"{i}.txt").write_bytes(data)
    taken, named, report = built(source, tmp_path / "out")
    assert taken == {f"{i}.png": text for i, text in enumerate(CAPTIONS.values()) if text}
    assert named == {f"{i}.png": "missing caption" for i, text in enumerate(CAPTIONS.values()) if not text}
    details = " ".join(entry["detail"] for entry in report["skipped_items"])
    assert "byte 0xe9 at 3" in details and "--encoding, such as cp1252" in details
    taken, *_ = built(source, tmp_path / "cp1252", encoding="cp1252")
    assert taken["5.png"] == "café “quoted”"
    with pytest.raises(UserError, match="--encoding 'ebcdicc' is not known"):
        build(str(source), str(tmp_path / "no"), encoding="ebcdicc")


def test_halves_of_characters_in_json(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i, text in enumerate(
        (r"a cat \ud83d", r"\udc00 a dog", r"a bird \ud83d\udc26", r"\ud83d", r"a\u0000b")
    ):
        (source / f"{i}.png").write_bytes(PNG)
        (source / f"{i}.json").write_text(f'{{"caption": "{text}"}}')
    (source / "9.png").write_bytes(PNG)
    (source / "9.json").write_text('{"caption": ' + "[" * 100_000)
    taken, named, _ = built(source, tmp_path / "out")
    assert taken == {"0.png": "a cat", "1.png": "a dog", "2.png": "a bird 🐦"}
    assert set(named) == {"3.png", "4.png", "9.png"}

    lines = [r'{"image": "0.png", "caption": "half \ud83d"}', r'{"image": "\ud83d.png", "caption": "name"}',
             r'{"image": "a\u0000.png", "caption": "nul"}',
             '{"image": ["0.png"], "caption": "list"}']  # fmt: skip
    (source / "list.jsonl").write_bytes(
        "\n".join(lines).encode() + b'\n{"image": "1.png", "caption": "\xe9"}\n7\n'
    )
    taken, named, _ = built(source / "list.jsonl", tmp_path / "lines")
    assert taken == {"0.png": "half"}
    assert set(named) == {"\\ud83d.png", "list.jsonl:3", "list.jsonl:4", "list.jsonl:5", "list.jsonl:6"}


def test_sources_and_outputs_whose_names_are_no_utf8(tmp_path: Path, capsys) -> None:
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll"))
    write_folder(latin, 2)
    assert command.main([str(latin), str(tmp_path / "out"), "--workers=0", "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["plan"]["source"] == str(latin)
    assert command.main([str(latin), str(tmp_path / "out"), "--workers=0", "--quiet"]) == 0, "it is complete"
    assert command.main([str(latin), str(latin / "out"), "--workers=0", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "m\\xfcll/out: its name is no UTF-8" in error and error.count("\n") == 1
    assert not (latin / "out").exists()
    for name in ("a{b}", "c[1]*", "d%20e", "-00000-of-00001", "ж"):
        assert command.main(["--quiet", "--workers=0", str(latin), "--", str(tmp_path / name)]) in (0, 2)
        capsys.readouterr()
        assert len(contents(tmp_path / name)) == 2


# ------------------------------------------------------------------ 3: nothing is lost without a word


def test_dots_in_names_lose_nothing(tmp_path: Path) -> None:
    members = {
        "photo.final.1.png": PNG, "photo.final.1.txt": b"its own",
        "v1.0.png": PNG, "v1.0.json": b'"a string"',
        "v1.1.png": PNG, "v1.1.caption": b"the other", "0001.image.png": PNG, "0001.caption.txt": b"by key",
        "0002.png": PNG, "0002.seg.png": PNG, "0002.txt": b"not the mask's", "0003.PNG": PNG,
        "0003.TXT": b"loud", "0004.tar.gz": b"nested", "0005.cls": b"7", "0006.txt": b"no picture",
        "d/.hidden.png": PNG,
        "d/0007.png": b"", "d/0007.txt": b"empty", "d/0008.jpg.png": PNG, "d/0008.jpg.txt": b"two suffixes",
    }  # fmt: skip
    tar(tmp_path / "a.tar", members)
    taken, named, report = built(tmp_path / "a.tar", tmp_path / "out")
    assert {k.removeprefix("a.tar/"): v for k, v in taken.items()} == {
        "photo.final.1.png": "its own", "v1.0.png": "a string", "v1.1.png": "the other",
        "0001.image.png": "by key", "0002.png": "not the mask's", "0003.PNG": "loud",
        "d/0008.jpg.png": "two suffixes",
    }  # fmt: skip
    assert {k.removeprefix("a.tar/"): v for k, v in named.items()} == {
        "0002.seg.png": "missing caption", "0004.tar.gz": "no picture", "0005.cls": "no picture",
        "0006.txt": "missing image", "d/.hidden.png": "no picture", "d/0007.png": "broken image",
    }  # fmt: skip
    assert sum(report["skipped"].values()) == len(report["skipped_items"]) == 6


def test_links_litter_and_everything_else_in_a_folder(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "in").mkdir(parents=True)
    elsewhere.mkdir()
    for folder, name in ((source / "in", "a"), (elsewhere, "b")):
        (folder / f"{name}.png").write_bytes(PNG)
        (folder / f"{name}.txt").write_text(name)
    (source / "link").symlink_to(elsewhere, target_is_directory=True)
    (source / "in" / "again").symlink_to(source, target_is_directory=True)  # a circle
    (elsewhere / "back").symlink_to(source / "in", target_is_directory=True)
    (source / "itself").symlink_to("itself")
    (source / "nothing.png").symlink_to("gone.png")
    (source / "file.png").symlink_to(source / "in" / "a.png")
    os.mkfifo(source / "pipe.png")  # would be waited for, for ever
    for name in (
        ".git/x.png",
        "__MACOSX/._a.png",
        "Thumbs.db",
        ".DS_Store",
        ".secret.png",
        "x.zip",
        "film.mp4",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / "plain").write_bytes(PNG)  # no suffix, but a caption
    (source / "plain.txt").write_text("no suffix")
    taken, named, report = built(source, tmp_path / "out")
    assert taken == {"in/a.png": "a", "link/b.png": "b", "plain": "no suffix"}
    assert named == {
        "in/again": "no picture", "link/back": "no picture", "itself": "broken source", "nothing.png":
        "missing image", "file.png": "missing caption", "pipe.png": "no picture", ".git": "no picture",
        ".secret.png": "no picture", "x.zip": "no picture", "film.mp4": "no picture",
    }  # fmt: skip
    assert "an archive inside" in str(report["skipped_items"])


def test_other_formats_are_taken_and_what_was_done_is_told(tmp_path: Path, capsys) -> None:
    source = tmp_path / "source"
    source.mkdir()
    picture = Image.open(io.BytesIO(PNG)).convert("RGB")
    for name in ("a.bmp", "b.gif", "c.TIFF", "d.avif", "e.jfif", "f.jpe"):
        kind = {"tiff": "TIFF", "jfif": "JPEG", "jpe": "JPEG"}.get(name[2:].lower(), name[2:].upper())
        extra = {"save_all": True, "append_images": [Image.new("RGB", (40, 40))]} if kind == "GIF" else {}
        picture.save(source / name, kind, **extra)
        (source / f"{name[0]}.txt").write_text(name)
    shutil.copy(source / "a.bmp", source / "wrong.jpg")  # a BMP by content
    (source / "wrong.txt").write_text("wrong")
    (source / "dot.png").write_bytes(encoded(0, (1, 1), "PNG"))
    (source / "dot.txt").write_text("one pixel")
    assert command.main([str(source), str(tmp_path / "out"), "--workers=0", "--quiet"]) == 0
    rows = {row[1]: row[4] for row in contents(tmp_path / "out")}
    assert set(rows) == {"a.bmp", "b.gif", "c.TIFF", "d.avif", "e.jfif", "f.jpe", "wrong"}
    assert {text: data[:4] for text, data in rows.items()} == {
        text: b"\xff\xd8\xff\xe0" if text[0] in "ef" else b"\x89PNG" for text in rows
    }
    out = capsys.readouterr().out
    assert "2 × BMP, stored as PNG" in out and "1 × of 2 pictures in it, the first" in out
    assert "dot.png: small image: 1×1 pixels, under the 32 of --min-side" in out
    taken, *_ = built(source, tmp_path / "small", min_side=1)
    assert "dot.png" in taken


# ------------------------------------------------------------------ 4: captions as other trainers keep them


def test_a_bad_caption_hides_no_good_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files: dict[str, list[tuple[str, bytes]]] = {
        "no key": [("0.json", b'{"url": "x"}'), ("0.txt", b"no key")],
        "no json": [("1.json", b"{"), ("1.caption", b"no json")],
        "empty text": [("2.txt", b" \n"), ("2.caption", b"empty text")],
        "full name": [("3.png.txt", b"full name")],
        "full json": [("4.png.json", b'{"caption": "full json"}')],
        "text key": [("5.json", b'{"text": "text key"}')],
        "not a string": [("6.json", b'{"caption": 3}'), ("6.txt", b"not a string")],
    }
    for i, beside in enumerate(files.values()):
        (source / f"{i}.png").write_bytes(PNG)
        for name, data in beside:
            (source / name).write_bytes(data)
    taken, named, _ = built(source, tmp_path / "out")
    assert list(taken.values()) == list(files)
    assert named == {}


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolon", "jsonl", "utf16"])
def test_image_folders(form: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "pictures").mkdir(parents=True)
    names = ["a.png", "pictures/b.png", "pictures/c, d.png", "gone.png"]
    for name in names[:3]:
        (source / name).write_bytes(PNG)
    (source / "unlisted.png").write_bytes(PNG)
    (source / "beside.png").write_bytes(PNG)
    (source / "beside.txt").write_text("beside")
    rows = [(name, f'the "{i}" one,\nin two lines; yes') for i, name in enumerate(names)]
    rows.append(("a.png", ""))
    if form == "jsonl":
        text = "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in rows)
        (source / "metadata.jsonl").write_text(text)
    else:
        out = io.StringIO()
        mark = {"tsv": "\t", "semicolon": ";"}.get(form, ",")
        csv.writer(out, delimiter=mark).writerows([("file_name", "text"), *rows])
        name = "metadata.tsv" if form == "tsv" else "metadata.csv"
        (source / name).write_bytes(out.getvalue().encode("utf-16" if form == "utf16" else "utf-8"))
    taken, named, _ = built(source, tmp_path / "out")
    expected = {**dict(rows[:3]), "beside.png": "beside"}
    assert taken == expected
    place = "metadata.jsonl:5" if form == "jsonl" else f"metadata.{'tsv' if form == 'tsv' else 'csv'}: row 6"
    assert named == {"gone.png": "missing image", f"a.png#{place}": "missing caption",
                     "unlisted.png": "missing caption"}  # fmt: skip


@pytest.mark.parametrize("layout", ["struct", "binary", "path"])
def test_parquet(layout: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = tmp_path / "source"
    source.mkdir()
    pictures = [encoded(i, (40, 40), "PNG") for i in range(20)]
    captions = [f"caption {i}" if i != 5 else None for i in range(20)]
    if layout == "struct":
        cells: Any = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
        cells[7] = {"bytes": None, "path": "beside.png"}
        cells[8] = None
    else:
        cells = list(pictures)
    if layout == "path":
        (source / "p").mkdir()
        for i, data in enumerate(pictures):
            (source / "p" / f"{i}.png").write_bytes(data)
        cells = [f"p/{i}.png" for i in range(20)]
    (source / "beside.png").write_bytes(PNG)
    key = {"struct": "image", "binary": "jpg", "path": "file_name"}[layout]
    table = pa.table({"url": ["x"] * 20, key: cells, "text" if layout == "struct" else "caption": captions})
    pq.write_table(table, source / "train-00000.parquet", row_group_size=6)
    (source / "train-00001.parquet").write_bytes(b"PAR1 and no more")
    taken, named, _ = built(source, tmp_path / "out", kind="parquet", shard_images=7)
    missing = {5, 8} if layout == "struct" else {5}
    assert taken == {f"train-00000.parquet#{i}": f"caption {i}" for i in range(20) if i not in missing}
    assert named["train-00001.parquet"] == "broken source"
    data = {row[0]: row[4] for row in contents(tmp_path / "out")}
    assert all(data[id_] == [*pictures, PNG][int(id_.split("#")[1])] for id_ in data if id_[-2:] != "#7")


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert command.main([str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--workers=0"]) == 2
    assert "pip install 'ultrapixel_jax[parquet]'" in capsys.readouterr().err


# ------------------------------------------------------------------ 13: nothing stale


def config(path: Path | str, **more: Any) -> DataConfig:
    return DataConfig(path=str(path), areas=(64,), ratios=("1/1",), batch_size=2, lr_latent=1, **more)


@pytest.mark.parametrize("change", ["caption", "picture", "reason"])
def test_a_changed_source_is_noticed_and_another_dataset_too(change: str, tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "source", 6), tmp_path / "out"
    build(str(source), str(out), shard_images=2, quiet=True)
    with Loader(config(out)) as loader:
        position = loader.state()
    for path in source.rglob("*"):  # other times, the same content: a copy, a checkout
        os.utime(path, ns=(1, 1))
    assert build(str(source), str(out), shard_images=2, quiet=True)["examples"] == 6
    shutil.copytree(out, tmp_path / "copy")
    if change == "caption":
        (source / "part1" / "003.txt").write_text("caption 9\n")  # as long as before
    elif change == "picture":
        shutil.copy(source / "part0" / "000.jpeg", source / "part1" / "003.jpeg")
    else:
        (source / "part1" / "003.txt").write_text(" ")
    os.utime(source / "part1" / "003.txt", ns=(1, 1))
    with pytest.raises(UserError, match=r"has changed since .*part1/003\.jpeg"):
        build(str(source), str(out), shard_images=2, quiet=True)
    shutil.rmtree(out)
    build(str(source), str(out), shard_images=2, quiet=True)
    with Loader(config(out)) as loader, pytest.raises(UserError, match="not those that the run was started"):
        loader.restore(position)
    with Loader(config(tmp_path / "copy")) as loader:  # elsewhere, but the same
        loader.restore(position)
    (source / "part1" / "new.png").write_bytes(PNG)
    with pytest.raises(UserError, match="its source had other files"):
        build(str(source), str(out), shard_images=2, quiet=True)


def test_a_resumed_build_makes_changed_shards_anew(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "source", 6), tmp_path / "out"
    items = list_source(str(source), "auto", "image", "caption").items
    assert [item.id for item in items] == sorted(item.id for item in items)
    build(str(source), str(tmp_path / "whole"), shard_images=2, quiet=True)
    # As it stands when the program is killed before its last step.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ultrapixel_jax.data.records.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            build(str(source), str(out), shard_images=2, quiet=True)
    (source / "part1" / "003.txt").write_text("changed")
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    build(str(source), str(out), shard_images=2, quiet=True)
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    assert sum(before[name] != after[name] for name in before) == 1
    assert "changed" in {row[1] for row in contents(out)}
