"""Listing files, and pairing pictures with the captions beside them: for folders and for tars alike."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from ultrapixel_jax.data.images import SUFFIXES
from ultrapixel_jax.data.items import (
    BROKEN_SOURCE,
    MISSING_CAPTION,
    MISSING_IMAGE,
    NO_PICTURE,
    Blob,
    Entry,
    Item,
)
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.files import file_system, is_remote

PICTURES = (*SUFFIXES, ".heic", ".heif", ".hif", ".jxl")
"""Names of what is tried as a picture; what it is, its content decides."""
CAPTIONS = (".json", ".txt", ".caption")
"""Files with a caption, by preference."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".rar", ".7z")
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")
"""What desktops leave everywhere: no data, and not named. So is ._NAME."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is no one's data."""
    return name in LITTER or name.startswith("._")


def walk(root: str) -> tuple[list[Entry], list[Item]]:
    """All files below the folder `root`, sorted by name, and what could not be entered or is no file.

    Links to folders are followed, each folder once. `OSError` if `root` itself cannot be read.
    """
    return _walk_remote(root) if is_remote(root) else _walk_local(root)


def version_of(path: str) -> str:
    """`Blob.version` of one file; empty if it cannot be told."""
    try:
        if is_remote(path):
            return _remote_version(file_system(path).info(path))
        return _version(os.stat(path))  # noqa: PTH116  (names may be no UTF-8, or hold NUL)
    except (OSError, ValueError):
        return ""


def _walk_local(root: str) -> tuple[list[Entry], list[Item]]:
    entries: list[Entry] = []
    items: list[Item] = []
    folders = [(root, "")]
    links: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()

    def note(name: str, reason: str, detail: str) -> None:
        items.append(Item(printable(name), problem=(reason, detail)))

    def enter(path: str, name: str) -> None:
        where = os.stat(path)  # noqa: PTH116
        if (where.st_dev, where.st_ino) in seen:
            note(name, NO_PICTURE, "a link to a folder that is read already")
            return
        seen.add((where.st_dev, where.st_ino))
        with os.scandir(path) as found:
            children = sorted(found, key=lambda child: child.name)
        for child in children:
            below = f"{name}/{child.name}" if name else child.name
            if is_litter(child.name):
                continue
            try:
                folder, status = child.is_dir(), child.stat()
            except FileNotFoundError:
                note(below, MISSING_IMAGE, "a link to nothing")
                continue
            except OSError as error:
                note(below, BROKEN_SOURCE, f"it cannot be read: {error.strerror}")
                continue
            if child.name.startswith("."):
                note(below, NO_PICTURE, "a hidden folder" if folder else "a hidden file")
            elif folder:
                (links if child.is_symlink() else folders).append((child.path, below))
            elif stat.S_ISREG(status.st_mode):
                entries.append(Entry(below, Blob(child.path, version=_version(status))))
            else:
                note(below, NO_PICTURE, "neither a file nor a folder")

    while folders or links:  # links last, so that folders are found under their own names
        path, name = folders.pop() if folders else links.pop(0)
        try:
            enter(path, name)
        except OSError as error:
            if not name:
                raise
            note(name, BROKEN_SOURCE, f"it cannot be read: {error.strerror}")
    return sorted(entries, key=lambda entry: entry.name), items


def _walk_remote(root: str) -> tuple[list[Entry], list[Item]]:
    fs = file_system(root)
    top = fs._strip_protocol(root).rstrip("/")
    entries, items = [], []
    for path, info in sorted(fs.find(root, detail=True).items()):
        name = path[len(top) :].lstrip("/")
        parts = name.split("/")
        if any(is_litter(part) for part in parts) or not name:
            continue
        if any(part.startswith(".") for part in parts):
            items.append(Item(printable(name), problem=(NO_PICTURE, "a hidden file")))
        else:
            blob = Blob(f"{root.rstrip('/')}/{name}", version=_remote_version(info))
            entries.append(Entry(name, blob))
    return entries, items


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _remote_version(info: dict[str, Any]) -> str:
    names = ("size", "generation", "md5Hash", "etag", "ETag", "updated", "mtime", "LastModified")
    return "-".join(str(info[name]) for name in names if name in info)


def pair(entries: Sequence[Entry], *, prefix: str = "", by_key: bool = False) -> Iterator[Item]:
    """Items of all `entries`: pictures with the captions of their names, then whatever is neither.

    The caption of `a.b.jpg` is `a.b.json`, `a.b.txt`, `a.b.caption`, or one of `a.b.jpg.json`, ….

    Args:
        entries: files of one folder tree or one tar.
        prefix: put before the names to make them unique.
        by_key: WebDataset's convention too: files whose names agree up to the first dot belong together,
            where just one of them is a picture.
    """
    captions: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        if entry.suffix in CAPTIONS:
            captions[entry.stem].setdefault(entry.suffix, entry)
    pictures = [
        entry for entry in entries
        if entry.suffix in PICTURES or (not entry.suffix and captions.get(entry.name))
    ]  # fmt: skip
    groups: dict[str, list[Entry]] = defaultdict(list)
    alone: dict[str, int] = defaultdict(int)
    if by_key:
        for entry in entries:
            if entry.suffix in CAPTIONS:
                groups[entry.key].append(entry)
        for entry in pictures:
            alone[entry.key] += 1
    used: set[str] = {entry.name for entry in pictures}
    for entry in pictures:
        beside = [
            (("" if stem == entry.stem else entry.suffix) + suffix, captions[stem][suffix])
            for stem in dict.fromkeys((entry.stem, entry.name)) for suffix in CAPTIONS
            if stem in captions and suffix in captions[stem]
        ]  # fmt: skip
        if not beside and alone[entry.key] == 1:
            of_key = sorted(groups[entry.key], key=lambda e: (CAPTIONS.index(e.suffix), e.name))
            beside = [(e.name[len(entry.key) :], e) for e in of_key]
        used.update(caption.name for _, caption in beside)
        files = tuple((suffix, caption.blob) for suffix, caption in beside)
        problem = None if files else (MISSING_CAPTION, _without_caption(entry, alone[entry.key]))
        yield Item(prefix + printable(entry.name), entry.blob, caption_files=files, problem=problem)
    yield from leftovers((e for e in entries if e.name not in used), prefix)


def _without_caption(entry: Entry, pictures: int) -> str:
    stem = printable(PurePosixPath(entry.stem).name)
    detail = f"neither {stem}.json nor {stem}.txt beside it"
    return f"{detail}, and {pictures} pictures have its key" if pictures > 1 else detail


def leftovers(entries: Iterable[Entry], prefix: str = "") -> Iterator[Item]:
    """What is neither a picture nor the caption of one, with what it is instead."""
    for entry in entries:
        reason, detail = NO_PICTURE, "neither a picture nor the caption of one"
        if entry.suffix in CAPTIONS:
            reason, detail = MISSING_IMAGE, "a caption without a picture"
        elif entry.suffix in ARCHIVES:
            detail = "an archive inside, which is not opened: unpack it"
        yield Item(prefix + printable(entry.name), problem=(reason, detail))
