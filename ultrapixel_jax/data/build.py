"""Captioned images to sharded ArrayRecord.

    python -m ultrapixel_jax.data.build SOURCE OUTPUT

SOURCE is a folder tree of images with a .json (key "caption") or .txt beside each; WebDataset .tar
shards, one or a folder of them; or a .jsonl file of {"image": path beside the file, "caption": text}.
OUTPUT is a new directory. Both may be gs://... paths. Images keep their bytes (JPEG, PNG, WebP).

The source is listed, cut into shards of --shard-images, and each shard made by one worker process. A
shard that is done has a note in OUTPUT/.build: kill the program at any moment, repeat the command, and
it goes on with the shards that have none, to the same result. Every image is decoded once; a broken one,
or one without caption, is skipped, and named in OUTPUT/report.json.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import one_of, whole
from ultrapixel_jax.data import sources
from ultrapixel_jax.data.config import fingerprint
from ultrapixel_jax.errors import UserError

NAMED = 10
"""Skipped items that the terminal names; the report has them all."""


def build(
    source: str,
    output: str,
    *,
    kind: str = "auto",
    image_key: str = "image",
    caption_key: str = "caption",
    shard_images: int = 256,
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Build the dataset `output` from `source`, or go on with it; returns its report.

    Args:
        source: where the images are.
        output: the directory to write.
        kind: of the source; one of `sources.KINDS`, or `auto`.
        image_key: of a JSON line.
        caption_key: of a JSON line or file.
        shard_images: images of the source per shard.
        workers: processes; 0 works in this one.
        quiet: no progress bar.

    Raises:
        UserError: an empty source, no usable image in it, or `output` cannot be written.
    """
    items = sources.list_source(source, kind, image_key, caption_key)
    parts = [items[i : i + shard_images] for i in range(0, len(items), shard_images)]
    listing = fingerprint([dataclasses.asdict(item) for item in items])
    plan = {"source": os.fspath(source), "items": len(items), "shard_images": shard_images,
            "caption_key": caption_key, "listing": listing}  # fmt: skip

    from etils import epath

    from ultrapixel_jax.data import records

    directory = epath.Path(output)
    if not records.start(directory, plan):
        return records.read_json(directory / records.REPORT)
    todo = [i for i in range(len(parts)) if records.shard_done(directory, i) is None]
    jobs = [_Job(os.fspath(directory), i, len(parts), parts[i], caption_key) for i in todo]
    done = len(items) - sum(len(job.items) for job in jobs)
    _run(jobs, workers, _bar(len(items), done, quiet))
    shards = [s for i in range(len(parts)) if (s := records.shard_done(directory, i)) is not None]
    if not any(shard.sizes for shard in shards):
        message = _nothing_usable(source, records.make_report(plan, shards))
        directory.rmtree()  # it holds empty shards, and would stand in the way of the next try
        raise UserError(message)
    return records.finish(records.CaptionedImages, directory, plan, shards)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard to make."""

    directory: str
    index: int
    count: int
    items: list[sources.Item]
    caption_key: str


def _make_shard(job: _Job) -> int:
    """Write one shard; returns the number of items it is from."""
    from etils import epath

    from ultrapixel_jax.data import records

    report = records.ShardReport()

    def examples() -> Iterator[dict[str, Any]]:
        for item in job.items:
            try:
                yield _example(item, job.caption_key)
            except sources.Skip as skip:
                report.skipped.append((item.id, skip.reason, skip.detail))

    directory = epath.Path(job.directory)
    records.write_shard(records.CaptionedImages, directory, job.index, job.count, examples(), report)
    return len(job.items)


def _example(item: sources.Item, caption_key: str) -> dict[str, Any]:
    """The record of one item, after decoding its image once; `Skip` if it is not usable."""
    import io

    from ultrapixel_jax.data.images import BrokenImage, decode

    if item.problem:
        raise sources.Skip(*item.problem)
    caption = item.read_caption(caption_key)
    assert item.image is not None, "an item without problem has an image"
    try:
        data = item.image.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise sources.Skip(sources.MISSING_IMAGE, f"it cannot be read: {reason}") from error
    try:
        width, height = decode(data).size
    except BrokenImage as error:
        raise sources.Skip(sources.BROKEN_IMAGE, str(error)) from error
    return {"image": io.BytesIO(data), "caption": caption, "id": item.id, "height": height, "width": width}


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
    first = report["skipped_items"][0]
    if set(report["skipped"]) == {sources.MISSING_CAPTION}:
        return (
            f"no image of source {source!r} has a caption; put NAME.txt, or NAME.json with a caption key, "
            f"beside each ({first['id']}: {first['detail']})"
        )
    return f"no image of source {source!r} is usable: {counts} ({first['id']}: {first['detail']})"


def summary(report: dict[str, Any], output: str) -> str:
    """The report in lines for the terminal."""
    skipped = report["skipped_items"]
    lines = [f"{entry['id']}: {entry['reason']}: {entry['detail']}" for entry in skipped[:NAMED]]
    if len(skipped) > NAMED:
        lines.append(f"… and {len(skipped) - NAMED} more in the report")
    counts = "".join(f", {number} × {reason}" for reason, number in report["skipped"].items())
    lines.append(f"{output}: {report['examples']} examples, {len(skipped)} skipped{counts}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------- command line


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.data.build", __doc__)
    p.argument("source", str, "folder, .tar or .jsonl")
    p.argument("output", str, "new directory, or that of an interrupted build")
    p.option(
        "--kind", one_of(("auto", *sources.KINDS)), "of the source", "auto", shown="auto, by what is there"
    )
    p.option("--image-key", str, "of a JSON line", "image", metavar="KEY")
    p.option("--caption-key", str, "of a JSON line or file", "caption", metavar="KEY")
    p.option("--shard-images", whole(1, 1_000_000), "images per shard", 256)
    cores = os.cpu_count() or 1
    p.option("--workers", whole(0, 1024), "processes; 0 works in this one", cores, shown="one per core")
    p.flag("--quiet", "no progress bar")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        values = vars(parser().read(argv))
        print(summary(build(**values), values["output"]))

    return commands.run(run, interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
