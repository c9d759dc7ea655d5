"""Datasets on disk: tensorflow-datasets builders (without TensorFlow) over ArrayRecord shards.

    DIR/<name>-train.array_record-00000-of-00010    the shards
    DIR/dataset_info.json, features.json            tensorflow-datasets' own description
    DIR/sizes.npy                                   int32 (n, 2): height and width of every example, in
                                                    their order, so that buckets need no decoding
    DIR/keys.npy                                    uint64 (n,): a hash of each example's id, for `held_out`
    DIR/report.json                                 what was skipped; written last: it makes DIR complete

While it is being written, DIR/.build holds one small JSON file for each shard that is done. A shard is
written elsewhere and put in its place whole, its JSON file after it; so whatever kills the program, the
same command goes on with the shards that have none.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int32, UInt64
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

from ultrapixel_jax.data.folders import version_of
from ultrapixel_jax.data.held_out import key_of
from ultrapixel_jax.data.paths import check_name, local_copy, move_in, user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint, is_full, is_remote, size_of, write_whole

SPLIT = "train"
SIZES = "sizes.npy"
KEYS = "keys.npy"
REPORT = "report.json"
WORK = ".build"
"""Directory with the state of an unfinished build."""
PLAN = "plan.json"
LISTING = ("items", "listing")
"""Of a plan: what the source held."""

BF16 = ml_dtypes.bfloat16
ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD


class _Info(tfds.core.DatasetInfo):
    """A description that comes from the builder or its directory alone."""

    def initialize_from_bucket(self) -> None:
        """Nothing: Google's bucket of descriptions, over the network, has none of ours.

        Asking leaves an empty directory among the temporary ones each time that a builder is made.
        """


class _Shards(tfds.core.ShardBasedBuilder):
    """A builder whose shards `write_shard` writes, one by one and in any process."""

    VERSION = tfds.core.Version("1.0.0")
    skip_registration = True

    def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
        raise NotImplementedError("`write_shard` writes the shards, so that a build can be resumed")


class CaptionedImages(_Shards):
    """Images as they were encoded, with captions."""

    name = "captioned_images"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),  # JPEG, PNG or WebP bytes
                "caption": tfds.features.Text(),
                "id": tfds.features.Text(),
                "height": np.int32,  # pixels, upright
                "width": np.int32,
            }
        )
        return _Info(builder=self, features=features)


class CachedLatents(_Shards):
    """What the encoders make of images and captions; bfloat16. Height and width are the bucket's."""

    name = "cached_latents"

    def _info(self) -> tfds.core.DatasetInfo:
        def tensor(*shape: int | None) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=BF16, encoding="bytes")

        features = tfds.features.FeaturesDict(
            {
                "latent": tensor(None, None, None),  # (h, w, c) by the EffNet encoder
                "latent_lr": tensor(None, None, None),
                "text_states": tensor(None, None),  # (tokens, c)
                "text_pooled": tensor(None),
                "image_vector": tensor(None),
                "caption": tfds.features.Text(),
                "id": tfds.features.Text(),
                "height": np.int32,  # pixels
                "width": np.int32,
            }
        )
        return _Info(builder=self, features=features)


class CachedLatentsAndPictures(CachedLatents):
    """The same with the pictures as they were cropped, of which control maps are made."""

    name = "cached_latents_and_pictures"

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3))  # WebP bytes
        latents: Any = super()._info().features
        features = tfds.features.FeaturesDict({**latents, "picture": picture})
        return _Info(builder=self, features=features)


Kind = type[CaptionedImages] | type[CachedLatents]


@dataclasses.dataclass
class ShardReport:
    """What one shard holds, as noted in its JSON file."""

    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Height and width of its examples."""
    keys: list[int] = dataclasses.field(default_factory=list)
    """Hashes of their ids."""
    bytes: int = 0
    """Of the serialised examples."""
    skipped: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    """Id, reason and detail of what became no example."""
    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Id, and what a person may want to know about the example."""
    state: str = ""
    """Changes with sizes and times of the files that it is from."""
    source: str = ""
    """Changes with the content of those files."""
    content: str = ""
    """Changes with the examples; `write_shard` sets it."""


def _builder(kind: Kind, directory: epath.Path) -> Any:
    # `data_dir` is where tensorflow-datasets would look for other versions; it writes nothing there.
    return kind(data_dir=directory / WORK, file_format=ARRAY_RECORD)


def _template(kind: Kind, directory: epath.Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        dataset_name=kind.name, data_dir=directory, split=SPLIT, filetype_suffix="array_record"
    )


# ---------------------------------------------------------------------------- writing


