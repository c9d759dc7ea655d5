"""Prompt files: lines, JSON lines, a JSON array, or a table with a header; each picture is an `Entry`.

Nothing here imports jax: a bad list is refused before a model is loaded.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax.commands import OTHERS, Reader, whole
from ultrapixel_jax.errors import UserError, nearest, one_line, unknown_key
from ultrapixel_jax.sampling import condition_keys
from ultrapixel_jax.sampling.conditions import Conditions
from ultrapixel_jax.sampling.requests import (
    MAX_SEED,
    SETTINGS,
    SETTINGS_B,
    Entry,
    check_name,
    check_prompt,
)
from ultrapixel_jax.sizes import MAX_SIDE, MIN_SIDE, check_size, parse_size

Note = Callable[[str], Any]
"""Told what may be a surprise."""

_TEXT = Reader(str, "TEXT")
KEYS: Mapping[str, Reader] = {
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
    "seed": whole(0, MAX_SEED),
    "size": _TEXT,
    "height": whole(MIN_SIDE, MAX_SIDE),
    "width": whole(MIN_SIDE, MAX_SIDE),
    "name": _TEXT,
    "num_images": whole(1, 100_000),
    **SETTINGS,
    **SETTINGS_B,
    **{name: Reader(key.read, key.metavar) for name, key in condition_keys.KEYS.items()},
}
"""What can be said of a picture, with how it is read."""
SAME = {"prompts": "prompt", "caption": "prompt", "text": "prompt"}
"""Other names of a key."""
MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"),
         (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))  # fmt: skip
"""Byte order marks."""
LONGEST_CELL = 1 << 17
"""Characters of a cell: a prompt is far shorter, and a quote that is not closed far longer."""
DELIMITERS = (",", "\t", ";")


def read_prompts(path: str | Path, *, comments: bool = False, note: Note = lambda _: None) -> list[Entry]:
    """Read a prompts file; ``-`` is stdin.

    - ``.json``, or a text that begins like one: an array of objects, or of prompts.
    - ``.csv`` and ``.tsv``, or a text whose first line names such columns: a table.
    - Else lines. One whose first character is ``{`` is a JSON object, any other a prompt as it stands.
      Blank lines are skipped, and nothing else is.

    Objects and tables have the keys in `KEYS`, of which only ``prompt`` must be there, in capitals or not.
    Paths in them are relative to the file. Columns that mean nothing here are passed over, and named.

    Args:
        path: of the file.
        comments: whether lines that begin with ``#`` are skipped.
        note: told of columns that are passed over, and of prompts that look like comments.

    Raises:
        UserError: no such file, nothing in it, or a malformed line, with file and line number.
    """
    where = "stdin" if str(path) == "-" else str(path)
    text = _decoded(_read(path), where)
    kind = Path(path).suffix.lower()
    lines = text.split("\n")
    if comments:
        lines = ["" if line.lstrip().startswith("#") else line for line in lines]
        text = "\n".join(lines)
    items = _array(text, kind, where)
    if items is None:
        items = _table(text, kind, where, note)
    if items is None:
        items = _lines(lines)
    entries = []
    for place, read in items:
        try:
            entries.append(_placed(read(), path))
        except UserError as error:
            raise UserError(f"{where}{place}: {error}") from error
    if not entries:
        raise UserError(f"prompts file {where!r} is empty; write one prompt per line")
    if count := sum(entry.prompt.startswith("#") for entry in entries):
        note(f"{count} prompts begin with #; --comments skips such lines")
    return entries


def _placed(entry: Entry, path: str | Path) -> Entry:
    """`entry` with the paths that it names taken relative to the file `path`; to the command's on stdin."""
    if isinstance(entry.conditions, Conditions) or str(path) == "-":
        return entry
    folder = Path(path).parent
    found = {name: condition_keys.under(value, folder) for name, value in entry.conditions.items()}
    return dataclasses.replace(entry, conditions=found)


_Items = Iterator[tuple[str, Callable[[], Entry]]]
"""Where each picture stands, and what reads it."""


def _read(path: str | Path) -> bytes:
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("--prompts - reads stdin, which is closed; pipe prompts into it")
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"prompts file {str(path)!r} does not exist") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"prompts file {str(path)!r} cannot be read: {reason}") from error


def _decoded(data: bytes, where: str) -> str:
    """The text of a file, with a line feed alone at the end of each line."""
    mark, encoding = next((m for m in MARKS if data.startswith(m[0])), (b"", "utf-8"))
    data = data.removeprefix(mark)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{where} is damaged {encoding.upper()} text; save it as UTF-8") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}:{line}: not UTF-8 text; save the file as UTF-8") from error
    if text.count("\0") > len(text) // 4:
        raise UserError(f"{where} looks like UTF-16 text without a byte order mark; save it as UTF-8")
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


# ---------------------------------------------------------------------------- kinds of files


def _lines(lines: Sequence[str]) -> _Items:
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if line.startswith("{"):
            yield f":{number}", lambda line=line: entry(_json(line))
        elif line:
            yield f":{number}", lambda line=line: Entry(check_prompt(line))


def _array(text: str, kind: str, where: str) -> _Items | None:
    """The items of a JSON array; None where the text is none."""
    if kind != ".json" and not text.lstrip().startswith("["):
        return None
    try:
        found = _json(text)
    except UserError as error:
        if re.match(r"\s*\[\s*\{", text) or (kind == ".json" and not text.lstrip().startswith("{")):
            raise UserError(f"{where}: {error}") from error
        return None  # lines, be it of JSON
    found = [found] if kind == ".json" and isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(item, (dict, str)) for item in found):
        if kind == ".json":
            raise UserError(f"{where}: not an array of objects or of prompts")
        return None

    def read(item: Any) -> Callable[[], Entry]:
        return lambda: Entry(check_prompt(item)) if isinstance(item, str) else entry(item)

    return ((f": item {number}", read(item)) for number, item in enumerate(found, start=1))


