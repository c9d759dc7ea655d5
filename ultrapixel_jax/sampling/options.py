"""The command line of ``sample.py``: every option, and every check that needs no model.

Imports neither jax nor a network, so that ``--help`` and bad arguments answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ultrapixel_jax.commands import DTYPE, MESH, Parser, Reader, number, whole
from ultrapixel_jax.config import HR_FIELDS, DiffusionConfig, ScheduleName
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath, bucket_errors, place
from ultrapixel_jax.sampling.condition_keys import KEYS
from ultrapixel_jax.sampling.requests import MAX_SEED, SETTINGS, SETTINGS_B, check_prompt, with_settings
from ultrapixel_jax.sizes import MAX_SIDE, MIN_SIDE, check_size, parse_size

WITH_REPRODUCE = frozenset(
    ["reproduce", "checkpoint", "config", "output", "mesh", "batch_size", "save_latents", "cache_dir",
     "no_cache", "no_ema", "controlnet", "quiet", "distributed", "coordinator", "patience", "offload",
     "cfg_in_turn", "scanned"]
)  # fmt: skip
"""What may be given beside ``--reproduce``; the rest is the picture's."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line, checked. None is: not given, take the default of the model or the picture."""

    given: frozenset[str]
    """Names of the options that were given, with underscores."""
    prompts: tuple[str, ...]
    prompts_file: Path | None
    negative_prompt: str
    height: int
    width: int
    num_images: int
    seed: int
    comments: bool
    """Whether lines of the prompts file that begin with # are skipped."""
    settings: dict[str, Any]
    """Sampling that was given, by the names in `requests.SETTINGS` and `SETTINGS_B`."""
    conditions: dict[str, Any]
    """What steers pictures beside prompts, by the names in `condition_keys.KEYS`; no file is opened yet."""
    checkpoint: AnyPath | None
    config: Path | None
    dtype: str | None
    """None goes by the model's size."""
    mesh: dict[str, int] | None
    batch_size: int | None
    tile: int | None
    """Side of stage A's tiles in latents; None is automatic."""
    decode_memory: float
    """Memory that decoding may take, in GB (10⁹ bytes)."""
    output: Path | None
    preview: bool
    save_latents: bool
    compile_only: bool
    reproduce: Path | None
    process_index: int
    process_count: int
    coordinator: str
    """HOST:PORT of process 0, where processes share a mesh and it is not detected."""
    patience: int
    """Seconds to wait for the other processes."""
    distributed: bool
    """Whether processes share the mesh; without, they share the list alone."""
    controlnets: tuple[AnyPath, ...]
    """Checkpoints and runs whose ControlNets count before the model's own."""
    cache_dir: Path | None
    """Compilation cache; None with `no_cache` false is the user's cache directory."""
    no_cache: bool
    ema: bool
    """Of a training run's weights, the moving average."""
    int8: bool
    """Whether kernels of stages C and B are in eight bits."""
    offload: bool
    """Whether weights wait in the host's memory while their stage has nothing to do."""
    cfg_in_turn: bool
    """Whether the halves of classifier-free guidance run one after the other."""
    scanned: bool
    """Whether the blocks of a level are a loop."""
    quiet: bool


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Read and check the command line; ``--help`` prints and exits.

    Raises:
        UserError: anything wrong with it.
    """
    values = _parser().read(argv)
    # Options without a default of their own are None unless given, which tells the two apart.
    given = {name for name, value in vars(values).items() if value is not None and value is not False}
    _check_together(values, given)
    height, width = values.size or (values.height or 1024, values.width or 1024)
    if "size" in given or "height" in given:
        check_size(height, width)
    settings = {
        name: value for name in (*SETTINGS, *SETTINGS_B) if (value := getattr(values, name)) is not None
    }
    with_settings(DiffusionConfig(), DiffusionConfig(), settings)
    return Options(
        given=frozenset(given),
        prompts=tuple(check_prompt(prompt) for prompt in values.prompt or ()),
        prompts_file=values.prompts,
        negative_prompt=check_prompt(values.negative_prompt or ""),
        height=height,
        width=width,
        num_images=_or(values.num_images, 1),
        seed=_or(values.seed, 0),
        comments=values.comments,
        settings=settings,
        conditions={
            name: tuple(value) if isinstance(value, list) else value
            for name in KEYS
            if (value := getattr(values, name)) is not None
        },
        checkpoint=existing_checkpoint(values.checkpoint),
        config=values.config,
        dtype=values.dtype,
        mesh=values.mesh,
        batch_size=values.batch_size,
        tile=values.tile,
        decode_memory=_or(values.decode_memory, 4.0),
        output=values.output,
        preview=values.preview,
        save_latents=values.save_latents,
        compile_only=values.compile_only,
        reproduce=values.reproduce,
        process_index=_or(values.process_index, 0),
        process_count=_or(values.process_count, 1),
        coordinator=values.coordinator or "",
        patience=_or(values.patience, 300),
        distributed=values.distributed or bool(values.coordinator),
        controlnets=tuple(filter(None, map(existing_checkpoint, values.controlnet or ()))),
        cache_dir=values.cache_dir,
        no_cache=values.no_cache,
        ema=not values.no_ema,
        int8=values.int8,
        offload=values.offload,
        cfg_in_turn=values.cfg_in_turn,
        scanned=values.scanned,
        quiet=values.quiet,
    )


# ---------------------------------------------------------------------------- the parser

SIZE = Reader(parse_size, "HEIGHTxWIDTH")
TILE = Reader(lambda text: None if text == "auto" else whole(8, 8192 // 4).read(text), "N|auto")


def _parser() -> Parser:
    p = Parser(
        "sample.py",
        "Prompts in, pictures out: UltraPixel on Stable Cascade, 256 to 8192 pixels a side.",
        epilog="Without --checkpoint the demo draws: one or two coloured shapes. Bad input: exit code 2.",
        stray="put a prompt in quotes after --prompt",
    )
    p.section("what to draw")
    p.option("--prompt", str, "a prompt; may be given several times", action="append", metavar="TEXT")
    listed = (
        "a prompt per line, JSON, or a table, with settings of each picture (docs/prompts.md); - is stdin"
    )
    p.option("--prompts", Path, listed, metavar="FILE")
    p.flag("--comments", "skip lines of it that begin with #")
    p.option("--negative-prompt", str, "what to keep away from", shown="nothing", metavar="TEXT")
    p.option("--size", SIZE, "pixels, height first, like 2560x5120; any size, not only multiples of 8",
             shown="1024x1024")  # fmt: skip
    p.option("--height", whole(MIN_SIDE, MAX_SIDE), "with --width", metavar="PIXELS")
    p.option("--width", whole(MIN_SIDE, MAX_SIDE), "with --height", metavar="PIXELS")
    p.option("--num-images", whole(1, 100_000), "pictures per prompt, with seeds seed, seed+1, …", shown="1")
    p.option(
        "--seed",
        whole(0, MAX_SEED),
        "of the first picture",
        shown="0, so that a command always makes the same",
    )
    again = "make a picture again from its metadata and say whether the pixels are the same"
    p.option("--reproduce", Path, again, metavar="PNG")
    for stage, suffix, steps, cfg in (("C (both passes)", "", 20, "4"), ("B", "-b", 10, "1.1")):
        p.section(f"sampling, stage {stage}")
        told = {
            "steps": ("denoising steps", str(steps)),
            "cfg": ("classifier-free guidance weight", cfg),
            "cfg_hr": ("the weight in the HR pass; lower keeps very large pictures in one", "as --cfg"),
            "shift": ("shift of the noise schedule", "1"),
            "sampler": ("how a step is taken; those of dpmpp need fewer", "ddpm"),
            "eta": ("noise that steps add, 0 to 1", "1 for ddpm and dpmpp_2m_sde, else 0"),
            "schedule": (", ".join(get_args(ScheduleName)), "cosine"),
            "cfg_rescale": ("share of the guided noise that is rescaled", "0.7"),
            "steps_hr": ("denoising steps of the HR pass", "as --steps"),
            "sampler_hr": ("of the HR pass", "as --sampler"),
            "cfg_from": ("where guidance by --cfg begins, 0 (noise) to 1 (picture)", "0"),
            "cfg_until": ("where it ends; steps without it run half the batch", "1"),
            "cfg_from_hr": ("that of the HR pass", "as --cfg-from"),
            "cfg_until_hr": ("that of the HR pass", "as --cfg-until"),
            "reuse": ("compute the inner levels in every Nth step alone", "1"),
            "reuse_hr": ("that of the HR pass", "as --reuse"),
        }
        for name, (text, shown) in told.items():
            if stage != "B" or name not in HR_FIELDS:
                more = {"metavar": "NAME"} if name in ("schedule", "sampler_hr") else {}
                option = f"--{name.replace('_', '-')}{suffix}"
                p.option(option, SETTINGS[name], text, shown=shown, **more)
    p.section("what steers it beside the prompt (docs/control.md)")
    for name, key in KEYS.items():
        reader, more = Reader(key.read, key.metavar), {"action": "append"} if key.several else {}
        if name == "inpaint":
            reader, more = Reader(KEYS["image"].read, "FILE"), {"nargs": 2, "metavar": ("IMAGE", "MASK")}
        p.option(f"--{name.replace('_', '-')}", reader, key.help, shown=key.shown, **more)
    p.section("model")
    p.option("--checkpoint", place, "a checkpoint that `python -m convert` wrote", metavar="DIR")
    p.option("--config", Path, "a Python file with `config = CascadeConfig(...)`", metavar="FILE")
    p.option("--controlnet", place, "a checkpoint or run whose ControlNet is taken; may be repeated",
             action="append", metavar="DIR")  # fmt: skip
    p.flag("--no-ema", "of a run, the trained weights and not their moving average")
    p.option("--dtype", DTYPE, "of computing", shown="bfloat16, but float32 for small models like the demo")
    p.section("output")
    p.option(
        "--output",
        Path,
        "where pictures go",
        shown="output, or the picture's with --reproduce",
        metavar="DIR",
    )
    p.flag("--preview", "the small previewer in place of stages B and A")
    p.flag("--save-latents", "write the latents beside each picture, .safetensors")
    p.flag("--quiet", "no progress bar and no table")
    p.section("running")
    batch = "pictures at once, rounded up to a multiple of data·fsdp"
    p.option("--batch-size", whole(1, 65_536), batch, shown="1")
    p.option("--mesh", MESH, "devices", shown="one")
    p.option("--tile", TILE, "side of stage A's tiles in latents", shown="auto")
    p.option("--decode-memory", number(above=0), "memory that decoding may take, for --tile auto", shown="4",
             metavar="GB")  # fmt: skip
    p.flag("--int8", "the kernels of stages C and B in eight bits: half the memory of bfloat16")
    p.flag("--offload", "weights wait in the host's memory but for those of the stage at work")
    p.flag("--cfg-in-turn", "the halves of classifier-free guidance one after the other: less memory")
    p.flag("--scanned", "blocks of stages C and B in a loop: full-size models compile sooner for GPUs")
    p.flag("--compile-only", "compile every size in the list and stop")
    p.option(
        "--process-index",
        whole(0, 65_535),
        "which share of the list this process makes",
        shown="0",
        metavar="I",
    )
    p.option("--process-count", whole(1, 65_536), "number of processes that share the list", shown="1")
    p.flag("--distributed", "one --mesh over all processes, which TPU pods, SLURM and others name")
    p.option("--coordinator", str, "process 0, with --process-index and --process-count", metavar="HOST:PORT")
    p.option("--patience", whole(1, 10**6), "wait for the other processes", shown="300", metavar="SECONDS")
    p.option("--cache-dir", Path, "compilation cache", shown="the user's cache", metavar="DIR")
    p.flag("--no-cache", "keep no compilation cache")
    return p


# ---------------------------------------------------------------------------- checks


def _check_together(values: argparse.Namespace, given: set[str]) -> None:
    allowed = WITH_REPRODUCE | ({"process_index", "process_count"} if "coordinator" in given else set())
    if "reproduce" in given and given - allowed:
        other = min(given - allowed).replace("_", "-")
        raise UserError(f"--reproduce takes everything from the picture; leave out --{other}")
    if "size" in given and given & {"height", "width"}:
        raise UserError("give either --size or --height and --width")
    if ("height" in given) != ("width" in given):
        missing = "--width" if "height" in given else "--height"
        raise UserError(f"{missing} is missing; give --height and --width together, or --size")
    if not given & {"prompt", "prompts", "reproduce", "compile_only"}:
        raise UserError('nothing to draw; give --prompt "…" or --prompts FILE')
    index, count = _or(values.process_index, 0), _or(values.process_count, 1)
    if index >= count:
        raise UserError(f"--process-index {index} must be below --process-count {count}")
    if "no_cache" in given and "cache_dir" in given:
        raise UserError("give either --cache-dir or --no-cache")
    shares = {"process_index", "process_count"}
    if "coordinator" in given and (
        not shares <= given or not values.coordinator.rpartition(":")[2].isdigit()
    ):
        raise UserError("--coordinator HOST:PORT takes --process-index and --process-count beside it")
    if "distributed" in given and "coordinator" not in given and shares & given:
        raise UserError("--distributed detects its processes; leave out --process-index and --process-count")
    if given & {"distributed", "coordinator"} and "mesh" not in given:
        raise UserError("processes that draw together share a mesh; give --mesh, such as data=16")


def existing_checkpoint(path: AnyPath | None) -> AnyPath | None:
    """Return `path` if a checkpoint or a run can be there; raise `UserError` otherwise."""
    if path is None:
        return None
    from ultrapixel_jax.checkpoints.runs import is_run  # imports what --help need not wait for

    try:
        with bucket_errors(path):
            if path.is_dir() or is_run(path):  # RUN@STEP is no directory
                return path
            state = "is a file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:
        state = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise UserError(f"checkpoint {str(path)!r} {state}; give the directory that `python -m convert` wrote")


def _or(value: Any, default: Any) -> Any:
    """`value`, or `default` for None alone: 0 is a value."""
    return default if value is None else value
