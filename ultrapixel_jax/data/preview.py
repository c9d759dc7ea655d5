"""A contact sheet of the first batches as the network will see them: cropped, by bucket, with captions.

    python -m ultrapixel_jax.data.preview DATA SHEET.png --preset configs/train/guidance.py

DATA is what `python -m ultrapixel_jax.data.build` wrote. With a preset, what `train.py` will read with it is
shown; options override it. Below each picture is the caption that goes with it in that batch: "(dropped)"
where training leaves it out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import number, whole
from ultrapixel_jax.config import load_config
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.errors import UserError

KINDS = (".png", ".jpg", ".jpeg", ".webp")


def preview(
    config: DataConfig,
    *,
    batches: int = 3,
    start: int = 0,
    most: int = 16,
    side: int = 256,
    held_out: float = 0.0,
) -> Any:
    """The sheet, uint8 (h, w, 3).

    Args:
        config: what is read, and how.
        batches: how many are shown.
        start: number of the first one, from 0.
        most: pictures of each that are shown.
        side: longest side of a picture on the sheet, in pixels; larger ones are made smaller.
        held_out: `validation.share` of the training.

    Raises:
        UserError: the data cannot be opened, or hold latents.
    """
    from ultrapixel_jax.data import sheet
    from ultrapixel_jax.data.loader import Loader

    if config.cached:
        raise UserError("data.cached is set, and latents are no pictures; give the images that were cached")
    parts = []
    with Loader(config, held_out=held_out) as loader:
        loader.seek(start)
        for number_ in range(start, start + batches):
            batch = next(loader)
            height, width = batch["bucket"]
            lr = "x".join(map(str, batch["image_lr"].shape[1:3]))
            title = f"batch {number_}: {len(batch['ids'])} of {height}x{width}, low resolution {lr}"
            labels = [caption or "(dropped)" for caption in batch["caption"][:most]]
            pictures = [_small(image, side) for image in batch["image"][:most]]
            parts.append(sheet.sheet(pictures, labels, columns=min(most, 8), title=title))
    return sheet.stacked(parts)


def _small(image: Any, side: int) -> Any:
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.data.preview", __doc__)
    p.argument("dataset", str, "directory that ultrapixel_jax.data.build wrote")
    p.argument("sheet", Path, "picture to write: .png, .jpg or .webp")
    p.option("--preset", str, "file that `train.py` is given", metavar="PRESET.py")
    p.option("--areas", whole(32, 16384), "s of the areas s²", nargs="+", shown="the preset's", metavar="S")
    p.option("--ratios", str, "aspect ratios", nargs="+", shown="the preset's", metavar="P/Q")
    p.option("--batch-size", whole(1, 65_536), "examples of a batch", shown="the preset's")
    p.option("--seed", whole(0, 2**63 - 1), "of order, crops and dropped captions", shown="the preset's")
    p.option("--held-out", number(low=0, high=1), "validation.share of the training", shown="the preset's")
    p.option("--batches", whole(1, 1000), "batches that are shown", 3)
    p.option("--start", whole(0, 2**40), "number of the first one", 0)
    p.option("--most", whole(1, 1024), "pictures of a batch that are shown", 16)
    p.option("--side", whole(32, 4096), "longest side of a picture on the sheet, in pixels", 256)
    return p


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    if o.sheet.suffix.lower() not in KINDS:
        raise UserError(f"sheet {str(o.sheet)!r} is none of {', '.join(KINDS)}")
    if o.sheet.exists():
        raise UserError(f"sheet {str(o.sheet)!r} exists; remove it or choose another name")
    config, share = DataConfig(), 0.0
    if o.preset is not None:
        preset = load_config(o.preset, object)
        config = getattr(preset, "data", None)
        if not isinstance(config, DataConfig):
            raise UserError(f"preset {o.preset!r} is none of train.py's: its `config` has no `data`")
        share = preset.validation.share
    given = {"areas": o.areas, "ratios": o.ratios, "batch_size": o.batch_size, "seed": o.seed}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    config = dataclasses.replace(config, path=o.dataset, cached=False, workers=0, **changes)
    image = preview(
        config, batches=o.batches, start=o.start, most=o.most, side=o.side,
        held_out=share if o.held_out is None else o.held_out,
    )  # fmt: skip
    from PIL import Image

    try:
        Image.fromarray(image).save(o.sheet)
    except OSError as error:
        raise UserError(f"{o.sheet} cannot be written ({error.strerror or error})") from error
    print(f"{o.sheet}: {o.batches} batches")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
