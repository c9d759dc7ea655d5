"""Sources of any content at all: whatever lies in them, a build ends with a dataset or one line.

    python -m tests.data.fuzz [CASES]

makes that many (10,000) folders, tars, tables and checkpoints out of odd names, captions and pictures, and
builds a dataset from each; then as many prompt files with every key that there is, and makes requests of
each. `test_fuzz.py` runs a few in every suite.
"""

from __future__ import annotations

import collections
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.data import records
from ultrapixel_jax.data.build import build, summary
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import prompts
from ultrapixel_jax.sampling.requests import make_requests

SUFFIXES = (
    ".png", ".jpg", ".PNG", ".bmp", ".gif", ".webp", ".jfif", ".tif", ".heic", ".txt", ".TXT", ".json",
    ".caption", ".png.txt", ".jsonl", ".csv", ".tsv", ".zip", ".tar", ".final.1.png", "", ".", ".x",
)  # fmt: skip


def _pictures() -> list[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    out = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA", "PPM", "ICO"):
        file = io.BytesIO()
        picture.save(file, kind)
        out.append(file.getvalue())
    return out


PICTURES = _pictures()

characters = st.characters(exclude_characters="/\0", exclude_categories=())  # surrogates too
raw = st.binary(min_size=1, max_size=8).map(lambda b: b.replace(b"/", b"").replace(b"\0", b"") or b"x")
stems = st.one_of(
    st.sampled_from(["a", "b", "a.b", "a.", ".a", "metadata", " ", "~a", "-a", "%00", "a\n", "é", "e\u0301"]),
    st.text(characters, min_size=1, max_size=8),
    raw.map(os.fsdecode),
)
names = st.builds(str.__add__, stems, st.sampled_from(SUFFIXES))
keys = st.sampled_from(["caption", "text", "image", "file_name", "url"]) | st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=9)
    | st.sampled_from(["a.png", "b.png", "../a.png", "/", "", "\0", "a caption", "half \ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5,
)  # fmt: skip
objects = st.dictionaries(keys, values, max_size=4)


def _lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def _cut(data: bytes, at: int, byte: int) -> bytes:
    """`data` with one byte changed and, half of the time, an end that is missing."""
    if not data:
        return data
    at %= len(data)
    changed = bytearray(data)
    changed[at] = byte
    return bytes(changed[:at] if byte % 2 else changed)


whole = st.one_of(
    st.sampled_from(PICTURES),
    st.sampled_from(["a caption", "", " ", "half \ud83d", "e\u0301 é 🐈", "with\0nul"]).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
    st.text(st.characters(exclude_categories=()), max_size=12).flatmap(
        lambda text: st.sampled_from(["utf-8", "utf-16", "utf-16-be", "utf-32", "cp1252", "shift_jis"]).map(
            lambda encoding: text.encode(
                encoding, "surrogatepass" if encoding.startswith("utf") else "ignore"
            )
        )
    ),
    objects.map(lambda row: json.dumps(row).encode()),
    st.lists(objects | values, max_size=4).map(_lines),
    st.sampled_from(
        [
            b"file_name,text\na.png,one\nb.png,\n",
            b"image;caption\na.png;x\n",
            b'image,caption\n"a.png',
            b"[" * 5000,
        ]
    ),
    st.binary(max_size=64),
)
contents = whole | st.builds(_cut, whole, st.integers(0, 4000), st.integers(0, 255))
GOOD = (("good.png", PICTURES[0]), ("good.txt", b"a caption"))
files = st.builds(
    list.__add__, st.sampled_from([[], list(GOOD)]), st.lists(st.tuples(names, contents), max_size=7)
)


def write_files(folder: Path, given: list[tuple[str, bytes]]) -> None:
    """The files that this file system takes."""
    for name, data in given:
        try:
            (folder / name).write_bytes(data)
        except (OSError, ValueError):  # a name that is too long, a folder of this name, …
            continue


def tarred(given: list[tuple[str, bytes]], form: int, damage: tuple[int, int] | None) -> bytes:
    """A tar, perhaps damaged."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for name, data in given:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError, struct.error):
                continue
    return _cut(out.getvalue(), *damage) if damage else out.getvalue()


sources = st.one_of(
    st.tuples(st.just("folder"), files),
    st.tuples(
        st.just("tar"),
        st.builds(
            tarred, files, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
            st.none() | st.tuples(st.integers(0, 20_000), st.integers(0, 255)),
        ),
    ),
    st.tuples(
        st.just("list.jsonl"),
        st.builds(
            bytes.__add__, st.sampled_from([b"", b'{"image": "a.png", "caption": "good"}\n']),
            st.lists(objects | values, max_size=6).map(_lines) | contents,
        ),
    ),
    st.tuples(
        st.just("list.csv"),
        st.builds(bytes.__add__, st.sampled_from([b"", b"image,caption\na.png,good\n"]), contents),
    ),
    st.tuples(st.just("list.parquet"), contents),
)  # fmt: skip


def check(case: tuple[str, Any], reading: dict[str, Any], seen: collections.Counter[str]) -> None:
    """One build: a dataset, complete and consistent, or a `UserError` of one line; nothing else."""
    kind, content = case
    folder = Path(tempfile.mkdtemp())
    try:
        source, output = folder / "source", folder / "out"
        source.mkdir()
        for name in ("a.png", "b.png"):
            (source / name).write_bytes(PICTURES[0])
        if kind == "folder":
            write_files(source, content)
        else:
            source = source / ("a.tar" if kind == "tar" else kind)
            source.write_bytes(content)
        try:
            report = build(str(source), str(output), quiet=True, min_side=1, shard_images=3, **reading)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 4000, repr(str(error))
            assert not output.exists(), "what is refused leaves nothing"
            seen["refused"] += 1
            return
        summary(report, str(output)).encode()
        assert json.loads((output / records.REPORT).read_text()) == report
        dataset = records.open_dataset(output, records.CaptionedImages)
        for i in range(len(dataset)):
            record = dataset.source[i]
            text = record["caption"].decode()
            assert text.strip() == text != "" and record["id"].decode().isprintable()
        assert report["examples"] == len(dataset)
        assert report["examples"] + len(report["skipped_items"]) == report["plan"]["items"]
        seen["built"] += 1
    finally:
        shutil.rmtree(folder)


readings = st.fixed_dictionaries(
    {},
    optional={"encoding": st.sampled_from(["cp1252", "utf-16", "shift_jis", "utf-8"]), "caption_key": keys},
)


def run(cases: int, derandomize: bool = False) -> collections.Counter[str]:
    """Try `cases` sources; how many were built and refused."""
    seen: collections.Counter[str] = collections.Counter()

    @settings(max_examples=cases, deadline=None, database=None, derandomize=derandomize,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(sources, readings)
    def one(case: tuple[str, Any], reading: dict[str, Any]) -> None:
        check(case, reading, seen)

    one()
    return seen


# ---------------------------------------------------------------------------- prompt files

RIGHT: dict[str, list[Any]] = {
    "control": ["canny:a.png", "inpainting:a.png:b.png", ["canny:a.png", "super-resolution:b.png"]],
    "control_map": ["canny:b.png"],
    "control_strength": [0.5, "0.5,1"],
    "control_from": [0, "0.2"],
    "control_until": [1, 0.5],
    "control_pass": ["low", "high", "both"],
    "canny_thresholds": ["100,200"],
    "image_prompt": ["a.png", "a.png:0.5", ["a.png", "b.png:0.2"]],
    "image": ["a.png"],
    "strength": [0.5],
    "strength_hr": [0.5],
    "upscale": ["b.png"],
    "inpaint": ["a.png:b.png", ["a.png", "b.png"]],
    "feather": [0.1, 8],
    "lora": ["lora.safetensors", "lora.safetensors:-1"],
    "token": ["[fox]=^cat</w>", "[fox]", ["[fox]", "[cat]"]],
    "steps": [3],
    "cfg_b": [1.5],
    "size": ["256x512"],
    "num_images": [2],
}
"""Values that are right for a key, alone or with others."""
said = values | st.sampled_from([
    "no.png", "/", "", ".", "..", "a.png:b.png:c", "canny:", "depth:a.png", "=", "[fox]=(", "0,", "9x9",
    0, 1, 256, -1, 0.3, 1e400, 10**400, float("nan"), True, None, "half \ud83d", "\0", "gs://bucket/a.png",
    "\u0665", "1_0", " 7 ", [], ["a.png", 0.5], {}, "ddim",
])  # fmt: skip
"""What a key may be followed by: nearly right, or anything at all."""
unlikely = ("Prompt", "STEPS", "controll", "token ", "guidance_scale")
named = st.sampled_from([*prompts.KEYS, *prompts.SAME, *unlikely]) | st.text(max_size=3)
right = st.sampled_from([(key, value) for key, found in RIGHT.items() for value in found])
pairs = st.one_of(right, right, right, st.tuples(named, said | right.map(lambda pair: pair[1])))
told = st.lists(pairs, max_size=4).map(dict)
rows = st.tuples(told, st.booleans()).map(lambda x: {"prompt": "a cat", **x[0]} if x[1] else x[0])


def _table(found: list[dict[str, Any]], delimiter: str) -> bytes:
    """With a header; what a cell cannot hold breaks the table."""
    columns = list(dict.fromkeys(key for row in found for key in row))
    lines = [columns, *([str(row.get(key, "")) for key in columns] for row in found)]
    return "\n".join(delimiter.join(line) for line in lines).encode("utf-8", "surrogatepass")


prompt_files = st.tuples(
    st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ""]),
    st.one_of(
        st.lists(rows, min_size=1, max_size=3).map(_lines),
        st.lists(rows | said, max_size=3).map(lambda found: json.dumps(found).encode()),
        st.builds(_table, st.lists(rows, min_size=1, max_size=3), st.sampled_from([",", "\t", ";"])),
        contents,
    ),
    st.booleans(),
)


def check_prompts(case: tuple[str, bytes, bool], folder: Path, seen: collections.Counter[str]) -> None:
    """One prompts file: requests, or a `UserError` of one line; nothing else."""
    suffix, content, comments = case
    file = folder / f"list{suffix}"
    file.write_bytes(content)
    plain = DiffusionConfig()
    try:
        entries = prompts.read_prompts(file, comments=comments, note=lambda text: seen.update(["notes"]))
        few = [entry for entry in entries if (entry.num_images or 1) < 100]
        made = make_requests(few, height=256, width=256, stage_c=plain, stage_b=plain)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 4000, repr(str(error))
        seen["refused"] += 1
        return
    for request in made:
        request.prompt.encode()  # text that has no bytes was refused
        seen["steered"] += bool(request.conditions)
    seen["read"] += 1


def run_prompts(cases: int, derandomize: bool = False) -> collections.Counter[str]:
    """Try `cases` prompt files; how many were read and refused, and how many pictures are steered."""
    seen: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (256, 256), "white").save(folder / name)
        (folder / "lora.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")

        @settings(max_examples=cases, deadline=None, database=None, derandomize=derandomize,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(prompt_files)
        def one(case: tuple[str, bytes, bool]) -> None:
            check_prompts(case, folder, seen)

        one()
    return seen


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(dict(run_prompts(count)), dict(run(count)))
