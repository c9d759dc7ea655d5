"""Pictures named by the rows of a table: JSON lines and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from etils import epath

from ultrapixel_jax.data.folders import version_of
from ultrapixel_jax.data.items import (
    BROKEN_SOURCE,
    MISSING_CAPTION,
    Blob,
    Entry,
    Item,
    Skip,
    caption_keys,
    checked,
)
from ultrapixel_jax.data.text import BOMS, decoded, printable

JSON_LINES = (".jsonl", ".ndjson")
CSV = (".csv", ".tsv")


@dataclasses.dataclass
class Lister:
    """What listing the rows of several tables has in common."""

    image_key: str
    caption_key: str
    encoding: str
    files: Mapping[str, Entry]
    """The files around the tables, by path."""
    seen: set[str] = dataclasses.field(default_factory=set)
    """Ids so far."""
    named: set[str] = dataclasses.field(default_factory=set)
    """Paths of the pictures that rows name."""

    def image_keys(self) -> tuple[str, ...]:
        """Where a row has its picture's path; by default also where Hugging Face's image folders have it."""
        return (self.image_key, "file_name") if self.image_key == "image" else (self.image_key,)

    def row(self, table: Entry, place: str, image: object, caption: object) -> Item:
        """The item of one row of `table`."""
        if not isinstance(image, str) or not image or "\0" in image:
            return Item(place, problem=(BROKEN_SOURCE, f"its {self.image_key!r} is no path"))
        try:
            path = os.fspath(epath.Path(table.blob.path).parent / image)
        except (ValueError, TypeError) as error:
            return Item(place, problem=(BROKEN_SOURCE, f"its {self.image_key!r} is no path: {error}"))
        path = self._spelt(path)
        self.named.add(path)
        id_ = printable(image)
        id_ = id_ if id_ not in self.seen else f"{id_}#{place}"
        self.seen.add(id_)
        file = self.files.get(path)
        blob = file.blob if file else Blob(path, version=version_of(path))
        try:
            return Item(id_, blob, caption=checked(caption))
        except Skip as skip:
            what = f"{place} has no {self.caption_key!r}" if caption is None else f"{place}: {skip.detail}"
            return Item(id_, blob, problem=(MISSING_CAPTION, what))

    def _spelt(self, path: str) -> str:
        """`path`, or the same in the other Unicode form of accents, if only that is there."""
        if path in self.files or path.isascii():
            return path
        forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
        return next((form for form in forms if form in self.files), path)


def list_json(table: Entry, lister: Lister) -> Iterator[Item]:
    """Items of the objects on the lines of a file."""
    data, name = epath.Path(table.blob.path).read_bytes(), printable(PurePosixPath(table.name).name)
    if any(data.startswith(mark) for mark, _ in BOMS) or lister.encoding != "utf-8":
        try:
            data = decoded(data, lister.encoding).encode("utf-8", "surrogatepass")
        except ValueError as error:
            yield Item(name, problem=(BROKEN_SOURCE, str(error)))
            return
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            values = json.loads(decoded(line, "utf-8"))
            keys = [key for key in lister.image_keys() if key in values]
            if not keys:
                raise KeyError
            image = values[keys[0]]
            caption = next((values[k] for k in caption_keys(lister.caption_key) if k in values), None)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            missing = isinstance(error, KeyError)
            detail = f"the line has no {lister.image_key!r}" if missing else f"no JSON: {error}"
            yield Item(place, problem=(BROKEN_SOURCE, detail))
            continue
        yield lister.row(table, place, image, caption)


def csv_columns(table: Entry, lister: Lister) -> tuple[str, str | None] | None:
    """The columns of picture and caption in a CSV file; None if it has none of pictures."""
    try:
        reader = _csv(table, lister.encoding)
        header = reader.fieldnames or []
    except (ValueError, csv.Error):
        return None
    image = next((key for key in lister.image_keys() if key in header), None)
    caption = next((key for key in caption_keys(lister.caption_key) if key in header), None)
    return None if image is None else (image, caption)


def _csv(table: Entry, encoding: str) -> csv.DictReader[str]:
    text = decoded(epath.Path(table.blob.path).read_bytes(), encoding)
    first = text.partition("\n")[0]
    comma = "\t" if table.suffix == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(1 << 27)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=comma)


def list_csv(table: Entry, lister: Lister) -> Iterator[Item]:
    """Items of the rows of a file with a header; a tab, comma or semicolon between columns."""
    name = printable(PurePosixPath(table.name).name)
    columns = csv_columns(table, lister)
    if columns is None:
        try:
            found = ", ".join(_csv(table, lister.encoding).fieldnames or ()) or "none"
            detail = f"it has no column {lister.image_key!r}; it has {found:.200}"
        except (ValueError, csv.Error) as error:
            detail = str(error)
        yield Item(name, problem=(BROKEN_SOURCE, detail))
        return
    image, caption = columns
    rows, number = _csv(table, lister.encoding), 1
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Item(f"{name}: row {number}", problem=(BROKEN_SOURCE, str(error)))
            return
        yield lister.row(table, f"{name}: row {number}", row[image], row[caption] if caption else None)
