"""Prompts in, pictures out.

    python sample.py --prompt "a lighthouse in a storm" --size 2048x3072 --checkpoint DIR
    python sample.py --prompts list.txt --num-images 4 --batch-size 4 --mesh data=4 --checkpoint DIR
    python sample.py --reproduce output/00000-a-lighthouse-in-a-storm-0.png --checkpoint DIR

Every picture carries its prompt, seed and settings. Nothing is overwritten, and the same command continues
where it stopped. Several processes share a list with --process-index and --process-count, and a mesh with
--distributed or --coordinator.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultrapixel_jax import commands, processes
from ultrapixel_jax.errors import UserError, one_line
from ultrapixel_jax.sampling.options import Options, parse_arguments

if TYPE_CHECKING:
    import numpy as np

    from ultrapixel_jax.sampling.pipeline import Cascade
    from ultrapixel_jax.sampling.requests import Request


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    stopped = "finished pictures are kept, and the same command continues"
    return commands.run(lambda: processes.together(lambda: run(parse_arguments(argv))), interrupted=stopped)


def run(options: Options) -> int:
    """Make what `options` ask for."""
    # ── Processes that share a mesh, on which all of them draw every picture: process 0 says and writes it. ─
    if options.distributed:
        processes.join(options.coordinator, options.process_index, options.process_count)

    # ── What to draw. Everything that can be wrong with it is found before jax is imported. ────────────
    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.sampling import pictures
    from ultrapixel_jax.sampling.requests import plan, share

    config = load_config(options.config) if options.config else None
    made_by: pictures.Run | None = None
    if options.reproduce is not None:
        options, requests, made_by = from_picture(options, options.reproduce)
    else:
        requests = listed(options)
    batch_size = device_batch(options)
    output = options.output or (options.reproduce.parent if options.reproduce else Path("output"))
    if not options.compile_only and processes.is_first():
        pictures.check_writable(output)

    # ── Devices ────────────────────────────────────────────────────────────────────────────────────────
    cache = use_compilation_cache(options)
    from ultrapixel_jax.sharding import make_mesh

    mesh = make_mesh(options.mesh) if options.mesh else None

    # ── Model ──────────────────────────────────────────────────────────────────────────────────────────
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.sampling.pipeline import Cascade

    cascade = Cascade.load(
        options.checkpoint,
        config=config,
        dtype=options.dtype,
        mesh=mesh,
        preview=options.preview,
        ema=options.ema,
        executables=compilation_cache.executables(cache),
    )
    the_run = pictures.Run(
        checkpoint=cascade.identity,
        config=pictures.config_identity(cascade.config),
        dtype=options.dtype,
        batch_size=batch_size,
        mesh=dict(options.mesh or {}),
        lr_side=cascade.lr_side,
        preview=cascade.preview,
        tile=options.tile,
        decode_memory=options.decode_memory,
    )
    if made_by is not None:
        refuse_other_model(made_by, the_run)
    else:
        requests = with_settings(requests, cascade, options)
    if not options.distributed:
        index, count = options.process_index, options.process_count
        requests = share(requests, index, count, batch_size, cascade.lr_side)
    if not requests:
        say(options, "the list has no batch for this process")
        return 0
    if options.checkpoint is None and config is None:
        note("no --checkpoint: the demo draws, which knows prompts like 'a red circle above a blue square'")
    elif options.checkpoint is None:
        note("--config without --checkpoint: the model is untrained, so the pictures are NOISE")
    if batch_size != (options.batch_size or 1):
        note(f"batch size rounded up to {batch_size}, a multiple of the mesh's data·fsdp")
    for text in dict.fromkeys(text for r in requests for text in (r.prompt, r.negative_prompt)):
        if cut := cascade.truncated(text):
            note(
                f"prompt over {cascade.config.clip_text.positions} tokens, cut off is: {one_line(cut)!r}",
                kind="warning",
            )

    # ── Compilation alone ──────────────────────────────────────────────────────────────────────────────
    if options.compile_only:
        batches = plan(requests, batch_size, cascade.lr_side)
        needed = {(b.bucket, b.requests[0].stage_c.effective_cfg_hr == 1): b.requests[0] for b in batches}
        for request in needed.values():
            cascade.compile(request, batch_size=batch_size)
        say(options, f"{len({batch.bucket for batch in batches})} bucket(s) compiled")
        summary(options, cascade, cache)
        return 0

    # ── Pictures ───────────────────────────────────────────────────────────────────────────────────────
    described = {request: pictures.describe(request, the_run) for request in requests}
    todo = requests
    if made_by is None:
        latents = options.save_latents

        def there() -> list[bool]:
            return [bool(pictures.find(output, r.file_name, described[r], latents=latents)) for r in requests]

        todo = [r for r, done in zip(requests, processes.agreed(there, "done")) if not done]
    written = 0
    quiet = options.quiet or options.distributed  # a bar cuts loops into pieces, by this process's clock
    with Progress(len(requests), len(requests) - len(todo), quiet) as progress:
        for batch in plan(todo, batch_size, cascade.lr_side):
            try:
                results = cascade.generate(
                    batch.requests,
                    batch_size=batch_size,
                    progress=progress if progress.visible else None,
                    tile=options.tile,
                    decode_bytes=int(options.decode_memory * 1e9),
                )
            except Exception as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                height, width = batch.bucket.pixels
                raise UserError(
                    f"out of memory for {height}x{width} at batch size {batch_size}; use a smaller "
                    "--batch-size or --decode-memory, --dtype bfloat16, or more devices with --mesh"
                ) from error
            for request, result in zip(batch.requests, results, strict=True):
                if not processes.is_first():
                    continue
                saved = pictures.save(
                    output,
                    request.file_name,
                    result.image,
                    described[request],
                    latents=result.latents if options.save_latents else None,
                    again=made_by is not None,
                )
                written += saved.new
                progress.picture(saved.path)
                if options.reproduce is not None:
                    progress.write(compared(pictures.load_pixels(options.reproduce), result.image))

    # ── Report ─────────────────────────────────────────────────────────────────────────────────────────
    say(options, f"{written} written to {output}, {len(requests) - written} there already")
    summary(options, cascade, cache)
    return 0


# ──────────────────────────────────────────────────────────────────────────────── what to draw


def listed(options: Options) -> list[Request]:
    """The requests of the command line and the prompts file, with the settings that were given."""
    from ultrapixel_jax.config import CascadeConfig
    from ultrapixel_jax.sampling.requests import Entry, make_requests, read_prompts

    entries = [Entry(prompt) for prompt in options.prompts]
    if options.prompts_file is not None:
        entries += read_prompts(options.prompts_file)
    defaults = CascadeConfig()  # until the model's own configuration is known, see `with_settings`
    return make_requests(
        entries or [Entry("")],  # --compile-only needs a size, but no prompt
        height=options.height,
        width=options.width,
        stage_c=dataclasses.replace(defaults.sampling_c, **options.settings_c),
        stage_b=dataclasses.replace(defaults.sampling_b, **options.settings_b),
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        num_images=options.num_images,
    )


def with_settings(requests: Sequence[Request], cascade: Cascade, options: Options) -> list[Request]:
    """`requests` sampled as the model's configuration says where the command line says nothing."""
    stage_c = dataclasses.replace(cascade.config.sampling_c, **options.settings_c)
    stage_b = dataclasses.replace(cascade.config.sampling_b, **options.settings_b)
    return [dataclasses.replace(request, stage_c=stage_c, stage_b=stage_b) for request in requests]


