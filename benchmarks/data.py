"""Images per second of the training data pipeline on this machine, and where the time goes.

    python -m benchmarks.data [--side 1024 --side 4096] [--workers 0 --workers 2] [--count 16] [--seconds 20]

Synthetic photographs (noise over gradients, JPEG quality 92, sides 1.1 times the bucket's with the
ratio 3:2) are built into records; then each stage is timed alone, in milliseconds of processor time per
image, and the loader whole, by the clock. The page cache is warm.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, whole

BATCH = 4


def photograph(side: int, seed: int) -> bytes:
    """A JPEG of about 1.1² · side² pixels that compresses like a photograph (about 2 bits per pixel)."""
    rng = np.random.default_rng(seed)
    height, width = int(1.1 * side * (2 / 3) ** 0.5), int(1.1 * side * 1.5**0.5)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 64, width // 64, 3), np.uint8))
    array = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    array = array + rng.normal(0, 6, array.shape).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def milliseconds(function: Callable[[], Any], seconds: float) -> float:
    """The median processor time of `function`, over about `seconds`: other programs count little."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1e3 * float(np.median(times))


def stages(records: Path, side: int, seconds: float) -> dict[str, float]:
    """Time of each stage for one image, on one core."""
    from ultrapixel_jax.data import images
    from ultrapixel_jax.data.buckets import Buckets, lr_size
    from ultrapixel_jax.data.config import RATIOS
    from ultrapixel_jax.data.records import CaptionedImages, open_dataset

    dataset = open_dataset(records, CaptionedImages)
    buckets = Buckets((side,), RATIOS)
    size = buckets.sizes[buckets.assign(*dataset.sizes[0].tolist())]
    record = dataset.source[0]
    image = images.decode(record["image"])
    covered = images.cover(image, size)
    cropped = images.crop(covered, size, 0.5, 0.5)
    low = lr_size(*size, 24)
    array = images.pixels(cropped)
    each = seconds / 6
    return {
        "read": milliseconds(lambda: dataset.source[0], each),
        "decode": milliseconds(lambda: images.decode(record["image"]), each),
        "resize": milliseconds(lambda: images.cover(image, size), each),
        "crop": milliseconds(lambda: images.pixels(images.crop(covered, size, 0.5, 0.5)), each),
        "LR": milliseconds(lambda: images.pixels(images.low_resolution(cropped, low, "bilinear")), each),
        "batch": milliseconds(lambda: np.stack([array] * BATCH), each) / BATCH,
    }


def throughput(records: Path, side: int, workers: int, seconds: float) -> float:
    """Images per second of the loader, after its start."""
    from ultrapixel_jax.data.config import DataConfig
    from ultrapixel_jax.data.loader import Loader

    config = DataConfig(path=str(records), areas=(side,), batch_size=BATCH, workers=workers)
    with Loader(config) as loader:
        for _ in range(2 * max(workers, 2)):  # start, and what was prefetched meanwhile
            next(loader)
        began, batches = time.perf_counter(), 0
        while batches < 2 or time.perf_counter() - began < seconds:
            next(loader)
            batches += 1
        return batches * BATCH / (time.perf_counter() - began)


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m benchmarks.data", __doc__)
    p.option("--side", whole(32, 16384), "of the pictures", [1024, 4096], nargs="+")
    p.option("--workers", whole(0, 1024), "processes that read", [0, 2], nargs="+")
    p.option("--count", whole(1, 10**6), "images per side", 16)
    p.option("--seconds", number(above=0), "per measurement", 20.0)
    return p


def run(argv: list[str] | None) -> None:
    """Print one row per side."""
    options = parser().read(argv)
    from ultrapixel_jax.data.build import build

    load = ", ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    print(f"{os.cpu_count()} cores, load before the run {load}, Pillow {Image.__version__}, batch {BATCH}")
    head = ["side", "MB", "read", "decode", "resize", "crop", "LR", "batch", "sum ms"]
    print(" | ".join([*head, *(f"{w} workers, images/s" for w in options.workers)]), flush=True)
    for side in options.side:
        with tempfile.TemporaryDirectory() as folder:
            source, records = Path(folder) / "source", Path(folder) / "records"
            source.mkdir()
            for i in range(options.count):
                data = photograph(side, i)
                (source / f"{i}.jpg").write_bytes(data)
                (source / f"{i}.txt").write_text(f"picture {i}")
            build(str(source), str(records), quiet=True)
            parts = stages(records, side, options.seconds)
            rates = [throughput(records, side, w, options.seconds) for w in options.workers]
            numbers = [f"{v:.1f}" for v in (*parts.values(), sum(parts.values()), *rates)]
            print(" | ".join([str(side), f"{len(data) / 1e6:.1f}", *numbers]), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
