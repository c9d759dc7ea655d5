"""Tensors of a torch zip file, read without torch and without running anything that is in it.

`torch.save` writes a zip with one pickle, ``*/data.pkl``, that describes the tensors, and one member
``*/data/<key>`` per storage. A pickle can name any function to call. This reader resolves names from a
closed list only, each to a stand-in of its own, and refuses the file at the first other name.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ultrapixel_jax.errors import UserError

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""The fixed part of the header in front of every zip member."""
CHUNK = 1 << 22
"""Bytes read at a time while a checksum is computed."""
MAX_PICKLE = 1 << 28
"""Largest description in bytes; that of the 3.6B stage C would have under 1 MB."""
MAX_REPEATED = 1 << 24
"""Most elements of a tensor that repeats its storage (torch's expand)."""

DTYPES = {
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Half": np.dtype(np.float16),
    "Float": np.dtype(np.float32),
    "Double": np.dtype(np.float64),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
    "Untyped": np.dtype(np.uint8),
}
"""torch's storage names, as in FloatStorage."""
NAMES = (
    "bfloat16", "float16", "half", "float32", "float", "float64", "double", "int64", "long", "int32",
    "int", "int16", "short", "int8", "uint8", "bool", "strided", "contiguous_format", "preserve_format",
)  # fmt: skip
"""Plain values of the torch module that a file may mention."""


NESTS = ("state_dict", "model_state_dict", "model", "module")
"""Under which key trainers keep the weights among other things, also one in another."""


class RefusedError(Exception):
    """The pickle asks for something that is not on the list."""


class DamagedError(Exception):
    """The file contradicts itself."""


@dataclasses.dataclass(frozen=True)
class Inert:
    """Stand-in for a torch object that has no data: a dtype, a device."""

    name: str


@dataclasses.dataclass(frozen=True)
class StorageType:
    """Stand-in for a storage class."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Storage:
    """One member of the zip: `size` elements of `dtype`."""

    key: str
    dtype: np.dtype
    size: int
    begin: int = 0
    """First element, where it is a part of another (the old format's)."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; `offset` and `strides` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements of the storage from the first that the view uses to the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2`, which refuses what reaches outside the storage."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise DamagedError("a tensor has no storage, shape or strides")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise DamagedError(f"a tensor has shape {shape} and strides {strides}")
    tensor = Tensor(storage, offset, shape, strides)
    if offset + tensor.extent > storage.size:
        raise DamagedError(f"a tensor of shape {shape} reaches outside its {storage.size} elements")
    if math.prod(shape) > max(storage.size, MAX_REPEATED):
        raise DamagedError(f"a tensor of shape {shape} repeats a storage of {storage.size} elements")
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    """Stand-in for `torch._utils._rebuild_parameter`: a parameter is its data."""
    return data


def _size(values: Any = ()) -> tuple[Any, ...]:
    """Stand-in for `torch.Size`."""
    return tuple(values)


def _device(*args: Any) -> Inert:
    """Stand-in for `torch.device`."""
    return Inert("torch.device")


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.storage.TypedStorage": StorageType(DTYPES["Untyped"]),
    "torch.storage.UntypedStorage": StorageType(DTYPES["Untyped"]),
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in DTYPES.items()},
    **{f"torch.{name}": Inert(f"torch.{name}") for name in NAMES},
}
"""Everything that a pickle may name, and what it gets."""


class Unpickler(pickle._Unpickler):
    """Reads the description. Written in Python, as the C unpickler allocates whatever a file asks for."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name, or `RefusedError`."""
        # Not getattr: protocol 4 lets a name have dots, and "OrderedDict.__init__" is one step from harm.
        found = ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise RefusedError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that torch's ("storage", type, key, device, size) stands for."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise DamagedError("a storage has no description")
        kind, key, size = pid[1], pid[2], pid[4]
        if not isinstance(kind, StorageType) or not isinstance(key, str) or type(size) is not int:
            raise DamagedError("a storage has no type, key or size")
        return Storage(key, kind.dtype, size)

    def load_build(self) -> None:
        """Drop an object's state: of ours only an OrderedDict has one, its `_metadata` of versions."""
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], OrderedDict):  # type: ignore[attr-defined]
            raise DamagedError("an object other than a dictionary has a state")

    dispatch[pickle.BUILD[0]] = load_build


class NoWeightsError(UserError):
    """A file of torch's that is whole, and holds no weights: an optimizer's state, say."""


