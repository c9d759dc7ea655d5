"""Captioned images to sharded ArrayRecord.

    python -m ultrapixel_jax.data.build SOURCE OUTPUT

SOURCE is a folder tree of images with a .json (key "caption"), .txt or .caption beside each; WebDataset
.tar shards, one or a folder of them; a .jsonl, .csv or .tsv file (or a folder with one) of "image" or
"file_name", a path beside the file, and "caption" or "text"; or Parquet files with the images in them.
OUTPUT is a new directory. Both may be gs://... paths. JPEG, PNG and WebP keep their bytes; what else
Pillow reads (AVIF, BMP, GIF, TIFF, ...) is stored as PNG.

The source is listed, cut into shards of --shard-images, and each shard made by one worker process. A
shard that is done has a note in OUTPUT/.build: kill the program at any moment, repeat the command, and
it goes on with the shards that have none or whose files have changed, to the same result. Every image is
decoded once; a broken one, or one without caption, is skipped, and named in OUTPUT/report.json, and so is
every file that is no image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import one_of, whole
from ultrapixel_jax.data import sources
from ultrapixel_jax.data.config import MAX_MEGAPIXELS, MIN_SIDE
from ultrapixel_jax.data.items import (
    BROKEN_IMAGE,
    MISSING_CAPTION,
    MISSING_IMAGE,
    SMALL_IMAGE,
    Item,
    Skip,
)
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import fingerprint

NAMED = 10
"""Skipped items that the terminal names; the report has them all."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How captions and images are taken out of a source."""

    caption_key: str = "caption"
    """Of a JSON line or file."""
    encoding: str = "utf-8"
    """Of captions without a byte order mark."""
    min_side: int = MIN_SIDE
    """Least shorter side of an image, in pixels."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Most millions of pixels of one."""
    caption: str = ""
    """Of images that have none; they are left out where it is empty."""

    def described(self) -> dict[str, Any]:
        """What tells two ways of reading apart."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "caption" or value}


def build(
    source: str,
    output: str,
    *,
    kind: str = "auto",
    image_key: str = "image",
    shard_images: int = 256,
    workers: int = 0,
    quiet: bool = False,
    note: Callable[[str], object] = lambda line: None,
    **reading: Any,
) -> dict[str, Any]:
    """Build the dataset `output` from `source`, or go on with it; returns its report.

    Args:
        source: where the images are.
        output: the directory to write.
        kind: of the source; one of `sources.KINDS`, or `auto`.
        image_key: of a JSON line.
        shard_images: images of the source per shard.
        workers: processes; 0 works in this one.
        quiet: no progress bar.
        note: told, before anything is read, of each argument that changes nothing of this source.
        reading: fields of `Reading`.

    Raises:
        UserError: an empty source, no usable image in it, `output` cannot be written, or is complete and of
            what the source was before.
    """
    how = Reading(**reading)
    kind, items = sources.list_source(source, kind, image_key, how.caption_key, how.encoding)
    for line in _without_effect(kind, items, image_key, how):
        note(line)
    parts = [items[i : i + shard_images] for i in range(0, len(items), shard_images)]
    plan = {"source": os.fspath(source), "items": len(items), "shard_images": shard_images,
            **how.described(), "listing": fingerprint([item.id for item in items])}  # fmt: skip

    from etils import epath

    from ultrapixel_jax.data import records

    directory = epath.Path(output)
    states = [fingerprint([dataclasses.asdict(item) for item in part]) for part in parts]
    jobs = [_Job(os.fspath(directory), i, len(parts), part, how, states[i]) for i, part in enumerate(parts)]
    if not records.start(directory, plan):
        report = records.read_json(directory / records.REPORT)
        _refuse_changed(jobs, report, source, output, _bar(len(items), 0, quiet))
        return report
    todo = [job for job in jobs if records.shard_done(directory, job.index, job.state) is None]
    done = len(items) - sum(len(job.items) for job in todo)
    _run(todo, workers, _bar(len(items), done, quiet))
    shards = [s for i in range(len(parts)) if (s := records.shard_done(directory, i)) is not None]
    if not any(shard.sizes for shard in shards):
        message = _nothing_usable(source, records.make_report(plan, shards))
        directory.rmtree()  # it holds empty shards, and would stand in the way of the next try
        raise UserError(message)
    return records.finish(records.CaptionedImages, directory, plan, shards)


def _without_effect(kind: str, items: Sequence[Item], image_key: str, how: Reading) -> Iterator[str]:
    """A line for each option that was given and changes nothing of this source."""
    tables = kind not in ("folder", "webdataset")
    files = {suffix for item in items for suffix, _ in item.caption_files}
    given = Reading()
    if image_key != "image" and not tables:
        yield f"--image-key {image_key!r:.80} without effect: the images are files"
    if how.caption_key != given.caption_key and not tables and not any(s.endswith(".json") for s in files):
        yield f"--caption-key {how.caption_key!r:.80} without effect: no caption is in JSON"
    if how.encoding != given.encoding and kind == "parquet":
        yield f"--encoding {how.encoding!r:.80} without effect: Parquet has its own"
    if how.caption and not any(_takes_caption(item, how) for item in items):
        yield "--caption without effect: every image has one of its own"


def _takes_caption(item: Item, how: Reading) -> bool:
    """Whether the image gets the caption of those that have none."""
    return bool(item.problem and item.problem[0] == MISSING_CAPTION and how.caption and item.image)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard to make."""

    directory: str
    index: int
    count: int
    items: list[Item]
    how: Reading
    state: str
    """Changes with the files that it is from."""


