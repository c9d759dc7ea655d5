"""WebDataset shards: tar files whose members are read in place."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from etils import epath

from ultrapixel_jax.data.folders import is_litter, pair
from ultrapixel_jax.data.items import BROKEN_SOURCE, NO_PICTURE, Blob, Entry, Item
from ultrapixel_jax.data.text import printable


def list_tar(shard: Entry) -> Iterator[Item]:
    """Items of one shard, and what else is in it."""
    place = printable(shard.name)
    members: dict[str, Entry] = {}
    items: list[Item] = []

    def note(name: str, reason: str, detail: str) -> None:
        items.append(Item(f"{place}/{printable(name)}", problem=(reason, detail)))

    broken = None
    with epath.Path(shard.blob.path).open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    name = str(path)
                    if member.isdir() or is_litter(path.name) or LITTER_FOLDER in path.parts:
                        continue
                    if path.name.startswith("."):
                        note(name, NO_PICTURE, "a hidden file")
                    elif member.islnk() and str(PurePosixPath(member.linkname)) in members:
                        members[name] = Entry(name, members[str(PurePosixPath(member.linkname))].blob)
                    elif not member.isreg() or member.issparse() or not path.name:
                        note(name, NO_PICTURE, "a link, or no plain file")
                    else:
                        if name in members:
                            note(name, BROKEN_SOURCE, "the tar has another file of this name further on")
                        blob = Blob(shard.blob.path, member.offset_data, member.size, shard.blob.version)
                        members[name] = Entry(name, blob)
                file.seek(tar.offset)
                if not file.read(1):  # cut between two members, which tarfile takes for the end
                    broken = "the tar has no end mark: it is truncated"
        # What tarfile raises for damaged headers is not one type.
        except (tarfile.TarError, ValueError, EOFError, OverflowError, struct.error, KeyError,
                IndexError, TypeError) as error:  # fmt: skip
            broken = f"the tar cannot be read to its end: {' '.join(str(error).split())}"
    yield from pair(list(members.values()), prefix=f"{place}/", by_key=True)
    yield from items
    if broken:
        yield Item(place, problem=(BROKEN_SOURCE, broken))


LITTER_FOLDER = "__MACOSX"
