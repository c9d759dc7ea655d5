"""Where captioned images come from: folders, WebDataset tar files, JSON lines, CSV, or Parquet.

Listing reads names and headers only. What an image lacks is noted in its `Item` and ends up in the
report of the build, and so does whatever else was seen: nothing is left out without a word.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from etils import epath

from ultrapixel_jax.data.folders import PICTURES, leftovers, pair, version_of, walk
from ultrapixel_jax.data.items import BROKEN_SOURCE, Blob, Entry, Item, known_encoding
from ultrapixel_jax.data.parquet import PARQUET, list_parquet
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.data.tables import CSV, JSON_LINES, Lister, csv_columns, list_csv, list_json
from ultrapixel_jax.data.tars import list_tar
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError

KINDS = ("folder", "webdataset", "jsonl", "csv", "parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
NAMES = {"folder": PICTURES, "webdataset": (".tar",), "jsonl": JSON_LINES, "csv": CSV, "parquet": PARQUET}
"""Names of the files that make a source one of a kind."""


class Listing(NamedTuple):
    """What a source consists of."""

    kind: str
    """One of `KINDS`."""
    items: list[Item]


def list_source(source: str, kind: str, image_key: str, caption_key: str, encoding: str = "utf-8") -> Listing:
    """Every image of `source`, in an order that depends on the names alone, and whatever else is there.

    Args:
        source: a directory, or a file of one of the kinds; local or remote.
        kind: one of `KINDS`, or `auto` to tell by what is there.
        image_key: where a row of a table has the image, or its path relative to the table.
        caption_key: where it has the caption.
        encoding: of captions and tables without a byte order mark.

    Raises:
        UserError: nothing there, no image in it, or several kinds at once.
    """
    known_encoding(encoding)
    with user_errors(source, "source"):
        entries, items, folder = _files(source)
        lister = Lister(image_key, caption_key, encoding, {e.blob.path: e for e in entries})
        kind = _detect(source, entries, lister, folder) if kind == "auto" else kind
        own = [e for e in entries if not folder or e.suffix in NAMES[kind]]
        rest = [e for e in entries if folder and e.suffix not in NAMES[kind]]
        if kind == "folder":
            items = [*pair(entries), *items]
        elif kind == "webdataset":
            items = [*(item for tar in own for item in list_tar(tar)), *leftovers(rest), *items]
        elif kind == "parquet":
            rows = (item for table in own for item in list_parquet(table, image_key, caption_key))
            items = [*rows, *leftovers(rest), *items]
        else:
            read = list_json if kind == "jsonl" else list_csv
            rows = [item for table in own for item in read(table, lister)]
            items = [*rows, *pair([e for e in rest if e.blob.path not in lister.named]), *items]
    if not any(item.image for item in items) and (
        packed := [e for e in entries if e.name.lower().endswith(COMPRESSED)]
    ):
        raise UserError(
            f"{printable(packed[0].name)} is a compressed tar, which cannot be read at random; decompress it "
            "to .tar"
        )
    if not any(item.image or (item.problem and item.problem[0] == BROKEN_SOURCE) for item in items):
        raise UserError(
            f"source {printable(source)!r} has no images; known are {', '.join(PICTURES[:8])}, … in folders, "
            ".tar files (WebDataset), .jsonl, .csv and .parquet files"
        )
    return Listing(kind, items)


def _files(source: str) -> tuple[list[Entry], list[Item], bool]:
    """Files of the source, what else is there, and whether it is a folder."""
    path = epath.Path(source)
    if path.is_dir():
        return *walk(os.fspath(path)), True
    if not path.exists():
        raise UserError(
            f"source {printable(source)!r} does not exist; give a folder, a .tar, .jsonl, .csv or .parquet "
            "file"
        )
    text = os.fspath(path)
    return [Entry(PurePosixPath(text).name, Blob(text, version=version_of(text)))], [], False


def _detect(source: str, entries: Sequence[Entry], lister: Lister, folder: bool) -> str:
    """The kind of a source by what is there."""
    found = [kind for kind in KINDS if any(entry.suffix in NAMES[kind] for entry in entries)]
    if (
        folder
        and "csv" in found
        and not any(csv_columns(entry, lister) for entry in entries if entry.suffix in CSV)
    ):
        found.remove("csv")  # some other table
    if found[:1] == ["folder"] and len(found) == 2 and found[1] in ("jsonl", "csv"):
        found = found[1:]  # the images that the rows name
    if len(found) > 1:
        raise UserError(
            f"source {printable(source)!r} holds several kinds ({', '.join(found)}); choose with --kind"
        )
    return found[0] if found else "folder"