def from_picture(options: Options, path: Path) -> tuple[Options, list[Request], Any]:
    """Options, request and run that made the picture at `path`; a mesh or batch size given here wins."""
    from ultrapixel_jax.config import check_dtype
    from ultrapixel_jax.sampling.pictures import read_metadata, recorded

    request, made_by = recorded(read_metadata(path))
    options = dataclasses.replace(
        options,
        dtype=check_dtype(made_by.dtype),
        batch_size=options.batch_size or made_by.batch_size,
        mesh=options.mesh or made_by.mesh or None,
        tile=made_by.tile,
        decode_memory=made_by.decode_memory,
        preview=made_by.preview,
    )
    return options, [dataclasses.replace(request, name=path.stem)], made_by


def refuse_other_model(made_by: Any, now: Any) -> None:
    """Raise `UserError` where a picture to reproduce comes from other weights or another configuration."""
    if made_by.checkpoint != now.checkpoint:
        raise UserError(
            f"the picture was made with checkpoint {made_by.checkpoint}, and this is {now.checkpoint}; "
            "give its own with --checkpoint"
        )
    if made_by.config != now.config:
        raise UserError(
            f"the picture was made with configuration {made_by.config}, and this is {now.config}; "
            "give its own with --config"
        )


def device_batch(options: Options) -> int:
    """Batch size, rounded up to a multiple of the mesh's axes that split the batch."""
    mesh = options.mesh or {}
    parts = mesh.get("data", 1) * mesh.get("fsdp", 1)
    return -(-(options.batch_size or 1) // parts) * parts


# ──────────────────────────────────────────────────────────────────────────────── running


def use_compilation_cache(options: Options) -> Path | None:
    """Turn jax's compilation cache on; returns its directory, None where there is none."""
    if options.no_cache:
        return None
    from ultrapixel_jax.compilation import cache as compilation_cache

    path = compilation_cache.use(options.cache_dir)
    if path is None:
        note("no compilation cache: the user's cache directory cannot be written", kind="warning")
    return path


class Progress:
    """A bar over pictures and one over the steps of the stage at work, where stderr is a terminal."""

    def __init__(self, pictures: int, done: int, quiet: bool) -> None:
        from tqdm import tqdm

        self.visible = not quiet and sys.stderr.isatty()
        hide = not self.visible
        self._pictures = tqdm(total=pictures, initial=done, unit="picture", disable=hide, position=0)
        self._steps = tqdm(total=1, unit="step", disable=hide, position=1, leave=False)
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()
        self._pictures.close()

    def __call__(self, stage: str, done: int, total: int, *_: object) -> None:
        """Show that `done` of `total` steps of `stage` are done."""
        if stage != self._stage or done < self._steps.n:
            self._stage = stage
            self._steps.set_description(stage, refresh=False)
            self._steps.reset(total)
        self._steps.update(done - self._steps.n)

    def picture(self, path: Path) -> None:
        """Count one picture and print where it lies."""
        self._pictures.update()
        self.write(str(path))

    def write(self, text: str) -> None:
        """Print a line on stdout above the bars."""
        self._pictures.write(text, file=sys.stdout)


# ──────────────────────────────────────────────────────────────────────────────── what it says


def compared(original: np.ndarray, image: np.ndarray) -> str:
    """Whether two pictures have the same pixels, in words."""
    if original.shape != image.shape:
        return f"reproduced: NO, its shape {original.shape} became {image.shape}"
    off = abs(original.astype(int) - image.astype(int))
    if not off.any():
        return "reproduced: yes, every pixel is bit-identical"
    return f"reproduced: NO, {(off > 0).mean():.2%} of the values differ, by {off.max()} of 255 at most"


def summary(options: Options, cascade: Cascade, cache: Path | None) -> None:
    """Print time and peak memory of every stage, and where compiled programs are kept."""
    say(options, f"{'stage':<10}{'seconds':>10}{'peak memory':>14}")
    for stage, seconds, peak in cascade.report.rows():
        memory = "-" if peak is None else f"{peak / 1e9:.2f} GB"
        say(options, f"{stage:<10}{seconds:>10.2f}{memory:>14}")
    say(options, f"compilation cache: {cache or 'none'}")


def say(options: Options, text: str) -> None:
    """Print on stdout, unless it should be quiet."""
    if not options.quiet and processes.is_first():
        print(text)


def note(text: str, kind: str = "note") -> None:
    """Print one line on stderr."""
    if processes.is_first():
        print(f"{kind}: {one_line(text)}", file=sys.stderr)


if __name__ == "__main__":
    # Tracing makes hundreds of thousands of objects that live on: looking among them for garbage every 700
    # takes a fifth of its time.
    gc.set_threshold(100_000)
    sys.exit(main())
