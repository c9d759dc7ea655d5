"""Tensors of files that torch wrote before version 1.6: pickles one after another, then the storages.

A magic number, a version, what machine it was, the object with ids in the place of its storages, and the
list of these ids are one pickle each; each storage follows as a count of 8 bytes and its values. It is
read as safely as the zip: by the same unpickler, which knows a closed list of names and runs nothing.
The format has no checksum; its length is checked.
"""

from __future__ import annotations

import dataclasses
from typing import Any, BinaryIO

import numpy as np

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.torch_zip import (
    MAX_PICKLE,
    DamagedError,
    Storage,
    Tensor,
    TorchZip,
    Unpickler,
    strided,
)

MAGIC = 0x1950A86A20F9469CFC6C
HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How such a file begins: the magic number as a pickle."""
VERSION = 1001


class _Limited:
    """A file of which the pickles may take so much and no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_PICKLE

    def read(self, count: int) -> bytes:
        self._spend(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._spend(len(line))
        return line

    def _spend(self, count: int) -> None:
        self._left -= count
        if count < 0 or self._left < 0:
            raise DamagedError("its description is too large")


class _Unpickler(Unpickler):
    """Ids have a sixth part here: storages that are parts of others."""

    def __init__(self, file: Any, storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, pid: Any) -> Storage:
        """The storage, or the part of one, that an id stands for."""
        storage = super().persistent_load(pid)
        if self._storages.setdefault(storage.key, storage) != storage:
            raise DamagedError(f"storage {storage.key} is described twice")
        if len(pid) > 5 and pid[5] is not None:
            if not isinstance(pid[5], tuple) or len(pid[5]) != 3:
                raise DamagedError("a part of a storage has no place")
            _, begin, size = pid[5]
            if (
                type(begin) is not int
                or type(size) is not int
                or not 0 <= begin <= begin + size <= storage.size
            ):
                raise DamagedError("a part reaches outside its storage")
            return dataclasses.replace(storage, begin=begin, size=size)
        return storage


class TorchStream(TorchZip):
    """A file in the old format; see `TorchZip`."""

    def _open(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        storages: dict[str, Storage] = {}
        with self.path.open("rb") as file:
            limited = _Limited(file)
            magic, version, system = (Unpickler(limited).load() for _ in range(3))
            if magic != MAGIC or version != VERSION or not isinstance(system, dict):
                raise DamagedError("no torch file of a known version")
            if system.get("little_endian") is not True:
                raise UserError(f"{self.path}: written on a big-endian machine; save it again on another")
            content = _Unpickler(limited, storages).load()
            order = Unpickler(limited).load()
            if not isinstance(order, list) or sorted(map(str, order)) != sorted(storages):
                raise DamagedError("its list of storages is not that of its tensors")
            place, self._places = file.tell(), {}
            size = file.seek(0, 2)
            for key in order:
                storage = storages[key]
                file.seek(place)
                if int.from_bytes(file.read(8), "little") != storage.size:
                    raise DamagedError(f"storage {key} is not as long as it should be")
                self._places[key] = place + 8
                place += 8 + storage.size * storage.dtype.itemsize
            if place != size:
                raise DamagedError(f"it has {size} bytes instead of {place}")
        return self._select(content)

    def _read(self, tensor: Tensor) -> np.ndarray:
        dtype, count = tensor.storage.dtype, tensor.extent
        if count == 0:
            return np.zeros(tensor.shape, dtype)
        first = (tensor.storage.begin + tensor.offset) * dtype.itemsize
        data = np.fromfile(self.path, dtype, count, offset=self._places[tensor.storage.key] + first)
        if data.size != count:
            raise DamagedError(f"storage {tensor.storage.key} ends early")
        return strided(data, tensor)
