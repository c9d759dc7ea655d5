"""A web page that draws.

    python -m ultrapixel_jax.web                          # the demo
    python -m ultrapixel_jax.web --checkpoint CHECKPOINT --mesh data=4

See docs/web.md.
"""

from __future__ import annotations

import gc
import ipaddress
import signal
import sys
import warnings
from collections.abc import Sequence

from ultrapixel_jax import commands
from ultrapixel_jax.web.options import Options, parse_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    return commands.run(
        lambda: run(parse_arguments(argv)), interrupted="the page is closed; finished pictures are kept"
    )


def run(options: Options) -> None:
    """Serve what `options` ask for."""
    # ── What can be wrong without a model: the directory, the address. ─────────────────────────────────
    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.sampling import pictures
    from ultrapixel_jax.web.server import Server

    config = load_config(options.config) if options.config else None
    pictures.check_writable(options.output)
    server = Server.at(options.host, options.port, options.host_names)

    # ── Model ──────────────────────────────────────────────────────────────────────────────────────────
    from ultrapixel_jax import UltraPixel
    from ultrapixel_jax.checkpoints import runs
    from ultrapixel_jax.compilation import cache as compilation_cache
    from ultrapixel_jax.sampling import effects
    from ultrapixel_jax.sampling.ultrapixel import NotUsed
    from ultrapixel_jax.web.gallery import Gallery
    from ultrapixel_jax.web.routes import Routes
    from ultrapixel_jax.web.sent import Sent
    from ultrapixel_jax.web.steering import Shelf
    from ultrapixel_jax.web.studio import Studio

    cache = None if options.no_cache else compilation_cache.use(options.cache_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotUsed)
        model = UltraPixel.load(
            options.checkpoint, config=config, dtype=options.dtype, mesh=options.mesh,
            preview=options.preview, ema=options.ema, cache=cache or False, controlnets=options.controlnets,
        )  # fmt: skip

    is_run = options.checkpoint is not None and runs.is_run(options.checkpoint)
    for line in effects.without_effect(effects.Situation(options.given, preview=options.preview, run=is_run)):
        print(f"warning: {line}", file=sys.stderr)

    # ── Serve ──────────────────────────────────────────────────────────────────────────────────────────
    gallery = Gallery(options.output, cache and cache.parent / "thumbnails")
    studio = Studio(model, gallery, tile=options.tile, decode_memory=options.decode_memory)
    shelf = Shelf(gallery, Sent(options.output), options.loras)
    server.routes = Routes(studio, shelf, name=options.name)
    print(f"{options.name}, pictures in {options.output}: {server.address}", flush=True)
    if not ipaddress.ip_address(str(server.server_address[0])).is_loopback:
        print(
            f"warning: whoever reaches {server.address} can draw and see every picture; there is no password",
            file=sys.stderr,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as services are stopped
    with server, studio:  # whose end ends the streams to browsers
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("the step at work is finished first; Ctrl-C again ends at once", file=sys.stderr)
            raise


if __name__ == "__main__":
    gc.set_threshold(100_000)  # as in sample.py: tracing makes many objects that live on
    sys.exit(main())
