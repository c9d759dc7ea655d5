"""What the networks make of every picture of a set, on disk in shards: a killed process goes on from them.

A shard is some pictures in one channel, written in one piece. Each picture is read once for all channels that
lack it, a few at a time, and goes through the networks in batches; nothing else of a set is in memory but the
numbers. Every shard has batches of its own, so that what it holds does not depend on the others.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ultrapixel_jax.data.images import BrokenImage
from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate.networks import Arrays, Channel
from ultrapixel_jax.evaluate.sets import PictureSet, Sample
from ultrapixel_jax.evaluate.statistics import Rows
from ultrapixel_jax.files import fingerprint

SHARD = 64
"""Pictures in a shard: what is lost at most when a process is killed."""
AHEAD = 2
"""Pictures that are read before they are needed, for each thread."""
ABOUT, SIZES, COUNTS = "about", "sizes", "counts"
"""In a shard: JSON with its identity and what is broken; height and width; rows of each picture."""


@dataclasses.dataclass(frozen=True)
class Features:
    """A set in one channel."""

    arrays: Arrays
    """By name, rows of all pictures in order."""
    counts: Int[np.ndarray, " n"]
    """Rows of each picture; 0 of one that is broken or smaller than a crop."""

    def rows(self, name: str) -> Rows:
        """The rows of one array with their pictures."""
        return Rows(self.arrays[name], np.repeat(np.arange(len(self.counts)), self.counts))


@dataclasses.dataclass(frozen=True)
class Measured:
    """A set in all channels."""

    pictures: PictureSet
    channels: Mapping[str, Features]
    sizes: Int[np.ndarray, "n 2"]
    """Height and width of each picture; 0 of one that is broken."""
    broken: Mapping[str, str]
    """Why pictures cannot be used, by name."""

    @property
    def whole(self) -> list[int]:
        """Numbers of the pictures that could be read."""
        return np.flatnonzero(self.sizes[:, 0]).tolist()


def measure(
    pictures: PictureSet,
    channels: Sequence[Channel],
    directory: Path | None = None,
    *,
    workers: int = 2,
    progress: Callable[[int], Any] = lambda _: None,
) -> Measured:
    """Run the networks of `channels` over a set.

    Args:
        pictures: the set.
        channels: of different names.
        directory: where shards are kept; None keeps none.
        workers: threads that read pictures.
        progress: told of every number of pictures that are done.

    Raises:
        UserError: `directory` cannot be written.
    """
    shards = []
    if directory is not None:
        with user_errors(directory, "features"):
            directory.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pictures.samples), SHARD):
        samples = pictures.samples[start : start + SHARD]
        own = pictures.identity(start, start + SHARD)
        files = {c.name: None if directory is None else directory / f"{c.name}-{start // SHARD:05d}.npz"
                 for c in channels}  # fmt: skip
        identities = {c.name: fingerprint([c.identity, own]) for c in channels}
        done = {
            name: found for name, path in files.items() if path and (found := _read(path, identities[name]))
        }
        missing = [c for c in channels if c.name not in done]
        if missing:
            made = _shard(samples, missing, workers, progress)
            for name, shard in made.items():
                path = files[name]
                if path is not None:
                    _write(path, shard, identities[name])
            done |= made
        else:
            progress(len(samples))
        shards.append(done)
    first = channels[0].name
    return joined(
        [
            Measured(
                dataclasses.replace(pictures, samples=pictures.samples[i * SHARD : (i + 1) * SHARD]),
                {name: Features(shard.arrays, shard.counts) for name, shard in done.items()},
                done[first].sizes, done[first].broken,
            )
            for i, done in enumerate(shards)
        ]
    )  # fmt: skip


@dataclasses.dataclass
class _Shard:
    arrays: Arrays
    counts: np.ndarray
    sizes: np.ndarray
    broken: dict[str, str]


def checked(measured: Measured) -> Measured:
    """A set of which two pictures or more could be read.

    Raises:
        UserError: it is none.
    """
    if len(measured.whole) < 2:
        name, why = next(iter(measured.broken.items()))
        raise UserError(
            f"{len(measured.whole)} of {len(measured.pictures.samples)} pictures in {measured.pictures.name} "
            f"can be read; {name}: {why}"
        )
    return measured


def joined(parts: Sequence[Measured]) -> Measured:
    """Sets that were measured in the same channels one after the other, as one."""
    channels = {}
    for name in parts[0].channels:
        own = [part.channels[name] for part in parts]
        with_rows = [features.arrays for features in own if features.arrays]
        names = with_rows[0] if with_rows else []
        arrays = {key: np.concatenate([arrays[key] for arrays in with_rows]) for key in names}
        channels[name] = Features(arrays, np.concatenate([features.counts for features in own]))
    samples = tuple(sample for part in parts for sample in part.pictures.samples)
    sizes = np.concatenate([part.sizes for part in parts])
    broken = {name: why for part in parts for name, why in part.broken.items()}
    return Measured(dataclasses.replace(parts[0].pictures, samples=samples), channels, sizes, broken)


# ---------------------------------------------------------------------------- running


class _Batches:
    """Views of pictures one after the other, through one channel's network in full batches."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._waiting = channel, []
        self._made: list[Arrays] = []

    def add(self, views: Sequence[np.ndarray]) -> None:
        for view in views:
            self._waiting.append(view)
            if len(self._waiting) == self._channel.batch_size:
                self._run()

    def finish(self) -> Arrays:
        if self._waiting:
            self._run()
        names = self._made[0] if self._made else []
        return {name: np.concatenate([made[name] for made in self._made]) for name in names}

    def _run(self) -> None:
        count, size = len(self._waiting), self._channel.batch_size
        batch = np.stack([*self._waiting, *[self._waiting[-1]] * (size - count)])
        self._made.append({name: x[:count] for name, x in self._channel.run(batch).items()})
        self._waiting.clear()


