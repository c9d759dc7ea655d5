"""The command line of ``sample.py``: every option, and every check that needs no model.

Imports neither jax nor a network, so that ``--help`` and bad arguments answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ultrapixel_jax.config import (
    DTYPES,
    MAX_STEPS,
    DiffusionConfig,
    SamplerName,
    ScheduleName,
    check_dtype,
    unknown_key,
)
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling.requests import MAX_SEED, check_prompt
from ultrapixel_jax.sizes import MAX_SIDE, MIN_SIDE, check_size, parse_size

MESH_AXES = ("data", "fsdp", "tensor", "rows")
SETTINGS_B = ("steps", "cfg", "shift", "sampler", "eta", "schedule")
"""Options of stage B's sampler, which have ``-b`` after their name."""
SETTINGS_C = (*SETTINGS_B, "cfg_hr")
"""Options of stage C's."""
WITH_REPRODUCE = frozenset(
    ["reproduce", "checkpoint", "config", "output", "mesh", "batch_size", "save_latents", "cache_dir",
     "no_cache", "no_ema", "quiet"]
)  # fmt: skip
"""What may be given beside ``--reproduce``; the rest is the picture's."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line, checked. None is: not given, take the default of the model or the picture."""

    prompts: tuple[str, ...]
    prompts_file: Path | None
    negative_prompt: str
    height: int
    width: int
    num_images: int
    seed: int
    settings_c: dict[str, Any]
    """Fields of stage C's `DiffusionConfig` that were given."""
    settings_b: dict[str, Any]
    """The same for stage B."""
    checkpoint: Path | None
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
    cache_dir: Path | None
    """Compilation cache; None with `no_cache` false is the user's cache directory."""
    no_cache: bool
    ema: bool
    """Of a training run's weights, the moving average."""
    quiet: bool


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Read and check the command line; ``--help`` prints and exits.

    Raises:
        UserError: anything wrong with it.
    """
    parser = _parser()
    values, extra = parser.parse_known_args(argv)
    if extra:
        raise UserError(_unknown(extra[0], parser))
    # Options without a default of their own are None unless given, which tells the two apart.
    given = {name for name, value in vars(values).items() if value is not None and value is not False}
    _check_together(values, given)
    height, width = values.size or (values.height or 1024, values.width or 1024)
    if "size" in given or "height" in given:
        check_size(height, width)
    settings = [
        {name: value for name in names if (value := getattr(values, name + suffix)) is not None}
        for names, suffix in ((SETTINGS_C, ""), (SETTINGS_B, "_b"))
    ]
    for stage, changes in zip("CB", settings):
        try:
            DiffusionConfig(**changes)
        except UserError as error:
            raise UserError(f"stage {stage}: {error}") from error
    return Options(
        prompts=tuple(check_prompt(prompt) for prompt in values.prompt or ()),
        prompts_file=values.prompts,
        negative_prompt=check_prompt(values.negative_prompt or ""),
        height=height,
        width=width,
        num_images=_or(values.num_images, 1),
        seed=_or(values.seed, 0),
        settings_c=settings[0],
        settings_b=settings[1],
        checkpoint=_existing_directory(values.checkpoint),
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
        cache_dir=values.cache_dir,
        no_cache=values.no_cache,
        ema=not values.no_ema,
        quiet=values.quiet,
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Read ``data=2,fsdp=2,tensor=2``; axes that are left out have size 1.

    Raises:
        UserError: another form, an unknown axis, one given twice, or a size below 1.
    """
    mesh: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=\s]+)\s*=\s*([0-9]{1,6})\s*", part)
        if match is None:
            raise UserError(f"mesh {text!r:.80} is not AXIS=SIZE,…; write it like data=2,fsdp=2,tensor=2")
        axis, size = match[1], int(match[2])
        if axis not in MESH_AXES:
            raise UserError(unknown_key(axis, list(MESH_AXES), "mesh axis"))
        if axis in mesh:
            raise UserError(f"mesh {text!r:.80} gives the axis {axis} twice")
        if size < 1:
            raise UserError(f"mesh axis {axis} has size {size}; use 1 or more")
        mesh[axis] = size
    return mesh


def one_line(message: object) -> str:
    """`message` without line breaks, whatever a file or a prompt brought into it."""
    return " ".join(str(message).split())


