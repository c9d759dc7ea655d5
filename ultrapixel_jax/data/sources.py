"""Where captioned images come from: a folder tree, WebDataset tar files, or JSON lines.

Listing reads names and headers only. What an image lacks is noted in its `Item` and ends up in the
report of the build; nothing is left out without a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from etils import epath

from ultrapixel_jax.data.images import SUFFIXES
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError

KINDS = ("folder", "webdataset", "jsonl")
CAPTION_SUFFIXES = (".json", ".txt")
"""Files with a caption, the first that is there counts."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
JSON_LINES = (".jsonl", ".ndjson")

MISSING_CAPTION = "missing caption"
MISSING_IMAGE = "missing image"
BROKEN_IMAGE = "broken image"
BROKEN_SOURCE = "broken source"


class Skip(Exception):  # noqa: N818  (no fault of ours)
    """An item that becomes no example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Blob:
    """Bytes in a file: all of it, or a member of a tar."""

    path: str
    offset: int = 0
    size: int | None = None
    """None is the whole file."""

    def read(self) -> bytes:
        """The bytes; `OSError` if they cannot be read."""
        if self.size is None:
            return epath.Path(self.path).read_bytes()
        with epath.Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of the source."""

    id: str
    """Unique in the source: the path below it, with the tar's name where it lies in one."""
    image: Blob | None = None
    caption: str | None = None
    """Where the listing has it (JSON lines)."""
    caption_file: Blob | None = None
    """Else the file beside the image."""
    caption_kind: str = ""
    """`.json` or `.txt`, of `caption_file`."""
    problem: tuple[str, str] | None = None
    """Reason and detail of what the listing found wrong."""

    def read_caption(self, key: str) -> str:
        """The caption, stripped; a `.json` file has it under `key`.

        Raises:
            Skip: there is none.
        """
        caption: object = self.caption
        if self.caption_file is not None:
            name = PurePosixPath(self.caption_file.path).name
            try:
                text = self.caption_file.read().decode("utf-8-sig")
                caption = json.loads(text).get(key) if self._caption_is_json else text
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                raise Skip(MISSING_CAPTION, f"{name} cannot be read: {error}") from error
        if not isinstance(caption, str) or not caption.strip():
            raise Skip(MISSING_CAPTION, f"no text under {key!r}" if self._caption_is_json else "it is empty")
        return caption.strip()

    @property
    def _caption_is_json(self) -> bool:
        """Whether the caption is a key of a JSON object."""
        return self.caption_file is None or self.caption_kind == ".json"


def list_source(source: str, kind: str, image_key: str, caption_key: str) -> list[Item]:
    """Every image of `source`, in an order that depends on the names alone.

    Args:
        source: a directory, a `.tar`, or a file of JSON lines; local or remote.
        kind: one of `KINDS`, or `auto` to tell by what is there.
        image_key: where a JSON line has the image's path, relative to the file.
        caption_key: where it has the caption.

    Raises:
        UserError: nothing there, no image in it, or several kinds at once.
    """
    path = epath.Path(source)
    with user_errors(source, "source"):
        if path.is_dir():
            files = _files(path)
        elif path.exists():
            files = [path]
        else:
            raise UserError(f"source {source!r} does not exist; give a folder, a .tar or a .jsonl file")
        root = path if path.is_dir() else path.parent
        if packed := [p.name for p in files if p.name.lower().endswith(COMPRESSED)]:
            raise UserError(
                f"{packed[0]} is a compressed tar, which cannot be read at random; decompress it to .tar"
            )
        kind = _detect(source, files) if kind == "auto" else kind
        tars = _with_suffix(files, (".tar",))
        lists = _with_suffix(files, JSON_LINES)
        if kind == "webdataset":
            items = [item for tar in tars for item in _list_tar(tar, root)]
        elif kind == "jsonl":
            seen: set[str] = set()
            lists = lists or ([path] if path.is_file() else [])
            items = [item for file in lists for item in _list_lines(file, image_key, caption_key, seen)]
        else:
            items = list(_list_folder(files, root))
    if not items:
        raise UserError(
            f"source {source!r} has no images; known are {', '.join(SUFFIXES)} in folders, .tar files "
            "(WebDataset) and .jsonl files"
        )
    return items