def _table(text: str, kind: str, where: str, note: Note) -> _Items | None:
    """The rows of a table; None where the text is none."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    csv.field_size_limit(LONGEST_CELL)  # of the whole process: reading training data sets another
    for delimiter in DELIMITERS:
        try:
            header = [_plain(cell) for cell in next(csv.reader([first], delimiter=delimiter), [])]
        except csv.Error:
            continue
        if "prompt" not in header:
            continue
        # A prompt may well have the word and a comma, but hardly a tab.
        if kind in (".csv", ".tsv") or (len(header) > 1 and (delimiter == "\t" or {*header} <= {*KEYS})):
            return _rows(text, delimiter, where, note)
    if kind in (".csv", ".tsv") and first:
        raise UserError(f"{where}: its first line names no column 'prompt'; it has {one_line(first)!r:.80}")
    return None


def _rows(text: str, delimiter: str, where: str, note: Note) -> _Items:
    names: list[str] = []
    for line, row in _cells(text, delimiter, where):
        if names:
            yield f":{line}", functools.partial(_row, names, row)
        else:
            names = _columns(row, where, note)


def _cells(text: str, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with their last lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}:{reader.line_num}: not a row of the table: {error}") from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _columns(header: Sequence[str], where: str, note: Note) -> list[str]:
    names = [_plain(cell) for cell in header]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{where}: the column {name!r:.80} is there twice")
        if name not in KEYS and (meant := _meant(name)):
            raise UserError(f"{where}: unknown column: {name!r:.80}; did you mean {meant!r}?")
    if unused := [cell.strip() for cell, name in zip(header, names) if cell.strip() and name not in KEYS]:
        note(f"{where}: columns without a meaning here: {', '.join(unused)}")
    return names


def _row(names: Sequence[str], row: Sequence[str]) -> Entry:
    if len(row) > len(names):
        raise UserError(
            f"{len(row)} cells under {len(names)} columns; put a cell that has the delimiter in it in quotes"
        )
    cells = {name: cell.strip() for name, cell in zip(names, row) if name in KEYS and cell.strip()}
    return _entry({name: _value(name, cell) for name, cell in cells.items()})


# ---------------------------------------------------------------------------- one picture


def entry(values: Mapping[str, Any]) -> Entry:
    """The picture that a JSON object describes.

    Raises:
        UserError: an unknown key, a value of another type or out of range, no prompt.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = _plain(key)
        if name not in KEYS:
            meant = _meant(name)
            hint = f"unknown key: {key!r:.80}; did you mean {meant!r}?" if meant else ""
            raise UserError(hint or unknown_key(key, KEYS, "key"))
        if name in found:
            raise UserError(f"the key {key!r:.80} is given twice")
        if value is None and name != "prompt":
            continue  # what pandas writes for an empty cell
        found[name] = _typed(name, value)
    return _entry(found)


def _entry(values: dict[str, Any]) -> Entry:
    if "prompt" not in values:
        raise UserError("the key 'prompt' is missing")
    if "size" in values:
        if "height" in values or "width" in values:
            raise UserError("give either size or height and width")
        values["height"], values["width"] = parse_size(values.pop("size"))
    elif ("height" in values) != ("width" in values):
        raise UserError("give height and width together")
    elif "height" in values:
        check_size(values["height"], values["width"])
    for name in ("prompt", "negative_prompt"):
        if name in values:
            values[name] = check_prompt(values[name])
    if "name" in values:
        values["name"] = check_name(values["name"])
    settings = {name: values.pop(name) for name in [*SETTINGS, *SETTINGS_B] if name in values}
    steered = {name: values.pop(name) for name in condition_keys.KEYS if name in values}
    return Entry(**values, settings=settings, conditions=steered)


def _typed(name: str, value: Any) -> Any:
    """The `value` of a JSON key."""
    if name in condition_keys.KEYS:
        return condition_keys.read(name, value)
    kind = KEYS[name]
    whole_number = kind.metavar == "N"
    if isinstance(value, float) and whole_number and value.is_integer():
        value = int(value)
    wanted = {"N": int, "X": (int, float)}.get(kind.metavar, str)
    if not isinstance(value, wanted) or isinstance(value, bool):
        said = "a whole number" if whole_number else "a number" if kind.metavar == "X" else "text"
        raise UserError(f"{name} must be {said}, not {value!r:.80}")
    return value if kind is _TEXT else _value(name, str(value))


def _value(name: str, text: str) -> Any:
    """The value of the key `name` that is written as `text`."""
    if name in condition_keys.KEYS:
        return condition_keys.read(name, text)
    try:
        return KEYS[name].read(text)
    except ValueError as error:
        raise UserError(f"{name} {error}") from error


def _plain(key: str) -> str:
    """The name of a key as it is in `KEYS`, if it is."""
    name = re.sub(r"[\s-]+", "_", key.strip().lower())
    return SAME.get(name, name)


def _meant(name: str) -> str | None:
    """What an unknown key was meant to be."""
    theirs = [ours.replace("-", "_") for ours in OTHERS.get(name.replace("_", "-"), ())]
    return next((ours for ours in theirs if ours in KEYS), None) or nearest(name, KEYS)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text else ""
        raise UserError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise UserError(f"not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"the key {key!r:.80} is given twice")
    return dict(pairs)