# ---------------------------------------------------------------------------- the parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message:
            message += "; a value that starts with - is written --option=value"
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sample.py",
        description="Prompts in, pictures out: UltraPixel on Stable Cascade, 256 to 8192 pixels a side.",
        epilog="Without --checkpoint the demo draws: one or two coloured shapes. Bad input: exit code 2.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("what to draw")
    add = group.add_argument
    add("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt per line, or JSON lines with prompt, negative_prompt, seed, size (or height and "
        "width), name",
    )
    add("--negative-prompt", metavar="TEXT", help="what to keep away from (default: nothing)")
    add(
        "--size",
        type=parse_size,
        metavar="HEIGHTxWIDTH",
        help="pixels, height first, like 2560x5120 (default: 1024x1024); any size, not only multiples of 8",
    )
    add("--height", type=_whole("--height", MIN_SIDE, MAX_SIDE), metavar="PIXELS", help="with --width")
    add("--width", type=_whole("--width", MIN_SIDE, MAX_SIDE), metavar="PIXELS", help="with --height")
    add(
        "--num-images",
        type=_whole("--num-images", 1, 100_000),
        metavar="N",
        help="pictures per prompt, with seeds seed, seed+1, … (default: 1)",
    )
    add(
        "--seed",
        type=_whole("--seed", 0, MAX_SEED),
        metavar="N",
        help="default: 0, so that a command always makes the same pictures",
    )
    add(
        "--reproduce",
        type=Path,
        metavar="PNG",
        help="make a picture again from its metadata and say whether the pixels are the same",
    )
    for stage, suffix, steps, cfg in (("C (both passes)", "", 20, "4"), ("B", "-b", 10, "1.1")):
        group = parser.add_argument_group(f"sampling, stage {stage}")
        _add_sampler(group, suffix, steps, cfg)
        if stage != "B":
            group.add_argument(
                "--cfg-hr",
                type=_number("--cfg-hr"),
                metavar="X",
                help="the weight in the HR pass (default: as --cfg); lower keeps very large pictures in one",
            )
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="a checkpoint that `python -m convert` wrote")
    add("--config", type=Path, metavar="FILE", help="a Python file with `config = CascadeConfig(...)`")
    add("--no-ema", action="store_true", help="of a run, the trained weights and not their moving average")
    add(
        "--dtype",
        type=check_dtype,
        metavar="|".join(DTYPES),
        help="of computing (default: bfloat16, but float32 for small models like the demo)",
    )
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output", type=Path, metavar="DIR", help="default: output, or the picture's with --reproduce")
    add("--preview", action="store_true", help="the small previewer in place of stages B and A")
    add("--save-latents", action="store_true", help="write the latents beside each picture, .safetensors")
    add("--quiet", action="store_true", help="no progress bar and no table")
    group = parser.add_argument_group("running")
    add = group.add_argument
    add(
        "--batch-size",
        type=_whole("--batch-size", 1, 65_536),
        metavar="N",
        help="pictures at once (default: 1), rounded up to a multiple of data·fsdp",
    )
    add("--mesh", type=parse_mesh, metavar="data=N,fsdp=N,tensor=N", help="devices (default: one)")
    add("--tile", type=_tile, metavar="N|auto", help="side of stage A's tiles in latents (default: auto)")
    add(
        "--decode-memory",
        type=_number("--decode-memory", above=0),
        metavar="GB",
        help="memory that decoding may take, for --tile auto (default: 4)",
    )
    add("--compile-only", action="store_true", help="compile every size in the list and stop")
    add(
        "--process-index",
        type=_whole("--process-index", 0, 65_535),
        metavar="I",
        help="which share of the list this process makes (default: 0)",
    )
    add(
        "--process-count",
        type=_whole("--process-count", 1, 65_536),
        metavar="N",
        help="number of processes that share the list (default: 1)",
    )
    add("--cache-dir", type=Path, metavar="DIR", help="compilation cache (default: the user's cache)")
    add("--no-cache", action="store_true", help="keep no compilation cache")
    return parser


def _add_sampler(group: argparse._ArgumentGroup, suffix: str, steps: int, cfg: str) -> None:
    samplers, schedules = typing.get_args(SamplerName), typing.get_args(ScheduleName)

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        group.add_argument(f"--{name}{suffix}", type=kind, metavar=metavar, help=text)

    name = "--{}" + suffix
    add("steps", _whole(name.format("steps"), 1, MAX_STEPS), "N", f"denoising steps (default: {steps})")
    add("cfg", _number(name.format("cfg")), "X", f"classifier-free guidance weight (default: {cfg})")
    add("shift", _number(name.format("shift"), above=0), "X", "shift of the noise schedule (default: 1)")
    add(
        "sampler", _choice(name.format("sampler"), samplers), "NAME", f"{', '.join(samplers)} (default: ddpm)"
    )
    add("eta", _number(name.format("eta")), "X", "DDIM's eta, 0 to 1 (default: 1 for ddpm, 0 for ddim)")
    add("schedule", _choice(name.format("schedule"), schedules), "NAME",
        f"{', '.join(schedules)} (default: cosine)")  # fmt: skip


# ---------------------------------------------------------------------------- checks


def _check_together(values: argparse.Namespace, given: set[str]) -> None:
    if "reproduce" in given and given - WITH_REPRODUCE:
        other = min(given - WITH_REPRODUCE).replace("_", "-")
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


def _existing_directory(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        if path.is_dir():
            return path
        state = "is a file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:
        state = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise UserError(f"checkpoint {str(path)!r} {state}; give the directory that `python -m convert` wrote")


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.split("=", 1)[0]
    if name.startswith("-"):
        return unknown_key(name, list(parser._option_string_actions), "option")
    return f"unexpected argument {argument!r:.80}; put a prompt in quotes after --prompt"


def _or(value: Any, default: Any) -> Any:
    """`value`, or `default` for None alone: 0 is a value."""
    return default if value is None else value


def _whole(option: str, low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
            raise UserError(f"{option} {text!r:.80} is not a whole number; use {low} to {high}")
        if not low <= int(text) <= high:
            raise UserError(f"{option} {int(text)} is outside {low} to {high}")
        return int(text)

    return read


def _number(option: str, above: int | None = None) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise UserError(f"{option} {text!r:.80} is not a number") from error
        if not math.isfinite(value):
            raise UserError(f"{option} {text!r:.80} is not a finite number")
        if above is not None and value <= above:
            raise UserError(f"{option} {text!r:.80} must be above {above}")
        return value

    return read


def _choice(option: str, known: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise UserError(unknown_key(text, list(known), f"{option} value"))
        return text

    return read


def _tile(text: str) -> int | None:
    return None if text == "auto" else _whole("--tile", 8, 8192 // 4)(text)