def strided(data: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The tensor that lies in `data`, which begins with its first element; C-contiguous."""
    steps = tuple(s * data.dtype.itemsize for s in tensor.strides)
    view = np.lib.stride_tricks.as_strided(data, tensor.shape, steps, writeable=False)
    return np.array(view, order="C") if not view.flags.c_contiguous else data.reshape(tensor.shape)


class TorchZip:
    """A torch zip file. No handle stays open between reads.

    `specs` gives key to (shape, dtype) of every tensor, `skipped` the names of other entries.
    """

    def __init__(self, path: Path) -> None:
        """Read the description in `path`.

        `UserError` if it is damaged, not made by torch, or asks for anything but tensors.
        """
        self.path = path
        self._verified: set[str] = set()
        self._tensors, self.skipped = self._guard(self._open)
        self.specs = {key: (t.shape, t.storage.dtype) for key, t in self._tensors.items()}

    def read(self, key: str) -> np.ndarray:
        """The tensor `key`, C-contiguous; holds its part of the storage in memory, nothing else.

        `UserError` if the checksum of its storage is wrong.
        """
        return self._guard(lambda: self._read(self._tensors[key]))

    def _guard(self, step: Callable[[], Any]) -> Any:
        """Run `step`; whatever a damaged file makes the zip and pickle modules raise is a UserError."""
        try:
            return step()
        except UserError:
            raise
        except RefusedError as error:
            raise UserError(
                f"{self.path}: refused, its pickle names {error}, which is no tensor; nothing in the file "
                "was run; get the file from its original source"
            ) from None
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: does not exist any more") from error
        except Exception as error:
            what = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{self.path}: damaged torch file ({what}); download it again") from error

    def _open(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        with zipfile.ZipFile(self.path) as archive:
            self._members = {info.filename: info for info in archive.infolist()}
            (root,) = (n.removesuffix("data.pkl") for n in self._members if n.endswith("/data.pkl"))
            self._root = root
            order = f"{root}byteorder"
            if order in self._members and archive.read(order).strip() != b"little":
                raise UserError(f"{self.path}: written on a big-endian machine; save it again on another")
            if self._members[f"{root}data.pkl"].file_size > MAX_PICKLE:
                raise DamagedError("its description is too large")
            content = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        tensors, skipped = self._select(content)
        for tensor in tensors.values():
            self._check_member(tensor.storage)
        return tensors, skipped

    def _select(self, content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The tensors of the dictionary, or of the `state_dict` in it, and the names of the rest."""
        skipped: list[str] = []
        for nest in NESTS:
            if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
                skipped += [str(key) for key in content if key != nest]
                content = content[nest]
        if not isinstance(content, Mapping):
            raise NoWeightsError(f"{self.path}: holds no dictionary of tensors; save the model's state_dict")
        if "param_groups" in content:
            raise NoWeightsError(f"{self.path}: an optimizer's state; the model's weights are needed")
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        skipped += [str(key) for key in content if key not in tensors]
        if not tensors:
            found = ", ".join(skipped[:5]) or "nothing"
            raise NoWeightsError(
                f"{self.path}: no tensors, neither directly nor under {', '.join(NESTS)}; found {found:.200}"
            )
        return tensors, tuple(skipped)

    def _check_member(self, storage: Storage) -> zipfile.ZipInfo:
        info = self._members.get(f"{self._root}data/{storage.key}")
        if info is None:
            raise DamagedError(f"storage {storage.key} is missing")
        if info.file_size < storage.size * storage.dtype.itemsize:
            raise DamagedError(f"storage {storage.key} is too short")
        return info

    def _read(self, tensor: Tensor) -> np.ndarray:
        dtype, count = tensor.storage.dtype, tensor.extent
        if count == 0:
            return np.zeros(tensor.shape, dtype)
        info = self._check_member(tensor.storage)
        first = tensor.offset * dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(self.path) as archive:
                data = np.frombuffer(archive.read(info.filename), dtype, count, first)
        else:
            start = self._verify(info)
            data = np.fromfile(self.path, dtype, count, offset=start + first)
        if data.size != count:
            raise DamagedError(f"storage {tensor.storage.key} ends early")
        return strided(data, tensor)

    def _verify(self, info: zipfile.ZipInfo) -> int:
        """Compare the checksum of an uncompressed member, once; returns where in the file it begins."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            if header[0] != b"PK\3\4" or file.read(header[-2]) != info.orig_filename.encode():
                raise DamagedError(f"no member begins where {info.filename} should")
            start = file.seek(header[-1], io.SEEK_CUR)
            if info.filename in self._verified:
                return start
            crc, left = 0, info.file_size
            while left and (chunk := file.read(min(CHUNK, left))):
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        if left or crc != info.CRC:
            raise DamagedError(f"the checksum of {info.filename} is wrong")
        self._verified.add(info.filename)
        return start
