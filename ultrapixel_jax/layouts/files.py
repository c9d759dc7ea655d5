"""Released checkpoint files, whatever their format: which tensors they hold, and one of them at a time.

Files are recognised by their first bytes, not by name. Reading any of them runs no code from it and
takes about the memory of one tensor. A bad file is a `UserError` of one line that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ultrapixel_jax.checkpoints.tokenizer import FILES as TOKENIZER
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_full
from ultrapixel_jax.layouts.describe import is_beside_weights
from ultrapixel_jax.layouts.torch_stream import HEAD, TorchStream
from ultrapixel_jax.layouts.torch_zip import NoWeightsError, TorchZip

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of a tensor."""

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors' dtype names that occur in checkpoints."""

FLOAT8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
"""Those that are read, and not written."""

INDEX = re.compile(r".+\.index(\.\w+)?\.json")
"""Names of lists of shards: `model.safetensors.index.json`, and with a variant before or after `index`."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""A file with such a name must be readable; others are passed over if they are no checkpoint."""

CHUNK = 1 << 20
"""Elements checked, and bytes hashed, at a time."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """One logical checkpoint: a file, or the shards that an index combines. Keeps no handle open."""

    path: Path
    """The file, or the index of the shards."""
    format: str
    """`safetensors`, `torch zip`, or one of these followed by ` shards`."""
    specs: dict[str, Spec]
    """Shape and dtype of every tensor, in the file's order."""
    parts: tuple[Path, ...]
    """The files that hold data."""
    skipped: tuple[str, ...]
    """Names of entries of a pickle that are no tensors."""
    sha256: str | None
    """Checksum of the file, if one was given beside it and is right."""
    reader: Callable[[str], np.ndarray] = dataclasses.field(repr=False, compare=False)
    """What `read` calls."""

    def read(self, key: str) -> np.ndarray:
        """The tensor `key` as the file has it, C-contiguous; `UserError` if its data are damaged."""
        return self.reader(key)


def find_files(paths: Sequence[Path], passed_over: list[Path] | None = None) -> list[TensorFile]:
    """Every logical checkpoint among `paths`, which may be files, indices and directories.

    Directories are walked in sorted order without hidden entries. `UserError` if a path does not exist,
    names a file that is no checkpoint, if a file is damaged, or if nothing is found at all. Files beside
    the weights that hold none, such as an optimizer's state, are added to `passed_over`.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    candidates: dict[Path, Path] = {}  # by what they are behind links, so that none is read twice
    for path in (found for top in given for found in _walk(top)):
        known = candidates.setdefault(path.resolve(), path)
        if path.suffix in SUFFIXES and known.suffix not in SUFFIXES:
            candidates[path.resolve()] = path
    indices = [path for path in candidates.values() if INDEX.fullmatch(path.name)]
    files = [file for file in map(_open_index, indices) if file is not None]
    taken = {part.resolve() for file in files for part in file.parts} | {p.resolve() for p in indices}
    for real, path in candidates.items():
        if real not in taken:
            try:
                file = open_file(path, required=path in given or path.suffix in SUFFIXES)
            except UserError as error:
                # In what trainers write beside the weights, anything may be; it is not read.
                if path in given or not (isinstance(error, NoWeightsError) or is_beside_weights(path.name)):
                    raise
                if passed_over is not None:
                    passed_over.append(path)
                continue
            if file is not None:
                files.append(file)
            elif passed_over is not None and path.name not in TOKENIZER:
                passed_over.append(path)
    if not files:
        raise UserError(f"no checkpoint file in {', '.join(map(str, given)) or 'an empty list of paths'}")
    return sorted(files, key=lambda file: file.path)


def _walk(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue  # download tools keep their partial files and notes there
        if child.is_dir() or child.is_file():
            yield from _walk(child)


def open_file(path: Path, required: bool = True) -> TensorFile | None:
    """The single checkpoint file `path`; if it is none, `UserError`, or None where not `required`."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if head[:2] == b"PK":
        if not (required or _has_pickle(path)):
            return None
        digest = _verify_sidecar(path)
        archive = TorchZip(path)
        return TensorFile(path, "torch zip", archive.specs, (path,), archive.skipped, digest, archive.read)
    if head.startswith(HEAD):
        digest = _verify_sidecar(path)
        stream = TorchStream(path)
        return TensorFile(path, "torch stream", stream.specs, (path,), stream.skipped, digest, stream.read)
    if head[8:9] == b"{":
        digest = _verify_sidecar(path)
        specs, reader = _open_safetensors(path)
        return TensorFile(path, "safetensors", specs, (path,), (), digest, reader)
    if required:
        raise UserError(f"{path}: {_describe(head)}")
    return None


def _has_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False


def _describe(head: bytes) -> str:
    """Why a file that begins with `head` is no checkpoint."""
    text = head.lstrip().lower()
    if not head:
        return "empty file; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull` or download it from the web page"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint: the download failed or needs a login; download it again"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a bare pickle, which could run anything and is not read; save the tensors as safetensors"
    if head[:4] == b"GGUF":
        return "a GGUF file of quantised weights, which are not read; get the original weights"
    if head[:6] == b"\x93NUMPY" or head[:4] == b"\x89HDF":
        return "numpy's or HDF5's format, which is not read; save the tensors as safetensors"
    return "neither safetensors nor a torch zip file; if it should be one, download it again"


