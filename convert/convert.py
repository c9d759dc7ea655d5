"""From released files to a checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.apply import import_tensors
from convert.files import TensorFile, check_finite, find_files
from convert.formats import Recognised, recognise
from convert.tokenizer import add_tokenizer
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.checkpoints.tokenizer import is_tokenizer
from ultrapixel_jax.config import CascadeConfig, load_config, to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.components import parameter_count

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RELEASED_CONFIGS = ("full", "lite", "tiny")
"""Configurations whose sizes are recognised without being named."""


def known_configs(config: Path | None) -> list[tuple[str, CascadeConfig]]:
    """Named configurations to recognise files by; the given one comes first."""
    given = [(config.stem, load_config(config))] if config is not None else []
    return given + [(name, load_config(CONFIGS / f"{name}.py")) for name in RELEASED_CONFIGS]


def component_name(found: Recognised) -> str:
    """Name in the checkpoint directory: a ControlNet's has its kind, as there may be several."""
    name = found.format.component
    return f"{name}_{found.config.kind}" if name == "controlnet" else name


def convert(
    sources: Sequence[Path],
    output: Path,
    only: Sequence[str] = (),
    config: Path | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    *,
    compressed: bool = False,
) -> None:
    """Convert every checkpoint file in `sources` into the new directory `output`, and print a table.

    Raises:
        UserError: a file that cannot be read or recognised, tensors that do not fit, a component that
            two files hold, an output that exists. Nothing is written then.
    """
    known = known_configs(config)
    chosen: dict[str, tuple[TensorFile, Recognised]] = {}
    for file in find_files(sources):
        shapes = {key: shape for key, (shape, _) in file.specs.items()}
        for found in recognise(shapes, known, str(file.path)):
            name = component_name(found)
            if only and name not in only:
                continue
            if name in chosen:
                raise UserError(
                    f"{name} is in both {chosen[name][0].path} and {file.path}; give only one of them"
                )
            chosen[name] = (file, found)
    if missing := [name for name in only if name not in chosen]:
        raise UserError(f"no file holds component {missing[0]!r}; found are {', '.join(chosen) or 'none'}")

    row = "{:<28} {:<26} {:<12} {:>8} {:>15} {}".format
    with CheckpointWriter(output, compressed=compressed) as writer:
        print(row("file", "component", "variant", "tensors", "parameters", "dtype"), flush=True)
        for name, (file, found) in chosen.items():
            parameters = _add(writer, name, file, found, dtype)
            dtypes = ",".join(sorted({str(d) for _, d in file.specs.values() if d.kind not in "iub"}))
            label = f"{name} ({found.format.layout})"
            cells = (file.path.name, label, found.variant, len(file.specs), f"{parameters:,}", dtypes)
            print(row(*cells), flush=True)
        if "clip_text" in chosen:
            _find_tokenizer(writer, tokenizer, sources)
    print(f"written: {output}")


def _add(writer: CheckpointWriter, name: str, file: TensorFile, found: Recognised, dtype: str | None) -> int:
    """Convert one component; its tensors are read one at a time and freed on return."""

    def read(key: str) -> np.ndarray:
        tensor = file.read(found.keys[key])
        check_finite(f"{found.keys[key]} of {file.path}", tensor)
        return tensor

    target = None if dtype is None else np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    variables, aside = import_tensors(found.steps, read, target)
    if found.format.component == "guidance":  # where the training module kept its two lists
        aside["first"] = np.asarray(min(int(k.removeprefix("module.").split(".")[0]) for k in file.specs))
    info = ComponentInfo(
        config=to_dict(found.config),
        variant=found.variant,
        source=file.path.name,
        source_sha256=file.sha256,
        layout=found.format.layout,
        kept_aside=aside,
    )
    parameters = parameter_count(variables)
    writer.add(name, variables, info)
    return parameters


def _find_tokenizer(writer: CheckpointWriter, given: Path | None, sources: Sequence[Path]) -> None:
    directories = [given] if given is not None else [
        directory for source in sources
        for directory in ([source, *sorted(p for p in source.rglob("*") if p.is_dir())]
                          if source.is_dir() else [source.parent])
    ]  # fmt: skip
    for directory in directories:
        if is_tokenizer(directory):
            return add_tokenizer(writer, directory)
    where = str(given) if given is not None else "the sources"
    raise UserError(
        f"no tokenizer in {where}: put CLIP's tokenizer.json, or vocab.json and merges.txt, beside its "
        "weights, or name their directory with --tokenizer"
    )
