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
import functools
import gc
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultrapixel_jax import commands, processes
from ultrapixel_jax.errors import one_line
from ultrapixel_jax.sampling.options import Options, parse_arguments

if TYPE_CHECKING:
    from ultrapixel_jax import UltraPixel
    from ultrapixel_jax.sampling.requests import Entry, Request


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    stopped = "finished pictures are kept, and the same command continues"
    return commands.run(lambda: processes.together(lambda: run(parse_arguments(argv))), interrupted=stopped)


def run(options: Options) -> int:
    """Make what `options` ask for."""
    # ── Processes that share a mesh, on which all of them draw every picture: process 0 says and writes it. ─
    if options.distributed:
        processes.join(
            options.coordinator, options.process_index, options.process_count, patience=options.patience
        )

    # ── What to draw. All that can be wrong with it without a model is found before jax is imported. ───
    from ultrapixel_jax.config import DiffusionConfig, load_config
    from ultrapixel_jax.sampling import pictures
    from ultrapixel_jax.sampling import requests as lists

    config = load_config(options.config) if options.config else None
    made_by: pictures.Run | None = None
    if options.reproduce is not None:
        metadata = pictures.read_metadata(options.reproduce)
        request, made_by = pictures.recorded(metadata, options.reproduce.parent)
        requests = [dataclasses.replace(request, name=options.reproduce.stem)]
        options = as_recorded(options, made_by)
        entries = []
    else:
        entries = listed(options)
        # Before the model says what its own sampling is, that of the release is as good for checks.
        stages = lists.with_settings(DiffusionConfig(), DiffusionConfig(), options.settings)
        requests = lists.make_requests(entries, **asked(options), stage_c=stages[0], stage_b=stages[1])
    output = options.output or (options.reproduce.parent if options.reproduce else Path("output"))
    if not options.compile_only and processes.is_first():
        pictures.check_writable(output)

    # ── Model ──────────────────────────────────────────────────────────────────────────────────────────
    from ultrapixel_jax import UltraPixel
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.sampling.ultrapixel import NotUsed

    cache = None if options.no_cache else compilation_cache.use(options.cache_dir)
    if cache is None and not options.no_cache:
        note("no compilation cache: the user's cache directory cannot be written", kind="warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotUsed)  # `without_effect` says it
        model = UltraPixel.load(
            options.checkpoint, config=config, dtype=options.dtype, mesh=options.mesh,
            preview=options.preview, ema=options.ema, cache=cache or False, controlnets=options.controlnets,
            int8=options.int8, offload=options.offload, cfg_in_turn=options.cfg_in_turn,
            scanned=options.scanned,
        )  # fmt: skip
    batch_size = model.device_batch(options.batch_size or 1)
    drawn_with: dict[str, Any] = {
        "batch_size": batch_size, "tile": options.tile, "decode_memory": options.decode_memory,
    }  # fmt: skip
    the_run = model.run(**drawn_with)
    if made_by is not None:
        pictures.check_same_model(made_by, the_run)
        model.check_same_networks(requests[0])
    else:
        requests = model.requests(entries, **asked(options), **options.settings)
    if not options.distributed:
        index, count = options.process_index, options.process_count
        requests = lists.share(requests, index, count, batch_size, model.cascade.lr_side)
    if not requests:
        say(options, "the list has no batch for this process")
        return 0
    notes(options, model, batch_size)
    for line in model.doubts(requests):
        note(line, kind="warning")
    for line in without_effect(options, model, entries, requests, cached=cache is not None):
        note(line, kind="warning")

    # ── Pictures ───────────────────────────────────────────────────────────────────────────────────────
    if options.compile_only:
        say(options, f"{model.compile(requests, batch_size=batch_size)} bucket(s) compiled")
        summary(options, model, cache)
        return 0
    from ultrapixel_jax.sampling.progress import Progress
    from ultrapixel_jax.sampling.writer import Writer

    latents, again, todo = options.save_latents, made_by is not None, requests
    if not again:

        def there(request: Request) -> bool:
            described = pictures.describe(request, the_run)
            return bool(pictures.find(output, request.file_name, described, latents=latents))

        done = processes.agreed(lambda: [there(request) for request in requests], "done")
        todo = [request for request, finished in zip(requests, done) if not finished]
    written = 0
    quiet = options.quiet or options.distributed  # a bar cuts loops into pieces, by this process's clock
    with Progress(len(requests), len(requests) - len(todo), quiet=quiet) as progress:

        def finished(saved: pictures.Saved) -> None:
            nonlocal written
            written += saved.new
            progress.picture(saved.path)
            if options.reproduce is not None:
                progress.write(pictures.compared(options.reproduce, saved.path))

        shown = progress if progress.visible else None
        with Writer(finished) as writer:
            for i, picture in model.draw(todo, **drawn_with, return_latents=latents, callback=shown):
                name = todo[i].file_name
                if processes.is_first():
                    writer.add(functools.partial(pictures.save_picture, output, name, picture, again=again))

    # ── Report ─────────────────────────────────────────────────────────────────────────────────────────
    say(options, f"{written} written to {output}, {len(requests) - written} there already")
    summary(options, model, cache)
    return 0


# ──────────────────────────────────────────────────────────────────────────────── what to draw


def listed(options: Options) -> list[Entry]:
    """The prompts of the command line and of the file."""
    from ultrapixel_jax.sampling.prompts import read_prompts
    from ultrapixel_jax.sampling.requests import Entry

    entries = [Entry(prompt) for prompt in options.prompts]
    if options.prompts_file is not None:
        entries += read_prompts(options.prompts_file, comments=options.comments, note=note)
    return entries or [Entry("")]  # --compile-only needs a size, but no prompt


def asked(options: Options) -> dict[str, Any]:
    """What the command line says about every prompt, but for the sampling."""
    names = ("height", "width", "seed", "negative_prompt", "num_images", "conditions")
    return {name: getattr(options, name) for name in names}


def as_recorded(options: Options, made_by: Any) -> Options:
    """`options` as a picture was made; a mesh or batch size given here wins."""
    from ultrapixel_jax.config import check_dtype

    return dataclasses.replace(
        options,
        dtype=check_dtype(made_by.dtype),
        batch_size=options.batch_size or made_by.batch_size,
        mesh=options.mesh or made_by.mesh or None,
        tile=made_by.tile,
        decode_memory=made_by.decode_memory,
        preview=made_by.preview,
        int8=made_by.weights == "int8",
    )


# ──────────────────────────────────────────────────────────────────────────────── what it says


def notes(options: Options, model: UltraPixel, batch_size: int) -> None:
    """Print what may be a surprise."""
    if options.checkpoint is None and options.config is None:
        note("no --checkpoint: the demo draws, which knows prompts like 'a red circle above a blue square'")
    elif options.checkpoint is None:
        note("--config without --checkpoint: the model is untrained, so the pictures are NOISE")
    if batch_size != (options.batch_size or 1):
        note(f"batch size rounded up to {batch_size}, a multiple of the mesh's data·fsdp")


def without_effect(
    options: Options, model: UltraPixel, entries: list[Entry], requests: list[Request], *, cached: bool
) -> list[str]:
    """What was given, by the command line or the checkpoint, and changes no picture."""
    from ultrapixel_jax.checkpoints.runs import is_run
    from ultrapixel_jax.sampling import effects

    averaged = "no_ema" not in options.given  # else it matters whether there is an average to leave out
    situation = effects.Situation(
        options.given,
        entries,
        requests,
        preview=model.cascade.preview,
        guided=model.config.guidance is not None,
        repeated=model.cascade.repeated,
        compile_only=options.compile_only,
        cached=cached,
        listed=options.prompts_file is not None,
        together=options.distributed,
        run=averaged or (options.checkpoint is not None and is_run(options.checkpoint)),
    )
    wanted = {control.kind for request in requests for control in request.conditions.controls}
    spare = [
        f"controlnet_{kind} of {origin} without effect: no --control {kind}:IMAGE asks for it"
        for kind, origin in model.cascade.controlnets.items()
        if kind not in wanted
    ]
    return [*effects.without_effect(situation), *model.cascade.unused, *spare]


def summary(options: Options, model: UltraPixel, cache: Path | None) -> None:
    """Print time and peak memory of every stage, and where compiled programs are kept."""
    say(options, f"{'stage':<10}{'seconds':>10}{'peak memory':>14}")
    for stage, seconds, peak in model.cascade.report.rows():
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