def _shard(
    samples: Sequence[Sample], channels: Sequence[Channel], workers: int, progress: Callable[[int], Any]
) -> dict[str, _Shard]:
    batches = {c.name: _Batches(c) for c in channels}
    counts = {c.name: np.zeros(len(samples), np.int64) for c in channels}
    sizes, broken = np.zeros((len(samples), 2), np.int64), {}

    def seen(sample: Sample) -> tuple[tuple[int, int], list[list[np.ndarray]]] | str:
        try:
            image = sample.read()
        except BrokenImage as error:
            return str(error)
        return (image.height, image.width), [c.views(image, sample.name) for c in channels]

    for i, found in enumerate(_ahead(seen, samples, workers)):
        if isinstance(found, str):
            broken[samples[i].name] = found
        else:
            sizes[i] = found[0]
            for channel, views in zip(channels, found[1], strict=True):
                counts[channel.name][i] = len(views)
                batches[channel.name].add(views)
        progress(1)
    return {name: _Shard(b.finish(), counts[name], sizes, broken) for name, b in batches.items()}


def _ahead(function: Callable[[Sample], Any], samples: Sequence[Sample], workers: int) -> Iterator[Any]:
    """Results in order, of which few are waiting."""
    if workers == 0:
        yield from map(function, samples)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        left = iter(samples)
        waiting = deque(pool.submit(function, s) for s in itertools.islice(left, AHEAD * workers))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(function, s) for s in itertools.islice(left, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------- shards on disk


def _read(path: Path, identity: str) -> _Shard | None:
    """A shard that is there, whole and of this identity."""
    try:
        with np.load(path) as file:
            about = json.loads(str(file[ABOUT]))
            if about["identity"] != identity:
                return None
            arrays = {name: file[name] for name in file.files if name not in (ABOUT, SIZES, COUNTS)}
            return _Shard(arrays, file[COUNTS], file[SIZES], about["broken"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile's own, which has no base in common
        if type(error).__module__ not in ("zipfile", "zlib"):
            raise
        return None


def _write(path: Path, shard: _Shard, identity: str) -> None:
    """A file that is there in full or not at all."""
    data = io.BytesIO()
    about = json.dumps({"identity": identity, "broken": shard.broken})
    contents: dict[str, Any] = {ABOUT: about, SIZES: shard.sizes, COUNTS: shard.counts, **shard.arrays}
    np.savez(data, **contents)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with user_errors(path, "features"):
        with partial.open("wb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