def _files(root: epath.Path) -> list[epath.Path]:
    """All files below `root`, sorted.

    A name that starts with a dot is no data: .DS_Store, and ._photo.jpg from other file systems.
    """

    def refuse(error: OSError) -> None:
        raise error

    found, top = [], None
    for directory, _, names in root.walk(on_error=refuse):
        # In a bucket etils walks without the gs://: so take what lies below the first, which is the root.
        top = os.fspath(directory) if top is None else top
        below = root / os.fspath(directory)[len(top) :].lstrip("/\\")
        found += [below / name for name in names if not name.startswith(".")]
    return sorted(found, key=os.fspath)


def _with_suffix(files: Sequence[epath.Path], suffixes: Sequence[str]) -> list[epath.Path]:
    return [p for p in files if p.suffix.lower() in suffixes]


def _detect(source: str, files: Sequence[epath.Path]) -> str:
    suffixes = {"folder": SUFFIXES, "webdataset": (".tar",), "jsonl": JSON_LINES}
    found = [kind for kind in KINDS if _with_suffix(files, suffixes[kind])]
    if found == ["folder", "jsonl"]:
        found = ["jsonl"]  # the images that the lines name
    if len(found) > 1:
        raise UserError(f"source {source!r} holds several kinds ({', '.join(found)}); choose with --kind")
    return found[0] if found else "folder"


def _list_folder(files: Sequence[epath.Path], root: epath.Path) -> Iterator[Item]:
    names = {os.fspath(p) for p in files}
    for path in _with_suffix(files, SUFFIXES):
        blob, id_ = Blob(os.fspath(path)), _below(path, root)
        for suffix in CAPTION_SUFFIXES:
            beside = os.fspath(path)[: -len(path.suffix)] + suffix
            if beside in names:
                yield Item(id_, blob, caption_file=Blob(beside), caption_kind=suffix)
                break
        else:
            stem = path.name[: -len(path.suffix)]
            yield Item(id_, blob, problem=(MISSING_CAPTION, f"neither {stem}.json nor {stem}.txt beside it"))


def _list_tar(path: epath.Path, root: epath.Path) -> Iterator[Item]:
    """Images of one WebDataset shard: files with one key (the name up to the first dot) are one example."""
    images: dict[str, tuple[str, Blob]] = {}
    captions: dict[str, tuple[str, Blob]] = {}
    broken = None
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    if not member.isfile() or name.name.startswith("."):
                        continue
                    stem, _, extension = name.name.partition(".")
                    key, suffix = os.fspath(name.with_name(stem)), f".{extension.lower()}"
                    blob = Blob(os.fspath(path), member.offset_data, member.size)
                    if suffix in SUFFIXES:
                        images[f"{key}{suffix}"] = key, blob
                    elif suffix in CAPTION_SUFFIXES and captions.get(key, (".txt",))[0] == ".txt":
                        captions[key] = suffix, blob
                file.seek(tar.offset)
                if not file.read(1):  # cut between two members, which tarfile takes for the end
                    broken = (BROKEN_SOURCE, "the tar has no end mark: it is truncated")
        except tarfile.TarError as error:
            broken = (BROKEN_SOURCE, f"the tar cannot be read to its end: {error}")
    place = _below(path, root)
    for name, (key, blob) in images.items():
        suffix, caption = captions.get(key, ("", None))
        problem = None if caption else (MISSING_CAPTION, f"neither {key}.json nor {key}.txt in the tar")
        yield Item(f"{place}/{name}", blob, caption_file=caption, caption_kind=suffix, problem=problem)
    if broken:
        yield Item(place, problem=broken)


def _list_lines(path: epath.Path, image_key: str, caption_key: str, seen: set[str]) -> Iterator[Item]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            values = json.loads(line)
            image = values[image_key]
            blob = Blob(os.fspath(path.parent / image))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            detail = f"the line has no {image_key!r}" if isinstance(error, KeyError) else f"no JSON: {error}"
            yield Item(place, problem=(BROKEN_SOURCE, detail))
            continue
        id_ = image if image not in seen else f"{image}#{place}"
        seen.add(id_)
        caption = values.get(caption_key)
        if isinstance(caption, str) and caption.strip():
            yield Item(id_, blob, caption=caption)
        else:
            yield Item(id_, blob, problem=(MISSING_CAPTION, f"{place} has no {caption_key!r}"))


def _below(path: epath.Path, root: epath.Path) -> str:
    return os.fspath(path)[len(os.fspath(root)) :].lstrip("/\\")
