"""Batches for training, read with grain: decoded and cropped in threads or worker processes.

    with Loader(config, rows=rows_of_batch(mesh, config.batch_size)) as batches:
        batches.seek(step)
        for batch in batches: ...

Batch k of the run is `plan.Plan.batch(k)`, whatever the number of processes and workers; a process yields
the rows of it that its devices hold. So a checkpoint need only keep `state()`, which is the number of the
next batch and a fingerprint of data and settings; grain's own state is not needed, and another number of
processes may go on.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import grain
import numpy as np

from ultrapixel_jax.data import workers
from ultrapixel_jax.data.buckets import HW, Buckets
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.examples import NUMBERS, BrokenExample, Read, ReadCached, ReadImage, drawn
from ultrapixel_jax.data.held_out import HeldOut, chosen
from ultrapixel_jax.data.plan import HELD_OUT, Plan, uniforms
from ultrapixel_jax.data.records import CachedLatents, CaptionedImages, open_dataset
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint

log = logging.getLogger(__name__)

ENDLESS = 2**40
"""Batches of a run, for grain, which wants a length."""

MOST_DEATHS = 3
"""Of reading processes before one batch, after which the run stops."""

ORDER_FIELDS = ("areas", "ratios", "batch_size", "seed", "cached")
"""Settings that decide which examples make batch k."""


class Loader(Iterator[dict[str, Any]]):
    """Endless batches of this process.

    Each is a dictionary:

    - `ids`, `caption`: lists of b strings; a caption is empty where it is dropped
    - `bucket`: (height, width) of the images in pixels, the same in all processes
    - `use_image`: bool (b,), whether the CLIP image vector is used
    - images: `image` uint8 (b, H, W, 3) RGB; `image_lr` uint8 (b, h, w, 3); with
      `config.clip_image_size`, `image_clip` float32 (b, s, s, 3), zero where unused
    - `control` with `config.control` canny, float32 (b, H, W, 1), or inpainting, uint8 (b, H, W, 4); with
      super_resolution, `image` where latents are cached, too
    - cached: `latent`, `latent_lr` (b, h, w, c), `text_states` (b, n, c), `text_pooled` (b, c),
      `image_vector` (b, c), zero where unused; bfloat16
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        held_out: float = 0.0,
    ) -> None:
        """Open the data of `config`.

        Args:
            config: what to read.
            rows: numbers, ascending, of the rows of each batch that are wanted, anywhere in it; None for all.
            held_out: share of the examples that no batch has, for `held_out_batches`.

        Raises:
            UserError: it cannot be opened, or is of another kind, or that share is none or all of it.
        """
        self.config = config
        wanted = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        dataset = open_dataset(
            config.path, CachedLatents if config.cached else CaptionedImages, config.cache_dir
        )
        if config.cached:  # each example was cropped to a bucket: that size is its bucket
            sizes, numbers = np.unique(dataset.sizes, axis=0, return_inverse=True)
            self.sizes: list[HW] = [(h, w) for h, w in sizes.tolist()]
            numbers = numbers.reshape(-1)
        else:
            buckets = Buckets(config.areas, config.ratios)
            self.sizes, numbers = buckets.sizes, buckets.assign_all(dataset.sizes)
        self._numbers, self._rows, self._share = numbers, wanted, held_out
        self._keys = dataset.keys() if held_out else np.zeros(0, np.uint64)
        among = None
        if held_out:
            among = ~chosen(self._keys, held_out)
            if among.all() or not among.any():
                raise UserError(
                    f"validation.share {held_out:g} holds out {'none' if among.all() else 'all'} of the "
                    f"{len(dataset)} examples of {config.path!r}; take another share"
                )
        self.plan = Plan(numbers, config.batch_size, config.seed, among)
        """The order of batches, of all processes."""
        self.replaced: list[str] = []
        """Ids of broken examples that were met so far, in place of which others were read."""
        settings = {name: getattr(config, name) for name in ORDER_FIELDS}
        if held_out:
            settings["held_out"] = held_out
        content = dataset.identity
        self.identity = fingerprint([settings, *(content if isinstance(content, list) else [content])])
        """Tells two orders of batches apart."""
        self._read = (ReadCached if config.cached else ReadImage)(dataset, config, self.sizes)
        self._dataset = (
            grain.MapDataset.source(_Rows(self.plan, wanted))
            .map(_Load(self._read, self.plan))
            .batch(len(wanted), batch_fn=_stack)
        )
        self._step = 0
        self._iterator: Any = None
        self._deaths = 0
        """Of reading processes, since the last batch."""

    @property
    def step(self) -> int:
        """Number of the batch that comes next."""
        return self._step

    @property
    def held_out(self) -> int:
        """Number of examples that no batch has."""
        return int(chosen(self._keys, self._share).sum())

    def bucket_counts(self) -> dict[HW, int]:
        """Number of examples in each bucket that has some."""
        return {self.sizes[b]: len(m) for b, m in zip(self.plan.buckets, self.plan.members)}

    def size_of(self, step: int) -> HW:
        """Height and width in pixels of batch `step`."""
        return self.sizes[self.plan.batch(step).bucket]

    def held_out_batches(self, most: int) -> Iterator[dict[str, Any]]:
        """The held-out examples once, at most `most`, as batches with two more entries:

        - `number`: uint32 (b, 2), the two halves of a hash of the id
        - `weight`: float32 (b,), 0 where an example only fills the batch, or took a broken one's place

        Crops and dropped captions are functions of that hash and of the seed: the same each time.
        """
        plan = HeldOut(self._numbers, self._keys, self._share, most, self.config.batch_size)
        threads = min(4, os.cpu_count() or 1)
        batches = (
            grain.MapDataset.source(_Rows(plan, self._rows, len(plan)))
            .map(_LoadHeldOut(self._read, plan, self._keys))
            .batch(len(self._rows), batch_fn=_stack)
            .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        )
        with contextlib.closing(iter(batches)) as rows:
            for batch in rows:
                self._report(batch.pop("replaced"))
                yield batch

    def _report(self, replaced: list[tuple[str, str]]) -> None:
        for id_, error in replaced:
            self.replaced.append(id_)
            log.warning("example %s is broken (%s): another one of its bucket took its place", id_, error)

    def seek(self, step: int) -> None:
        """Go to batch `step`, at no cost."""
        self.close()
        self._step = step

    def state(self) -> dict[str, Any]:
        """The position, JSON-able; `restore` takes it."""
        return {"step": self.step, "identity": self.identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to the position that `state()` told, with any number of processes and workers.

        Raises:
            UserError: it is of other data, or of settings that give another order.
        """
        if state["identity"] != self.identity:
            raise UserError(
                f"data {self.config.path!r} or its settings ({', '.join(ORDER_FIELDS)}) are not those that "
                "the run was started with; use those, or start another run"
            )
        self.seek(state["step"])

    def __next__(self) -> dict[str, Any]:
        batch = self._next()
        self._report(batch.pop("replaced"))
        self._step += 1
        if self.config.workers:
            # Out of the memory shared with the worker, which ends with grain's array and not with its views.
            batch = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
        return batch

    def _next(self) -> dict[str, Any]:
        """The next batch; reading processes that were killed are started anew.

        Raises:
            UserError: they are killed again and again.
        """
        while True:
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
            except RuntimeError as error:
                if not workers.was_killed(error):
                    raise
                self.close()
                self._deaths += 1
                code = str(error).split("exit code ")[1].split(".")[0]
                if self._deaths > MOST_DEATHS:
                    raise UserError(
                        f"a process that reads data {self.config.path!r} ended {self._deaths} times before "
                        f"it gave batch {self._step} (exit code {code}; -9 is often for want of memory): "
                        f"use fewer than --data.workers {self.config.workers}, or 0"
                    ) from error
                log.warning("a process that reads data was killed (exit code %s): it starts anew", code)
            else:
                self._deaths = 0
                return batch

    def _start(self) -> Any:
        count = self.config.workers
        # One batch may be gigabytes: hold few.
        threads = 1 if count else min(4, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        dataset = self._dataset[self._step :].to_iter_dataset(options)
        if count:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's worker processes want that, whoever calls
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=1), workers.begin
            )
        return iter(dataset)

    def close(self) -> None:
        """End threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Row(NamedTuple):
    """One place in a batch."""

    bucket: int
    example: int
    epoch: int


class _Rows:
    """The rows that this process has of every batch, one batch after the other."""

    def __init__(self, plan: Plan | HeldOut, rows: np.ndarray, batches: int = ENDLESS) -> None:
        self._plan, self._rows, self._batches = plan, rows, batches

    def __len__(self) -> int:
        return self._batches * len(self._rows)

    def __getitem__(self, index: Any) -> _Row:
        step, i = divmod(int(index), len(self._rows))
        batch, row = self._plan.batch(step), int(self._rows[i])
        return _Row(batch.bucket, int(batch.examples[row]), int(batch.epochs[row]))

    def __repr__(self) -> str:
        return f"Rows({', '.join(map(str, self._rows))})"


class _Load:
    """Reads the example of a row; one that is broken is replaced by the next one of its bucket."""

    def __init__(self, read: Read, plan: Plan | HeldOut) -> None:
        self._read = read
        self._members = dict(zip(plan.buckets, plan.members))

    def __call__(self, row: _Row) -> dict[str, Any]:
        members = self._members[row.bucket]
        first = int(np.searchsorted(members, row.example))
        broken = []
        for i in range(len(members)):
            index = int(members[(first + i) % len(members)])
            try:
                return {**self._read(row.bucket, index, self._drawn(row, index)), "replaced": broken}
            except BrokenExample as error:
                broken.append((error.id, str(error)))
        raise UserError(f"every example of a bucket is broken, {broken[0][0]} first: {broken[0][1]}")

    def _drawn(self, row: _Row, index: int) -> list[float]:
        """The example's random numbers: a function of seed, epoch and index; `NUMBERS` at least."""
        return drawn(self._read.config, row.epoch, index)


class _LoadHeldOut(_Load):
    """The same of examples that are held out, whose random numbers are always the same."""

    def __init__(self, read: Read, plan: HeldOut, keys: np.ndarray) -> None:
        super().__init__(read, plan)
        self._keys = keys

    def __call__(self, row: _Row) -> dict[str, Any]:
        out, key = super().__call__(row), int(self._keys[row.example])
        counts = row.epoch == 0 and not out["replaced"]
        halves = np.array([key >> 32, key & 0xFFFFFFFF], np.uint32)
        return {**out, "number": halves, "weight": np.asarray(counts, np.float32)}

    def _drawn(self, row: _Row, index: int) -> list[float]:
        return uniforms(NUMBERS, (self._read.config.seed, HELD_OUT, int(self._keys[index]))).tolist()


def _stack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows to a batch: arrays are stacked, strings listed."""
    out: dict[str, Any] = collections.defaultdict(list)
    for row in rows:
        for name, value in row.items():
            out[name].append(value)
    batch = {name: np.stack(v) if isinstance(v[0], (np.ndarray, np.bool_)) else v for name, v in out.items()}
    return {**batch, "bucket": rows[0]["bucket"], "replaced": list(itertools.chain(*out["replaced"]))}