def start(directory: epath.Path, plan: dict[str, Any]) -> bool:
    """Prepare `directory` for the build that `plan` (JSON-able) describes, or continue it.

    Returns:
        False if that very build is complete.

    Raises:
        UserError: something else is there, or an unfinished build of another plan.
    """
    plan = json.loads(json.dumps(plan))  # as it comes back from the file
    check_name(directory, "output")
    with user_errors(directory, "output"):
        if (directory / REPORT).exists():
            found = read_json(directory / REPORT).get("plan", {})
            if found == plan:
                return False
            if "listing" in plan and {**found, **dict.fromkeys(LISTING)} == {
                **plan,
                **dict.fromkeys(LISTING),
            }:
                raise UserError(
                    f"output {directory} was built when its source had other files ({found['items']}, now "
                    f"{plan['items']}); remove it or choose another name"
                )
            raise UserError(f"output {directory} holds another dataset; remove it or choose another name")
        work = directory / WORK
        if (work / PLAN).exists():
            if read_json(work / PLAN) != plan:
                raise UserError(
                    f"output {directory} holds an unfinished build of another source or with other options; "
                    "remove it to start again, or repeat the command that began it"
                )
            for path in work.iterdir():
                if ".partial" in path.name:  # of a process that was killed
                    path.unlink()
            return True
        if directory.exists() and any(p.name != WORK for p in directory.iterdir()):
            raise UserError(f"output {directory} exists and is not empty; remove it or choose another name")
        work.mkdir(parents=True, exist_ok=True)
        write_whole(work / PLAN, json.dumps(plan))
    return True


def shard_done(directory: epath.Path, index: int, state: str | None = None) -> ShardReport | None:
    """The report of shard `index`; None if it is to be written, or was from files in another `state`."""
    path = directory / WORK / f"{index:05d}.json"
    if not path.exists():
        return None
    values = read_json(path)
    for name in ("sizes", "skipped", "notes"):
        values[name] = [tuple(entry) for entry in values.get(name, ())]
    report = ShardReport(**values)
    return report if state in (None, report.state) else None


def write_shard(
    kind: Kind,
    directory: epath.Path,
    index: int,
    count: int,
    examples: Iterable[dict[str, Any]],
    report: ShardReport,
) -> None:
    """Write shard `index` of `count`; `examples` may add to `report.skipped` while it is consumed.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    builder = _builder(kind, directory)
    serializer = tfds.core.ExampleSerializer(builder.info.features.get_serialized_info())

    content = hashlib.sha256()

    def serialized() -> Iterator[tuple[int, bytes]]:
        for i, example in enumerate(examples):
            _digest(content, example)
            data = serializer.serialize_example(builder.info.features.encode_example(example))
            report.sizes.append((example["height"], example["width"]))
            report.keys.append(key_of(example["id"]))
            report.bytes += len(data)
            yield i, data

    target = _template(kind, directory).sharded_filepath(shard_index=index, num_shards=count)
    with user_errors(directory, "output"), contextlib.ExitStack() as stack:
        if is_remote(directory):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(directory / WORK)
        partial = folder / f"{index:05d}.partial-{os.getpid()}"
        stack.callback(partial.unlink, missing_ok=True)
        try:
            tfds.core.ExampleWriter(ARRAY_RECORD).write(partial, serialized())
            # The writer does not notice a full disk; the file does not open then.
            written = ADAPTER_FOR_FORMAT[ARRAY_RECORD].num_examples(partial)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.ENOSPC, "No space left") if is_full(error) else error from error
        if written != len(report.sizes):
            raise UserError(f"output {directory}: shard {index} was not written whole; is the disk full?")
        move_in(partial, target)
        report.content = content.hexdigest()
        note = directory / WORK / f"{index:05d}.json"
        write_whole(note, json.dumps(dataclasses.asdict(report)))


def _digest(digest: Any, example: dict[str, Any]) -> None:
    """Put an example into `digest`, as its serialised form is not promised to be the same twice."""
    for name, value in sorted(example.items()):
        if isinstance(value, io.BytesIO):
            value = value.getvalue()
        elif isinstance(value, np.ndarray):
            value = repr((value.shape, str(value.dtype))).encode() + value.tobytes()
        elif not isinstance(value, bytes):
            value = repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{name}:{len(value)}:".encode())
        digest.update(value)


def finish(
    kind: Kind,
    directory: epath.Path,
    plan: dict[str, Any],
    shards: Sequence[ShardReport],
    extra: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    """Describe the written shards, and so complete the dataset; returns the report.

    `extra` are further files by name.
    """
    builder = _builder(kind, directory)
    info = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[len(shard.sizes) for shard in shards],
        num_bytes=sum(shard.bytes for shard in shards),
        filename_template=_template(kind, directory),
    )
    builder.info.set_splits(tfds.core.SplitDict([info]))
    report = make_report(plan, shards)
    paths = [_template(kind, directory).sharded_filepath(shard_index=i, num_shards=len(shards))
             for i in range(len(shards))]  # fmt: skip
    sizes = io.BytesIO()
    np.save(sizes, np.array([s for shard in shards for s in shard.sizes], np.int32))
    keys = io.BytesIO()
    np.save(keys, np.array([k for shard in shards for k in shard.keys], np.uint64))
    with user_errors(directory, "output"):
        write_whole(directory / SIZES, sizes.getvalue())
        write_whole(directory / KEYS, keys.getvalue())
        for name, data in (extra or {}).items():
            write_whole(directory / name, data)
        builder.info.write_to_directory(directory)
        report["files"] = {path.name: size_of(path) for path in paths}
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        # What is no UTF-8 (the source's name) is escaped, which JSON reads back.
        write_whole(directory / REPORT, text.encode("utf-8", "backslashreplace"))
        (directory / WORK).rmtree()
    return report


def make_report(plan: dict[str, Any], shards: Sequence[ShardReport]) -> dict[str, Any]:
    """What became of the source: examples, and every skipped item with its reason."""
    skipped = [
        {"id": id_, "reason": reason, "detail": detail}
        for shard in shards
        for id_, reason, detail in shard.skipped
    ]
    notes = [{"id": id_, "note": note} for shard in shards for id_, note in shard.notes]
    return {
        "plan": plan,
        "content": fingerprint([shard.content for shard in shards]),
        "examples": sum(len(shard.sizes) for shard in shards),
        "skipped": dict(sorted(collections.Counter(entry["reason"] for entry in skipped).items())),
        "skipped_items": skipped,
        "notes": dict(sorted(collections.Counter(entry["note"] for entry in notes).items())),
        "noted_items": notes,
        "shards": [{"state": shard.state, "source": shard.source} for shard in shards],
    }


# ---------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A complete dataset, open for reading."""

    directory: epath.Path
    """Where it is read from: a local copy, if it is remote."""
    source: Any
    """Examples by index, images as their encoded bytes; can be sent to worker processes."""
    sizes: Int32[np.ndarray, "n 2"]
    """Height and width by index."""
    plan: dict[str, Any]
    """What it was made from."""
    features: frozenset[str]
    """Names of what an example has."""
    identity: Any
    """Another one for other examples: a fingerprint of their content."""

    def __len__(self) -> int:
        return len(self.sizes)

    def keys(self) -> UInt64[np.ndarray, " n"]:
        """A hash of the id of each example; of a dataset from before they were noted, by reading it.

        Raises:
            UserError: an example cannot be read.
        """
        with contextlib.suppress(OSError, ValueError):
            keys = np.load(self.directory / KEYS, allow_pickle=False)
            if len(keys) == len(self):
                return keys
        try:
            return np.array([key_of(self.source[i]["id"].decode()) for i in range(len(self))], np.uint64)
        except Exception as error:  # the record reader and its parser name no types
            text = " ".join(str(error).split())[:200]
            raise UserError(f"data {self.directory} is damaged ({text}); build it again") from error