def _make_shard(job: _Job) -> int:
    """Write one shard; returns the number of items it is from."""
    from etils import epath

    from ultrapixel_jax.data import records

    report, source = records.ShardReport(state=job.state), hashlib.sha256()

    def examples() -> Iterator[dict[str, Any]]:
        for item in job.items:
            try:
                caption, data = _read(item, job.how, source)
                example, notes = _example(item, caption, data, job.how)
            except Skip as skip:
                report.skipped.append((item.id, skip.reason, printable(skip.detail)))
                continue
            report.notes += [(item.id, printable(note)) for note in notes]
            yield example
        report.source = source.hexdigest()

    directory = epath.Path(job.directory)
    records.write_shard(records.CaptionedImages, directory, job.index, job.count, examples(), report)
    return len(job.items)


def _read(item: Item, how: Reading, digest: Any) -> tuple[str, bytes]:
    """Caption and bytes of one item, which go into `digest`, and so does what keeps it from being used."""

    def skip(reason: str, detail: str) -> Skip:
        digest.update(repr((item.id, reason)).encode())
        return Skip(reason, detail)

    without = _takes_caption(item, how)
    if item.problem and not without:
        raise skip(*item.problem)
    try:
        caption = how.caption if without else item.read_caption(how.caption_key, how.encoding)
    except Skip as error:
        raise skip(error.reason, error.detail) from error
    assert item.image is not None, "an item without problem has an image"
    try:
        data = item.image.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise skip(MISSING_IMAGE, f"it cannot be read: {reason}") from error
    digest.update(repr((item.id, caption, hashlib.sha256(data).hexdigest())).encode())
    return caption, data


def _example(item: Item, caption: str, data: bytes, how: Reading) -> tuple[dict[str, Any], list[str]]:
    """The record of one item and what to say about it, after decoding its image once; or `Skip`."""
    import io

    from ultrapixel_jax.data.images import KEPT, BrokenImage, read

    try:
        decoded = read(data, how.max_megapixels)
    except BrokenImage as error:
        raise Skip(BROKEN_IMAGE, str(error)) from error
    width, height = decoded.image.size
    if min(width, height) < how.min_side:
        raise Skip(SMALL_IMAGE, f"{width}×{height} pixels, under the {how.min_side} of --min-side")
    notes = list(decoded.notes)
    if decoded.format not in KEPT:
        notes.append(f"{decoded.format}, stored as PNG")
    image = io.BytesIO(decoded.encoded(data))
    return {"image": image, "caption": caption, "id": item.id, "height": height, "width": width}, notes


