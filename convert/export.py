"""From a checkpoint directory or a training run back to released files, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert.convert import EXPORTED
from convert.formats import FORMATS, Format, file_keys
from ultrapixel_jax.checkpoints import loras
from ultrapixel_jax.checkpoints.directory import read_manifest, restore
from ultrapixel_jax.checkpoints.manifest import ComponentInfo
from ultrapixel_jax.checkpoints.runs import RunWeights, is_run
from ultrapixel_jax.checkpoints.sources import Form, Sources
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer, is_tokenizer
from ultrapixel_jax.checkpoints.weights import consistent
from ultrapixel_jax.config import CascadeConfig, from_dict, to_dict
from ultrapixel_jax.data.paths import check_name
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath
from ultrapixel_jax.layouts.apply import Step, export_specs, flatten, plan_export
from ultrapixel_jax.layouts.files import write_safetensors
from ultrapixel_jax.layouts.lora.write import Start, write
from ultrapixel_jax.models import components
from ultrapixel_jax.models.components import CONFIGS

FULL_MODEL_FIRST = 64
"""Number of the guidance networks' first list in the released file: stage C's count of GRN layers."""


def export_checkpoint(
    checkpoint: AnyPath, output: Path, only: Sequence[str] = (), layout: str | None = None
) -> None:
    """Write every component of `checkpoint`, or those in `only`, to `output/{component}.safetensors`.

    The layout is the released one (transformers' for CLIP), each tensor in the dtype it is stored in. Of a
    training run, the components are those that it trains, in float32; the moving average where it has one.
    A LoRA is written in `layout`, one of `layouts.lora.LAYOUTS`; None is UltraPixel's.

    Raises:
        UserError: neither a checkpoint nor a run, an unknown component, a file that exists.
    """
    read, infos = _of_run(checkpoint) if is_run(checkpoint) else _of_checkpoint(checkpoint)
    names = list(only) or list(infos)
    for name in names:
        if name not in infos:
            raise UserError(f"{checkpoint} has no component {name!r}; it has {', '.join(infos)}")
        if (output / f"{name}.safetensors").exists():
            raise UserError(f"{output / f'{name}.safetensors'} exists; choose another output directory")
    if layout and "lora" not in names:
        raise UserError(f"--layout is of a LoRA, and {checkpoint} exports none; leave it out")
    check_name(output, "output")
    with _nothing_left(output):
        for name in names:
            path = output / f"{name}.safetensors"
            if name == "lora":
                export_lora(checkpoint, layout, path)
            else:
                export_component(read(name), name, infos[name], path)
            print(f"{name} -> {path}")
        # What it takes to convert the files back.
        configs = {kind: infos[name].config for name in names if (kind := components.kind_of(name))}
        (output / EXPORTED).write_text(json.dumps(configs, indent=1) + "\n")
        if "clip_text" in names and is_tokenizer(checkpoint / "tokenizer"):
            (output / "tokenizer").mkdir(exist_ok=True)
            for file in (checkpoint / "tokenizer").iterdir():
                (output / "tokenizer" / file.name).write_bytes(file.read_bytes())


@contextlib.contextmanager
def _nothing_left(output: Path) -> Iterator[None]:
    """Make the directory `output`; if what follows fails, nothing is left that was not there before."""
    there = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        before = set(output.iterdir())
    except OSError as error:
        raise UserError(f"cannot create {output}: {error.strerror}; choose another output") from error
    try:
        yield
    except BaseException as error:
        for path in set(output.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not there:
            output.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{output}: {error.strerror or error}") from error
        raise


Read = Callable[[str], Mapping[str, Any]]
"""A component's name to its variables, on the host."""


def _of_checkpoint(directory: AnyPath) -> tuple[Read, Mapping[str, ComponentInfo]]:
    infos = read_manifest(directory).components
    return lambda name: restore(directory, name, shardings=_host()), infos


def _of_run(directory: AnyPath) -> tuple[Read, Mapping[str, ComponentInfo]]:
    run, host = RunWeights.open(directory), _host()
    configs = {name: getattr(run.manifest.model, name) for name in run.manifest.stacked}
    names = {components.entry_name(name, config): name for name, config in configs.items()}
    infos = {entry: ComponentInfo(config=to_dict(configs[name])) for entry, name in names.items()}
    return lambda entry: run.restore(names[entry], place=lambda path, struct: host), infos


def _host() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])


