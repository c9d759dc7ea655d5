"""Latents and text states, computed once, so that training needs neither encoders nor image decoding.

    python -m ultrapixel_jax.data.cache DATASET CHECKPOINT… OUTPUT

DATASET is what `python -m ultrapixel_jax.data.build` wrote; each CHECKPOINT a converted one or a training
run, that together have effnet_encoder, clip_text and clip_vision. Each image is brought to its bucket and
cropped once, as in the first epoch of training with the same seed; OUTPUT then holds its latents (full and
low resolution), text states, pooled text and image vector in bfloat16, and the empty prompt's once:
captions and image vectors are still dropped at random in training. Batches are spread over this machine's
devices.

OUTPUT is written shard by shard; kill the program at any moment and repeat the command to go on.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, one_of, whole
from ultrapixel_jax.data.build import summary
from ultrapixel_jax.data.config import AREAS, LR_LATENT, RATIOS, DataConfig, LrResize
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError

PICTURE_QUALITY = 95
"""Of WebP, for pictures that are kept."""
SETTINGS = ("areas", "ratios", "seed", "lr_resize", "lr_latent")
"""Fields of `DataConfig` that decide what is stored."""


def cache(
    config: DataConfig,
    encoders: Any,
    output: str,
    *,
    checkpoint: str = "",
    shard_images: int = 1024,
    pictures: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Encode the dataset of `config` to `output`, or go on with that; returns the report.

    Args:
        config: `path`, `SETTINGS`, and `batch_size`, the images that are encoded at once.
        encoders: an `encode.Encoders`.
        output: the directory to write.
        checkpoint: identity of the weights: another one's latents do not fit those that are there.
        shard_images: examples per shard.
        pictures: keep the cropped pictures too, which ControlNets are trained on.
        quiet: no progress bar.

    Raises:
        UserError: the dataset cannot be opened, or `output` cannot be written.
    """
    import numpy as np
    from etils import epath
    from tqdm import tqdm

    from ultrapixel_jax.data import records
    from ultrapixel_jax.data.buckets import Buckets
    from ultrapixel_jax.data.examples import EMPTY_PROMPT

    dataset = records.open_dataset(config.path, records.CaptionedImages, config.cache_dir)
    plan = {
        "images": dataset.plan,
        "checkpoint": checkpoint,
        "shard_images": shard_images,
    }
    if isinstance(dataset.identity, str):  # else it is from before content was noted, and so is its cache
        plan["content"] = dataset.identity
    plan |= {name: getattr(config, name) for name in SETTINGS if name != "lr_latent"}
    plan["lr_side"] = config.lr_latent or LR_LATENT  # by its earlier name, so that what is there goes on
    if pictures:
        plan["pictures"] = True
    kind = records.CachedLatentsAndPictures if pictures else records.CachedLatents
    plan |= {"areas": list(config.areas), "ratios": list(config.ratios)}
    directory = epath.Path(output)
    if not records.start(directory, plan):
        return records.read_json(directory / records.REPORT)
    buckets = Buckets(config.areas, config.ratios)
    numbers = buckets.assign_all(dataset.sizes)
    starts = range(0, len(dataset), shard_images)
    with tqdm(total=len(dataset), unit="image", desc="encoding", disable=quiet) as bar:
        for shard, first in enumerate(starts):
            last = min(first + shard_images, len(dataset))
            if records.shard_done(directory, shard) is None:
                report = records.ShardReport()
                members = np.arange(first, last)
                batches = [
                    (buckets.sizes[b], part[i : i + config.batch_size])
                    for b in np.unique(numbers[first:last])
                    for part in [members[numbers[first:last] == b]]
                    for i in range(0, len(part), config.batch_size)
                ]
                examples = _encode(dataset, config, encoders, batches, report, bar, pictures=pictures)
                records.write_shard(kind, directory, shard, len(starts), examples, report)
            else:
                bar.update(last - first)
    shards = [s for i in range(len(starts)) if (s := records.shard_done(directory, i)) is not None]
    if not any(shard.sizes for shard in shards):
        directory.rmtree()
        raise UserError(f"no example of {config.path!r} could be read; build it again")
    states, pooled = encoders.text([""])
    empty = io.BytesIO()
    np.savez(empty, text_states=states[0], text_pooled=pooled[0])
    extra = {EMPTY_PROMPT: empty.getvalue()}
    return records.finish(kind, directory, plan, shards, extra)


