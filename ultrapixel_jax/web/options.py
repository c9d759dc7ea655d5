"""The command line of the web page. Imports no jax, so that ``--help`` and bad arguments answer at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from ultrapixel_jax.commands import DTYPE, MESH, Parser, Reader, number, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath, place
from ultrapixel_jax.sampling.options import TILE, existing_checkpoint

PORT = 7860


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line, checked."""

    checkpoint: AnyPath | None
    """None is the demo."""
    config: Path | None
    dtype: str | None
    mesh: dict[str, int] | None
    ema: bool
    preview: bool
    tile: int | None
    decode_memory: float
    """GB that decoding may take."""
    output: Path
    host: str
    port: int
    """0 takes one that is free."""
    host_names: tuple[str, ...]
    """Names by which browsers may call this machine, beside addresses and its own."""
    controlnets: tuple[AnyPath, ...]
    """Checkpoints and runs whose ControlNets count before the model's own."""
    loras: Path | None
    """Directory of LoRA files that browsers can choose from."""
    cache_dir: Path | None
    no_cache: bool
    given: frozenset[str]
    """Names of the options that are not their defaults, with underscores."""

    @property
    def name(self) -> str:
        """What the page calls the model."""
        if self.checkpoint is not None:
            return self.checkpoint.name or str(self.checkpoint)
        return "the demo" if self.config is None else f"{self.config.stem}, untrained"


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Read and check the command line; ``--help`` prints and exits.

    Raises:
        UserError: anything wrong with it.
    """
    parser = _parser()
    values = parser.read(argv)
    if values.no_cache and values.cache_dir:
        raise UserError("give either --cache-dir or --no-cache")
    return Options(
        given=frozenset(parser.changed(values)),
        checkpoint=existing_checkpoint(values.checkpoint),
        config=values.config,
        dtype=values.dtype,
        mesh=values.mesh,
        ema=not values.no_ema,
        preview=values.preview,
        tile=values.tile,
        decode_memory=values.decode_memory,
        output=values.output,
        host=values.host,
        port=values.port,
        host_names=tuple(values.host_name or ()),
        controlnets=tuple(filter(None, map(existing_checkpoint, values.controlnet or ()))),
        loras=_existing(values.loras),
        cache_dir=values.cache_dir,
        no_cache=values.no_cache,
    )


def _parser() -> Parser:
    p = Parser(
        "python -m ultrapixel_jax.web",
        "A web page that draws: one model, one queue, and a gallery of the output directory.",
        epilog="Without --checkpoint the demo draws: one or two coloured shapes. Ctrl-C ends it.",
    )
    p.section("page")
    p.option("--output", Path, "where pictures go, and whose pictures are shown", Path("output"),
             metavar="DIR")  # fmt: skip
    p.option("--host", str, "address to listen at; 0.0.0.0 is every one of this machine, without a password",
             "127.0.0.1", metavar="ADDRESS")  # fmt: skip
    p.option("--port", whole(0, 65_535), "0 takes a free one", PORT)
    p.option("--host-name", HOST_NAME, "a name by which browsers may call this machine; may be given often",
             action="append", shown="its own")  # fmt: skip
    p.section("model")
    p.option("--checkpoint", place, "a checkpoint that `python -m convert` wrote, or a run", metavar="DIR")
    p.option("--config", Path, "a Python file with `config = CascadeConfig(...)`", metavar="FILE")
    p.flag("--no-ema", "of a run, the trained weights and not their moving average")
    p.option("--dtype", DTYPE, "of computing", shown="bfloat16, but float32 for small models like the demo")
    p.flag("--preview", "the small previewer in place of stages B and A")
    p.option("--controlnet", place, "a checkpoint or run whose ControlNet is taken; may be repeated",
             action="append", metavar="DIR")  # fmt: skip
    p.option("--loras", Path, "LoRA files that the page offers", metavar="DIR")
    p.section("running")
    p.option("--mesh", MESH, "devices", shown="one")
    p.option("--tile", TILE, "side of stage A's tiles in latents", shown="auto")
    p.option("--decode-memory", number(above=0), "memory that decoding may take", 4.0, metavar="GB")
    p.option("--cache-dir", Path, "compilation cache", shown="the user's cache", metavar="DIR")
    p.flag("--no-cache", "keep no compilation cache")
    return p


def _existing(directory: Path | None) -> Path | None:
    if directory is not None and not directory.is_dir():
        raise UserError(
            f"--loras {str(directory)!r} is no directory; give the one with the .safetensors files"
        )
    return directory


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", text):
        raise ValueError(f"{text!r:.80} is no name of a machine; write it like gpu.example.org, without port")
    return text.lower()


HOST_NAME = Reader(_host_name, "NAME")
