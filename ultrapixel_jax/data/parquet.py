"""Parquet shards with the pictures in them, as Hugging Face's data sets have them. Needs pyarrow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from ultrapixel_jax.data.items import (
    BROKEN_SOURCE,
    MISSING_CAPTION,
    Entry,
    Item,
    Skip,
    caption_keys,
    checked,
)
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError

PARQUET = (".parquet", ".pq")
PICTURES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "file_name")
"""Columns that are taken for the pictures', in this order, unless one is named."""
ROWS = 8
"""Rows read at once: whole groups may be gigabytes of pictures."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """The picture in one row of a Parquet file."""

    path: str
    column: str
    row: int
    version: str = ""

    def read(self) -> bytes:
        """The bytes, or those of the file that the row names; `OSError` or `ValueError` without."""
        value = _column(self.path, self.column).at(self.row)
        if isinstance(value, Mapping):  # Hugging Face's: bytes, or only the path
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            return (epath.Path(self.path).parent / value).read_bytes()
        if not isinstance(value, bytes) or not value:
            raise ValueError("the row has no picture")
        return value


class _Column:
    """One column, read forwards: rows are asked for in their order."""

    def __init__(self, path: str, column: str) -> None:
        self._file, self._name = open_parquet(path), column
        self._restart()

    def _restart(self) -> None:
        self._batches = self._file.iter_batches(ROWS, columns=[self._name])
        self._first, self._values = 0, []

    def at(self, row: int) -> Any:
        """The value of row number `row`."""
        if row < self._first:
            self._restart()
        while row >= self._first + len(self._values):
            batch = next(self._batches, None)
            if batch is None:
                self._restart()
                raise ValueError("the file has fewer rows")
            self._first += len(self._values)
            self._values = batch.column(0).to_pylist()
        return self._values[row - self._first]


@functools.lru_cache(1)
def _column(path: str, column: str) -> _Column:
    return _Column(path, column)


def open_parquet(path: str) -> Any:
    """pyarrow's reader of the file.

    Raises:
        UserError: pyarrow is not installed.
        OSError, ValueError: it is damaged (pyarrow's errors are these).
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow: pip install 'ultrapixel_jax[parquet]'") from error
    return pq.ParquetFile(epath.Path(path).open("rb"))


def list_parquet(table: Entry, image_key: str, caption_key: str) -> Iterator[Item]:
    """Items of the rows of one file.

    Raises:
        UserError: pyarrow is not installed.
    """
    place = printable(table.name)
    try:
        file = open_parquet(table.blob.path)
        columns = file.schema_arrow.names
        wanted = PICTURES if image_key == "image" else (image_key,)
        image = next((name for name in wanted if name in columns), None)
        caption = next((name for name in caption_keys(caption_key) if name in columns), None)
        if image is None:
            detail = f"it has no column {image_key!r}; it has {', '.join(columns):.200}; name its --image-key"
            yield Item(place, problem=(BROKEN_SOURCE, printable(detail)))
            return
        if caption is None:
            captions = [None] * file.metadata.num_rows
        else:
            captions = (
                value for batch in file.iter_batches(4096, columns=[caption])
                for value in batch.column(0).to_pylist()
            )  # fmt: skip
        for row, text in enumerate(captions):
            cell = Cell(table.blob.path, image, row, table.blob.version)
            try:
                yield Item(f"{place}#{row}", cell, caption=checked(text))
            except Skip as skip:
                missing = f"no column {caption_key!r} in {', '.join(columns):.200}; name its --caption-key"
                detail = printable(missing) if caption is None else skip.detail
                yield Item(f"{place}#{row}", cell, problem=(MISSING_CAPTION, detail))
    except (OSError, ValueError, TypeError, NotImplementedError, KeyError) as error:
        detail = " ".join(str(error).split())[:200]
        yield Item(place, problem=(BROKEN_SOURCE, f"it cannot be read: {printable(detail)}"))