def released_format(component: str, config: Any) -> Format:
    """The layout that `component` was released in."""
    return next(
        f for f in FORMATS
        if f.component == component and f.layout != "diffusers" and f.accepts(config)
    )  # fmt: skip


def released_shapes(fmt: Format, config: Any, first: int = FULL_MODEL_FIRST) -> dict[str, tuple[int, ...]]:
    """Key and shape of every parameter of a file in format `fmt`; counters and the like are not there."""
    flat = flatten(components.abstract(fmt.component, config))
    steps = plan_export(fmt.table(config), {p: s.shape for p, s in flat.items()}, fmt.component)
    specs = export_specs(steps, flat)
    keys = file_keys(fmt, config, list(specs), first)
    return {keys[k]: shape for k, (shape, _) in specs.items()}


def export_lora(checkpoint: AnyPath, layout: str | None, path: Path) -> None:
    """Write the LoRA of a run or checkpoint to the new file `path`, in `layout`.

    Raises:
        UserError: the layout cannot hold it.
    """
    sources = Sources([checkpoint])
    config = sources.entries["lora"].config
    model = sources.config or CascadeConfig(guidance=None)
    known = {
        name: sources.entries[name].config for name in ("stage_c", "clip_text") if name in sources.entries
    }
    model = dataclasses.replace(model, **consistent({"stage_c": config.stage_c, **known}, model))
    lora = loras.of_sources(sources, model.clip_text.vocab_size)
    start = _start(sources) if "clip_text" in sources.entries and layout == "comfyui" else None
    written = write(lora, layout or "ultrapixel", model, path.parent.name, start)
    for line in written.left_out:
        print(f"left out: {line}")
    tensors = written.tensors
    specs = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    write_safetensors(path, specs, tensors.__getitem__, written.metadata)


def _start(sources: Sources) -> Start:
    """The mean embedding of the tokens that a pattern finds."""
    entry = sources.entries["clip_text"]
    table = np.asarray(entry.load(Form())["params"]["token_embedding"], np.float32)
    tokenizer = Tokenizer(sources.tokenizer, entry.config.positions)

    def start(pattern: str | None) -> np.ndarray:
        return (
            np.zeros(table.shape[1], np.float32)
            if pattern is None
            else table[tokenizer.found_by(pattern)].mean(0)
        )

    return start


def export_component(variables: Mapping[str, Any], name: str, info: ComponentInfo, path: Path) -> None:
    """Write the variables of one component to the new file `path`."""
    component = components.kind_of(name)
    if component is None:
        raise UserError(f"component {name} has no released layout; leave it out with --component")
    config = from_dict(CONFIGS[component], info.config)
    fmt = released_format(component, config)
    flat = flatten(variables)

    steps = plan_export(fmt.table(config), {p: a.shape for p, a in flat.items()}, name)
    aside = dict(info.kept_aside)
    first = int(aside.pop("first", np.asarray(FULL_MODEL_FIRST)))
    keys = file_keys(fmt, config, [step.key for step in steps] + list(aside), first)
    by_key: dict[str, Step] = {keys[step.key]: step for step in steps}
    specs = {keys[k]: (shape, np.dtype(d)) for k, (shape, d) in export_specs(steps, flat).items()}
    extra = {keys[k]: a for k, a in aside.items()}
    specs |= {key: (a.shape, a.dtype) for key, a in extra.items()}

    def read(key: str) -> np.ndarray:
        if key in extra:
            return extra[key]
        step = by_key[key]
        arrays = [np.asarray(flat[p]) for p in step.paths]
        return np.ascontiguousarray(step.row.layout.inverse(*arrays))

    write_safetensors(path, specs, read)
