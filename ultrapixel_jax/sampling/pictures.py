"""Pictures on disk: PNG files that carry how they were made, and are never overwritten.

A file appears under its name only when it is whole: it is written beside it under a temporary name and
then linked, which fails where the name is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ultrapixel_jax.config import CascadeConfig, DiffusionConfig, drawn_alike, from_dict, to_dict
from ultrapixel_jax.config.version import __version__
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint
from ultrapixel_jax.sampling import conditions
from ultrapixel_jax.sampling.picture import KEY, Picture
from ultrapixel_jax.sampling.requests import MAX_SEED, Request, check_prompt
from ultrapixel_jax.sizes import LR_SIDE, check_size

FORMAT = 3
"""Newest version of that object's layout. A picture gets the oldest whose readers understand it: 1, or 2 with
conditions, which they would pass over, or 3 with sampling that they do not know."""
OF_FORMAT_1 = ("steps", "cfg", "cfg_hr", "shift", "sampler", "eta", "schedule", "cfg_rescale")
"""Fields of sampling that are always written; the others where they are not the default."""
SAME_PICTURE = (
    "prompt", "negative_prompt", "seed", "height", "width", "preview", "stage_c", "stage_b",
    "checkpoint", "config", "dtype",
)  # fmt: skip
"""What a picture depends on: two with these equal are the same picture, up to rounding."""
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tokenizers")
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last chunk of every PNG, with its checksum."""
MAX_NUMBER = 100_000
"""Most pictures of one name in a directory."""


# ---------------------------------------------------------------------------- metadata


@dataclasses.dataclass(frozen=True)
class Run:
    """What the pictures of one run have in common."""

    checkpoint: str
    """Identity of the weights."""
    config: str
    """Identity of the configuration, from `config_identity`."""
    dtype: str
    """Compute dtype."""
    batch_size: int
    """Device batch, padding included."""
    mesh: dict[str, int]
    """Axis name to size; empty for one device."""
    lr_side: int
    """The model's side of the square low-resolution picture, in units of 32 pixels."""
    preview: bool = False
    """Whether the previewer draws in place of stages B and A."""
    tile: int | None = None
    """Side of stage A's tiles in latents; None is automatic."""
    decode_memory: float = 4.0
    """Memory that decoding may take, in GB."""
    weights: str | None = None
    """`int8` where kernels are in eight bits; None, and not noted, otherwise."""


def config_identity(config: CascadeConfig) -> str:
    """Short hash of every size and choice in `config`, but for the sampling, which requests carry."""
    values = to_dict(config)
    del values["sampling_c"], values["sampling_b"]
    values["guidance"] = drawn_alike(values["guidance"])
    return fingerprint(values)