def _refuse_changed(jobs: Sequence[_Job], report: dict[str, Any], source: str, output: str, bar: Any) -> None:
    """`UserError` if the source no longer is what the complete dataset with `report` was made from.

    Files are read again only where their sizes or times are others.
    """
    shards = report.get("shards", [])
    with bar:
        for job, shard in zip(jobs, shards):
            digest = hashlib.sha256()
            if shard["state"] == job.state:
                continue
            for item in job.items:
                with contextlib.suppress(Skip):
                    _read(item, job.how, digest)
                bar.update(1)
            if digest.hexdigest() != shard["source"]:
                raise UserError(
                    f"source {printable(source)} has changed since {printable(output)} was built from it "
                    f"(images or captions from {job.items[0].id} to {job.items[-1].id}); remove that, or "
                    "choose another name"
                )


def _run(jobs: Sequence[_Job], workers: int, bar: Any) -> None:
    """Make the shards, here or in worker processes."""
    with bar:
        if workers == 0:
            for job in jobs:
                bar.update(_make_shard(job))
            return
        # Not forked: threads of the libraries in this process would not survive that.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, max(len(jobs), 1)), context, end_with_parent)
        try:
            for future in as_completed([pool.submit(_make_shard, job) for job in jobs]):
                bar.update(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?); repeat the command to go on, perhaps with fewer "
                "--workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Let this worker end when its parent is killed, rather than wait for ever.

    Ctrl-C is the parent's to handle: it lets the shards that are under way be finished.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _bar(total: int, done: int, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="image", desc="building", disable=quiet)


def _nothing_usable(source: str, report: dict[str, Any]) -> str:
    counts = ", ".join(f"{number} × {reason}" for reason, number in report["skipped"].items())
    captions = [entry for entry in report["skipped_items"] if entry["reason"] == MISSING_CAPTION]
    first, where = (captions or report["skipped_items"])[0], printable(source)
    if captions and not {BROKEN_IMAGE, SMALL_IMAGE} & set(report["skipped"]):
        return (
            f"no image of source {where!r} has a caption; put NAME.txt, or NAME.json with a caption key, "
            f"beside each ({first['id']}: {first['detail']})"
        )
    return f"no image of source {where!r} is usable: {counts} ({first['id']}: {first['detail']})"


def summary(report: dict[str, Any], output: str) -> str:
    """The report in lines for the terminal."""
    skipped, notes = report["skipped_items"], report.get("notes", {})
    lines = [f"{entry['id']}: {entry['reason']}: {entry['detail']}" for entry in skipped[:NAMED]]
    if len(skipped) > NAMED:
        lines.append(f"… and {len(skipped) - NAMED} more in the report")
    lines += [f"{number} × {note}" for note, number in notes.items()][:NAMED]
    counts = "".join(f", {number} × {reason}" for reason, number in report["skipped"].items())
    lines.append(f"{printable(output)}: {report['examples']} examples, {len(skipped)} skipped{counts}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------- command line


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.data.build", __doc__)
    p.argument("source", str, "folder, .tar, .jsonl, .csv or .parquet")
    p.argument("output", str, "new directory, or that of an interrupted build")
    p.option(
        "--kind", one_of(("auto", *sources.KINDS)), "of the source", "auto", shown="auto, by what is there"
    )
    p.option("--image-key", str, "of a JSON line", "image", metavar="KEY")
    p.option("--caption-key", str, "of a JSON line or file", "caption", metavar="KEY")
    p.option("--caption", str, "of images without one", "", metavar="TEXT", shown="they are left out")
    p.option("--encoding", str, "of captions without a byte order mark", "utf-8")
    p.option("--min-side", whole(1, 16384), "least shorter side of an image, in pixels", MIN_SIDE)
    p.option("--max-megapixels", whole(1, 100_000), "most millions of pixels of an image", MAX_MEGAPIXELS)
    p.option("--shard-images", whole(1, 1_000_000), "images per shard", 256)
    cores = os.cpu_count() or 1
    p.option("--workers", whole(0, 1024), "processes; 0 works in this one", cores, shown="one per core")
    p.flag("--quiet", "no progress bar")
    return p


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        values = vars(parser().read(argv))
        print(summary(build(**values, note=_warn), values["output"]))

    return commands.run(run, interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