def _encode(
    dataset: Any,
    config: DataConfig,
    encoders: Any,
    batches: Sequence[Any],
    report: Any,
    bar: Any,
    *,
    pictures: bool,
) -> Iterator[dict[str, Any]]:
    """Records of all `batches` (size, indices), each decoded while the one before is encoded."""
    import numpy as np

    from ultrapixel_jax.data import images
    from ultrapixel_jax.data.examples import crop_pair, place_of
    from ultrapixel_jax.data.items import BROKEN_IMAGE
    from ultrapixel_jax.data.records import BF16

    def read(index: int, size: tuple[int, int]) -> Any:
        record = dataset.source[index]
        id_, caption = record["id"].decode(), record["caption"].decode()
        try:
            image = images.decode(record["image"], config.max_megapixels)
        except images.BrokenImage as error:
            return id_, str(error), None
        return id_, caption, crop_pair(image, size, place_of(config, 0, index), config)

    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def submit(number: int) -> list[Any]:
            size, indices = batches[number]
            return [pool.submit(read, int(i), size) for i in indices]

        ahead = submit(0)
        for number, (size, _) in enumerate(batches):
            read_now, ahead = ahead, submit(number + 1) if number + 1 < len(batches) else []
            rows = [future.result() for future in read_now]
            report.skipped += [(id_, BROKEN_IMAGE, text) for id_, text, pair in rows if pair is None]
            good = [row for row in rows if row[2] is not None]
            if good:
                # The last batch of a bucket is filled up: another number of rows would compile again.
                full = good + [good[-1]] * (config.batch_size - len(good))
                ids, captions, pairs = zip(*full)
                states, pooled = encoders.text(captions)
                arrays = {
                    "latent": encoders.latents(np.stack([images.pixels(image) for image, _ in pairs])),
                    "latent_lr": encoders.latents(np.stack([images.pixels(low) for _, low in pairs])),
                    "text_states": states,
                    "text_pooled": pooled,
                    "image_vector": encoders.image_vectors([image for image, _ in pairs]),
                }
                for row in range(len(good)):
                    tensors = {name: array[row].astype(BF16) for name, array in arrays.items()}
                    other: dict[str, Any] = {"caption": captions[row], "id": ids[row]}
                    if pictures:
                        pairs[row][0].save(encoded := io.BytesIO(), "WEBP", quality=PICTURE_QUALITY)
                        other["picture"] = io.BytesIO(encoded.getvalue())
                    yield {**tensors, **other, "height": size[0], "width": size[1]}
            bar.update(len(rows))


def lr_latent_of(sources: Any) -> int:
    """What the guidance networks among `sources`, or of the last run's cascade, take; 0 without any."""
    from ultrapixel_jax.sizes import lr_latent

    guidance = sources.config.guidance if sources.config is not None else None
    if "guidance" in sources.entries:
        guidance = sources.entries["guidance"].config
    return 0 if guidance is None else lr_latent(1, 1, guidance.lr_side)[0]


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.data.cache", __doc__)
    p.argument("dataset", str, "directory that ultrapixel_jax.data.build wrote")
    p.argument("checkpoint", str, "directory that convert or train.py wrote", nargs="+")
    p.argument("output", str, "new directory, or that of an interrupted run")
    released = {"shown": "the released ones", "nargs": "+"}
    p.option("--areas", whole(32, 16384), "s of the areas s²", AREAS, metavar="S", **released)
    p.option("--ratios", str, "aspect ratios; inverses are added", RATIOS, metavar="P/Q", **released)
    p.option("--seed", whole(0, 2**63 - 1), "of the crops", 0)
    p.option("--lr-resize", one_of(get_args(LrResize)), "of the low-resolution image", "bilinear",
             shown="bilinear, antialiased")  # fmt: skip
    p.option("--lr-latent", whole(1, 32), "side of its latent at ratio 1", shown="the checkpoints', or 24")
    p.option("--batch-size", whole(1, 65_536), "images encoded at once", 8)
    p.option("--dtype", DTYPE, "of computing", "float32")
    without = "clip_vision where the cascade has none, clip_text to train one on the captions"
    p.option("--without", one_of(("clip_text", "clip_vision")), without, [], shown="none", nargs="+")
    p.flag("--pictures", "keep the cropped pictures too (WebP): ControlNets are trained on their maps")
    p.option("--shard-images", whole(1, 1_000_000), "examples per shard", 1024)
    p.flag("--quiet", "no progress bar")
    return p


def without_effect(checkpoints: Sequence[str], without: Sequence[str]) -> Iterator[str]:
    """A line for each of `checkpoints` that nothing is taken from."""
    from ultrapixel_jax.checkpoints.sources import Sources
    from ultrapixel_jax.data.encode import NAMES

    def taken(directories: Sequence[str]) -> Any:
        sources = Sources(directories)
        origins = {n: sources.entries[n].origin for n in NAMES if n in sources.entries and n not in without}
        return origins, str(sources.tokenizer), lr_latent_of(sources)

    if len(checkpoints) < 2:
        return
    whole = taken(checkpoints)
    for i, directory in enumerate(checkpoints):
        if taken([*checkpoints[:i], *checkpoints[i + 1 :]]) == whole:
            names = ", ".join(name for name in NAMES if name not in without)
            yield f"checkpoint {printable(directory)} without effect: none of {names} is taken from it"


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    from ultrapixel_jax.checkpoints.sources import Sources
    from ultrapixel_jax.data.encode import load_encoders

    sources = Sources(o.checkpoint)
    for line in without_effect(o.checkpoint, o.without):
        print(f"warning: {line}", file=sys.stderr)
    config = DataConfig(
        path=o.dataset, areas=tuple(o.areas), ratios=tuple(o.ratios), seed=o.seed, batch_size=o.batch_size,
        lr_resize=o.lr_resize, lr_latent=o.lr_latent or lr_latent_of(sources),
    )  # fmt: skip
    encoders = load_encoders(sources, o.dtype, tuple(o.without))
    report = cache(
        config, encoders, o.output, checkpoint=" ".join([sources.identity, o.dtype, *sorted(o.without)]),
        shard_images=o.shard_images, pictures=o.pictures, quiet=o.quiet,
    )  # fmt: skip
    print(summary(report, o.output))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(argv), interrupted="repeat the command to go on")


if __name__ == "__main__":
    sys.exit(main())