def describe(request: Request, run: Run, latents: str | None = None) -> dict[str, Any]:
    """The metadata of the picture of `request`: all that is needed to make it again.

    But for a picture that was decoded from latents that somebody gave; `latents` is their digest then.
    """
    asked = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    del asked["name"], asked["index"], asked["conditions"]
    asked |= {"stage_c": sampling(request.stage_c), "stage_b": sampling(request.stage_b)}
    versions = {"ultrapixel_jax": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    given = {} if latents is None else {"latents": latents}
    if request.conditions:
        given |= {"conditions": conditions.described(request.conditions)}
    newer = any(
        set(asked[stage]) - set(OF_FORMAT_1) or asked[stage]["sampler"] not in ("ddpm", "ddim")
        for stage in ("stage_c", "stage_b")
    )
    of_run = dataclasses.asdict(run)
    if run.weights is None:
        del of_run["weights"]
    version = 3 if newer or run.weights else 2 if request.conditions else 1
    return {"format": version} | asked | of_run | given | {"versions": versions}


def sampling(settings: DiffusionConfig) -> dict[str, Any]:
    """`settings` for metadata: pictures of before a field was there are those of its default."""
    default = DiffusionConfig()
    return {
        name: value
        for name, value in to_dict(settings).items()
        if name in OF_FORMAT_1 or value != getattr(default, name)
    }


def check_same_model(made_by: Run, now: Run) -> None:
    """Refuse to make a picture again with other weights or another configuration.

    Raises:
        UserError: they are others.
    """
    if made_by.checkpoint != now.checkpoint:
        raise UserError(
            f"the picture was made with checkpoint {made_by.checkpoint}, and this is {now.checkpoint}; "
            "give its own with --checkpoint"
        )
    if made_by.weights != now.weights:
        raise UserError(
            f"the picture was made with weights in {made_by.weights or made_by.dtype}; draw with those"
        )
    if made_by.config != now.config:
        raise UserError(
            f"the picture was made with configuration {made_by.config}, and this is {now.config}; "
            "give its own with --config"
        )


def compared(original: Path, again: Path) -> str:
    """Whether two pictures on disk have the same pixels, in words."""
    one, other = load_pixels(original), load_pixels(again)
    if one.shape != other.shape:
        return f"reproduced: NO, its shape {one.shape} became {other.shape}"
    off = abs(one.astype(int) - other.astype(int))
    if not off.any():
        return "reproduced: yes, every pixel is bit-identical"
    return f"reproduced: NO, {(off > 0).mean():.2%} of the values differ, by {off.max()} of 255 at most"


def same_picture(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two metadata describe the same picture (see `SAME_PICTURE`)."""
    same = all(key in one and key in other and one[key] == other[key] for key in SAME_PICTURE)
    steered = [conditions.without_paths(metadata.get("conditions")) for metadata in (one, other)]
    added = all(one.get(key) == other.get(key) for key in ("latents", "weights"))
    return same and added and steered[0] == steered[1]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of the picture at `path`, after a check that the whole file is there and intact.

    Raises:
        UserError: no such file, not a PNG, truncated or damaged, without metadata, or of a newer format.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"picture {str(path)!r} does not exist or is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decompressed
            with Image.open(path, formats=("PNG",)) as picture:
                text = picture.info.get(KEY)
                picture.verify()  # reads every chunk up to the last and checks its sum
            with path.open("rb") as file:
                file.seek(-len(PNG_END), os.SEEK_END)
                if file.read() != PNG_END:
                    raise ValueError("the end is missing")
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{str(path)!r} is not a PNG picture") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {str(path)!r} is truncated or damaged: {error}") from error
    if text is None:
        raise UserError(f"picture {str(path)!r} has no {KEY} metadata; it was not made by sample.py")
    try:
        metadata = json.loads(text)
        version = metadata["format"]
        newer = version > FORMAT
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"picture {str(path)!r} has damaged {KEY} metadata") from error
    if newer:
        raise UserError(
            f"picture {str(path)!r} has metadata of format {version}, newer than {FORMAT}; "
            "update ultrapixel_jax"
        )
    return metadata


def recorded(metadata: Mapping[str, Any], beside: str | Path = ".") -> tuple[Request, Run]:
    """Inverse of `describe`; files that are not where they were are looked for in `beside`.

    Raises:
        UserError: a value is missing, of another type or out of range; a file is missing or has changed.
    """
    if "latents" in metadata:
        raise UserError("the picture was decoded from latents that were given, and does not have them")
    try:
        values = {f.name: metadata[f.name] for f in dataclasses.fields(Request) if f.name in metadata}
        values["conditions"] = conditions.recorded(values.get("conditions", {}), beside)
        values |= {"lr_side": LR_SIDE, "weights": None}  # of pictures of before there was a choice
        values |= {f.name: metadata[f.name] for f in dataclasses.fields(Run) if f.name in metadata}
        for name, kinds in _KINDS.items():
            if not isinstance(values[name], kinds) or (isinstance(values[name], bool) and kinds is not bool):
                raise UserError(f"the picture's metadata has {name} = {values[name]!r:.80}")
        if not 0 <= values["seed"] <= MAX_SEED or values["batch_size"] < 1:
            raise UserError("the picture's metadata has a seed or batch size out of range")
        check_size(values["height"], values["width"])
        check_prompt(values["prompt"] + values["negative_prompt"])
        for stage in ("stage_c", "stage_b"):
            values[stage] = from_dict(DiffusionConfig, values[stage])
        if not all(isinstance(size, int) and size > 0 for size in values["mesh"].values()):
            raise UserError(f"the picture's metadata has mesh = {values['mesh']!r:.80}")
        values["decode_memory"] = float(values["decode_memory"])
        run = {f.name: values.pop(f.name) for f in dataclasses.fields(Run)}
        return Request(**values), Run(**run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the picture's metadata is damaged: {type(error).__name__} {error}") from error


_KINDS: dict[str, type | tuple[type, ...]] = {
    "prompt": str, "negative_prompt": str, "seed": int, "height": int, "width": int, "lr_side": int,
    "preview": bool,
    "stage_c": dict, "stage_b": dict, "checkpoint": str, "config": str, "dtype": str,
    "batch_size": int, "mesh": dict, "weights": (str, type(None)),
    "tile": (int, type(None)), "decode_memory": (int, float),
}  # fmt: skip


# ---------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Saved:
    """Where a picture lies."""

    path: Path
    new: bool
    """False if the same picture was there already and nothing was written."""


def check_writable(directory: str | Path) -> Path:
    """Create `directory` where it is missing and make sure that a file can be written in it.

    Raises:
        UserError: it cannot.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _temporary(directory) as probe:
            probe.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"directory {str(directory)!r} is not writable: {reason}") from error
    return directory


def find(directory: Path, name: str, metadata: Mapping[str, Any], *, latents: bool = False) -> Path | None:
    """The finished picture of `metadata` among ``name.png``, ``name-1.png``, …, or None.

    Args:
        directory: where to look.
        name: file name without number and extension.
        metadata: from `describe`.
        latents: whether a picture counts only with its latents beside it.
    """
    for path in _numbered(directory, name):
        if not _is_taken(path):
            return None
        if _is_done(path, metadata, latents):
            return path
    return None


def save(
    directory: Path,
    name: str,
    image: UInt8[np.ndarray, "h w 3"],
    metadata: Mapping[str, Any],
    *,
    latents: Mapping[str, np.ndarray] | None = None,
    controls: Mapping[str, Image.Image] = MappingProxyType({}),
    again: bool = False,
) -> Saved:
    """Write a picture as ``name.png``, or under the first free ``name-1.png``, ``name-2.png``, …

    Several processes may write into one directory. After a failure, a full disk included, no part of
    the file is left.

    Args:
        directory: where to.
        name: file name without number and extension.
        image: RGB.
        metadata: from `describe`; stored in the file.
        latents: arrays for a ``.safetensors`` file of the same name.
        controls: pictures for files beside it, such as ``name.canny.png``.
        again: write even where the same picture lies already.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with _temporary(directory) as png, _temporary(directory) as tensors:
            _write_png(png, image, metadata)
            if latents is not None:
                _write_latents(tensors, latents)
            for path in _numbered(directory, name):
                if not _is_taken(path) and _publish_both(png, tensors if latents is not None else None, path):
                    for kind, shown in controls.items():
                        with _temporary(directory) as beside:
                            shown.save(beside, "PNG")
                            beside.replace(path.with_suffix(f".{kind}.png"))
                    return Saved(path, new=True)
                if not again and _is_done(path, metadata, latents is not None):
                    return Saved(path, new=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write {str(directory / name)!r}: {reason}; finished pictures are kept, and the same "
            "command continues"
        ) from error
    raise UserError(f"more than {MAX_NUMBER} pictures are named {name!r}; take another --output")


def save_picture(directory: Path, name: str, picture: Picture, *, again: bool = False) -> Saved:
    """`save` a picture with its metadata and the latents that it has."""
    return save(
        directory, name, np.asarray(picture), picture.metadata, latents=picture.latents or None,
        controls=picture.controls, again=again,
    )  # fmt: skip


def load_pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of the picture at `path`."""
    with Image.open(path, formats=("PNG",)) as picture:
        return np.array(picture.convert("RGB"))


def _numbered(directory: Path, name: str) -> Iterator[Path]:
    yield directory / f"{name}.png"
    for number in range(1, MAX_NUMBER):
        yield directory / f"{name}-{number}.png"


def _beside(path: Path) -> Path:
    """The latents' file of the picture at `path`."""
    return path.with_suffix(".safetensors")


def _is_taken(path: Path) -> bool:
    """Whether the number of `path` is used, be it by latents without a picture."""
    return path.exists() or _beside(path).exists()


def _is_done(path: Path, metadata: Mapping[str, Any], latents: bool) -> bool:
    """Whether the file at `path` is whole and the picture of `metadata`, with its latents if asked."""
    try:
        # Through JSON and back, as the other side was: tuples are lists then.
        same = same_picture(read_metadata(path), json.loads(json.dumps(metadata)))
    except UserError:
        return False
    return same and (_beside(path).exists() or not latents)


def _write_png(path: Path, image: np.ndarray, metadata: Mapping[str, Any]) -> None:
    with path.open("xb") as file:
        Picture.of(image, metadata).save(file, format="PNG")
        file.flush()
        os.fsync(file.fileno())  # a full disk may show only here


def _write_latents(path: Path, latents: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save as serialise

    with path.open("xb") as file:
        file.write(serialise({name: np.ascontiguousarray(array) for name, array in latents.items()}))
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    """A hidden name in `directory` that nobody else uses; whatever lies there at the end is removed."""
    path = directory / f".{secrets.token_hex(8)}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _publish(temporary: Path, target: Path) -> bool:
    """Give the file at `temporary` the name `target`; False if that is taken."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: claim the name with an empty file, then replace that.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        temporary.replace(target)
    return True


def _publish_both(png: Path, tensors: Path | None, target: Path) -> bool:
    """`_publish` the picture, and its latents before it, so that where a picture is its latents are."""
    if tensors is not None and not _publish(tensors, _beside(target)):
        return False
    if _publish(png, target):
        return True
    if tensors is not None:  # another process took the number in between: give the other half back
        if tensors.exists():
            _beside(target).unlink()
        else:
            _beside(target).replace(tensors)
    return False