def _open_safetensors(path: Path) -> tuple[dict[str, Spec], Callable[[str], np.ndarray]]:
    """Specs and reader of a safetensors file whose header the library has validated."""
    names: dict[str, str] = {}
    specs: dict[str, Spec] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.offset_keys())
            nested = all(key.startswith("state_dict.") for key in keys)
            for name in keys:
                key = name.removeprefix("state_dict.") if nested else name
                part = file.get_slice(name)
                dtype = (SAFETENSORS_DTYPES | FLOAT8).get(part.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: tensor {name} has dtype {part.get_dtype()}, not supported")
                names[key], specs[key] = name, (tuple(part.get_shape()), dtype)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise _damaged(path, error) from error
    if not specs:
        raise UserError(f"{path}: holds no tensors; download it again")

    def read(key: str) -> np.ndarray:
        # Opened anew for each tensor: pages of a mapping that stays open would pile up to the file's size.
        try:
            if specs[key][1] in FLOAT8.values():  # which the library has no numpy type for
                return _raw(path, names[key], *specs[key])
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(names[key])
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error

    return specs, read


def _raw(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A tensor of a safetensors file whose header is known to be right."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, _ = json.loads(file.read(length))[name]["data_offsets"]
    count = math.prod(shape)
    data = np.fromfile(path, dtype, count, offset=8 + length + begin)
    if data.size != count:
        raise ValueError(f"{name} ends early")
    return data.reshape(shape)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged or incomplete ({' '.join(str(error).split())}); download it again")


def _open_index(path: Path) -> TensorFile | None:
    """The checkpoint whose shards the index `path` lists; None for some other JSON file."""
    try:
        content = json.loads(path.read_bytes())
        places = content["weight_map"]
        wrong = {name for name in places.values() if not isinstance(name, str) or Path(name).name != name}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if any(suffix in path.name for suffix in SUFFIXES):
            raise UserError(f"{path}: not a valid index of shards; download it again") from error
        return None
    if wrong:
        raise UserError(f"{path}: names the shard {min(map(str, wrong))!r}, which is no file beside it")
    shards: dict[str, TensorFile] = {}
    for name in sorted(set(places.values())):
        if not (path.parent / name).is_file():
            raise UserError(f"{path}: its shard {name} is missing; download it into the same directory")
        shard = open_file(path.parent / name)
        assert shard is not None
        shards[name] = shard
    if not shards:
        raise UserError(f"{path}: lists no shards; download it again")
    for key, name in places.items():
        if key not in shards[name].specs:
            raise UserError(f"{path}: tensor {key} is not in {name}; download both again")
    for name, shard in shards.items():
        for key in shard.specs:
            if places.get(key) != name:
                raise UserError(f"{path}: does not list tensor {key} of {name}; download both again")
    return TensorFile(
        path,
        f"{next(iter(shards.values())).format} shards",
        {key: shards[name].specs[key] for key, name in places.items()},
        tuple(shard.path for shard in shards.values()),
        tuple(name for shard in shards.values() for name in shard.skipped),
        None,
        lambda key: shards[places[key]].read(key),
    )


def _verify_sidecar(path: Path) -> str | None:
    """Compare with `<file>.sha256` or a line of `SHA256SUMS` beside the file; the checksum, or None."""
    expected = None
    sidecar = path.with_name(path.name + ".sha256")
    sums = path.with_name("SHA256SUMS")
    if sidecar.is_file():
        expected = (sidecar.read_text(errors="replace").split() or [""])[0].lower()
    elif sums.is_file():
        sidecar = sums
        for line in sums.read_text(errors="replace").splitlines():
            digest, _, name = line.strip().partition(" ")
            if name.strip().removeprefix("*").removeprefix("./") == path.name:
                expected = digest.lower()
    if expected is None:
        return None
    if len(expected) != 64 or set(expected) - set("0123456789abcdef"):
        raise UserError(f"{sidecar}: holds no sha256 checksum for {path.name}; correct it or remove it")
    if sha256_of(path) != expected:
        raise UserError(f"{path}: its sha256 is not the one in {sidecar.name}; download it again")
    return expected


def sha256_of(path: Path) -> str:
    """Checksum of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise `UserError` if `array`, the tensor `name`, holds a NaN or an infinity.

    Looks at the bits, as `np.isfinite` on bfloat16 is many times slower and as large as the tensor.
    """
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    infinity = int(np.array(np.inf, array.dtype).view(unsigned))
    magnitude = unsigned.type((1 << (8 * array.dtype.itemsize - 1)) - 1)
    bits = np.ascontiguousarray(array).reshape(-1).view(unsigned)
    bad = 0
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK] & magnitude
        if part.max() >= infinity:
            bad += int((part >= infinity).sum())
    if bad:
        raise UserError(f"tensor {name}: {bad} of {bits.size} values are NaN or infinite; download it again")


def write_safetensors(
    path: Path,
    specs: Mapping[str, Spec],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the tensors of `specs` to `path`, asking `read` for one at a time.

    The file appears at once when it is complete, and nothing is left if anything fails. `UserError` if
    `path` exists or the disk is full; `ValueError` if `read` does not give what `specs` says.
    """
    path = Path(path)
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    # Wide elements first, as the library does it: with a padded header all data are then aligned.
    order = sorted(specs, key=lambda key: (-specs[key][1].itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in order:
        shape, dtype = specs[key]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _refuse_existing(path)
        with partial.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key in order:
                array = read(key)
                if (array.shape, array.dtype) != specs[key]:
                    raise ValueError(f"{key} is {array.dtype}{array.shape}, announced as {specs[key]}")
                if array.size:
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _refuse_existing(path)  # what came into being meanwhile
        partial.rename(path)
    except OSError as error:
        if is_full(error):
            raise UserError(f"{path}: no space left for its {end / 1e9:.1f} GB; free some") from error
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists; remove it or choose another name")