def open_dataset(path: str | os.PathLike[str], kind: Kind, cache_dir: str = "") -> Dataset:
    """Open what `finish` completed.

    Raises:
        UserError: nothing there, unfinished, of another kind, or damaged.
    """
    directory = epath.Path(path)
    check_name(directory, "data")
    with user_errors(directory, "data"):
        if not directory.exists():
            raise UserError(f"data {path!s} does not exist; make it with python -m ultrapixel_jax.data.build")
        if not (directory / REPORT).exists():
            state = "an unfinished build: repeat its command" if (directory / WORK).exists() else "no dataset"
            raise UserError(f"data {path!s} is {state} (it has no {REPORT})")
        names = [p.name for p in directory.iterdir() if p.is_file() and not p.name.startswith(".")]
        directory = local_copy(directory, cache_dir, names, _state(directory / REPORT))
        try:
            builder: Any = tfds.builder_from_directory(directory)
            if builder.info.name not in (kind.name, *(k.name for k in kind.__subclasses__())):
                option = "--data.no-cached" if kind is CachedLatents else "--data.cached"
                raise UserError(
                    f"data {path!s} holds {builder.info.name}, not {kind.name}; training takes it with "
                    f"{option}"
                )
            features = frozenset(builder.info.features)
            images = {name: tfds.decode.SkipDecoding() for name in ("image", "picture") if name in features}
            source = builder.as_data_source(split=SPLIT, decoders=images)  # pyright: ignore[reportCallIssue]
            sizes = np.load(directory / SIZES, allow_pickle=False)
            report = read_json(directory / REPORT)
            for name, size in report["files"].items():
                if size_of(directory / name) != size:
                    raise ValueError(f"{name} has not the {size} bytes that were written")
            if len(source) != len(sizes):
                raise ValueError(f"{len(source)} examples but {len(sizes)} sizes")
        except (UserError, OSError, ImportError):
            raise
        except Exception as error:  # the readers of protocol buffers and records name no types
            text = " ".join(str(error).split())[:200]
            raise UserError(f"data {path!s} is damaged ({text}); build it again") from error
    if not len(sizes):
        raise UserError(f"data {path!s} holds no examples; build it from another source")
    # Datasets from before content was noted are told apart by what they were made from.
    identity = report.get("content", [report["plan"], len(sizes)])
    return Dataset(directory, source, sizes, report["plan"], features, identity)


def _state(report: epath.Path) -> bytes:
    """Changes when the dataset with this report is built anew, with other examples."""
    values = read_json(report)
    if "content" in values:
        return json.dumps([values["content"], values["files"]]).encode()
    return report.read_bytes() + version_of(os.fspath(report)).encode()


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; `UserError` if it is damaged."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); build again into another directory") from error
    return values if isinstance(values, dict) else {}
