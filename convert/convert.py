"""From released files to a checkpoint directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from convert.formats import Recognised, formats_of, recognise
from convert.tokenizer import add_tokenizer
from convert.views import networks
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.checkpoints.loras import INDICES
from ultrapixel_jax.checkpoints.tokenizer import is_tokenizer
from ultrapixel_jax.checkpoints.weights import consistent
from ultrapixel_jax.config import CascadeConfig, LoraConfig, from_dict, load_config, to_dict
from ultrapixel_jax.data.paths import check_name
from ultrapixel_jax.data.text import printable
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.apply import TableError, import_tensors
from ultrapixel_jax.layouts.describe import look
from ultrapixel_jax.layouts.files import TensorFile, check_finite, find_files
from ultrapixel_jax.layouts.lora.read import is_lora, read
from ultrapixel_jax.models import components, measuring
from ultrapixel_jax.models.components import parameter_count
from ultrapixel_jax.models.lora import Lora

EXPORTED = "cascade.json"
"""In the directory of an export: the configurations of its networks."""
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RELEASED_CONFIGS = ("full", "lite", "tiny")
"""Configurations whose sizes are recognised without being named."""


def known_configs(config: Path | None, sources: Sequence[Path] = ()) -> list[tuple[str, CascadeConfig]]:
    """Named configurations to recognise files by: the given one, those of exports, the released ones."""
    given = [(config.stem, _load(config))] if config is not None else []
    exports = [(path.name, _load(path / EXPORTED)) for path in sources if (path / EXPORTED).is_file()]
    released = [(name, load_config(CONFIGS / f"{name}.py")) for name in RELEASED_CONFIGS]
    return [*given, *exports, *released]


def _load(path: Path) -> CascadeConfig:
    """A configuration, from a Python file or from the JSON file that an export writes."""
    if path.suffix != ".json":
        return load_config(path)
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
        found = {name: from_dict(components.CONFIGS[name], values[name]) for name in values}
        return dataclasses.replace(CascadeConfig(guidance=None), **consistent(found, CascadeConfig()))
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"configuration {path} is none that an export wrote ({error})") from error


def component_name(found: Recognised) -> str:
    """Name in the checkpoint directory; of whole CLIPs, several measure pictures."""
    if found.format.component == "clip":
        return found.variant
    return components.entry_name(found.format.component, found.config)


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
    check_name(output, "output")
    known = known_configs(config, sources)
    chosen: dict[str, tuple[TensorFile, Recognised]] = {}
    passed_over: list[Path] = []
    loras: list[tuple[TensorFile, Lora, CascadeConfig]] = []
    for whole in find_files(sources, passed_over):
        where = printable(whole.path)
        if is_lora(whole.specs) and (not only or "lora" in only):
            loras.append((whole, *_lora(whole, known)))
            if len(loras) > 1:
                raise UserError(f"lora is in both {printable(loras[0][0].path)} and {where}; give only one")
            continue
        for file, found in _networks(whole, known, only):
            name = component_name(found)
            if only and name not in only:
                continue
            if name not in chosen:
                chosen[name] = (file, found)
                continue
            first = printable(chosen[name][0].path)
            if not _equal(chosen[name], (file, found)):
                raise UserError(f"{name} is in both {first} and {where}; give only one of them")
            print(f"{where}: {name} once more, the same as in {first}")
    passed_over = [path for path in passed_over if path.name != EXPORTED]
    if passed_over:
        names = ", ".join(printable(path.name) for path in passed_over[:12])
        more = f" and {len(passed_over) - 12} more" if len(passed_over) > 12 else ""
        print(f"passed over, as they hold no weights: {names}{more}")
    found_names = [*chosen, *(["lora"] if loras else [])]
    if missing := [name for name in only if name not in found_names]:
        raise UserError(
            f"no file holds component {missing[0]!r}; found are {', '.join(found_names) or 'none'}"
        )

    row = "{:<28} {:<26} {:<12} {:>8} {:>15} {}".format
    with CheckpointWriter(output, compressed=compressed) as writer:
        print(row("file", "component", "variant", "tensors", "parameters", "dtype"), flush=True)
        for name, (file, found) in chosen.items():
            parameters = _add(writer, name, file, found, dtype)
            dtypes = ",".join(sorted({str(d) for _, d in file.specs.values() if d.kind not in "iub"}))
            label = f"{name} ({found.format.layout})"
            cells = (
                printable(file.path.name),
                label,
                found.variant,
                len(file.specs),
                f"{parameters:,}",
                dtypes,
            )
            print(row(*cells), flush=True)
        for file, lora, cascade in loras:
            variables, info = lora_component(file, lora, cascade)
            writer.add("lora", variables, info)
            cells = (
                printable(file.path.name), "lora", info.variant, len(file.specs),
                f"{parameter_count(variables):,}",
                ",".join(sorted({str(d) for _, d in file.specs.values() if d.kind not in "iub"})),
            )  # fmt: skip
            print(row(*cells), flush=True)
        if "clip_text" in chosen or any(measuring.kind_of(name) == "clip" for name in chosen):
            _find_tokenizer(writer, tokenizer, sources)
    print(f"written: {output}")


def _lora(file: TensorFile, known: Sequence[tuple[str, CascadeConfig]]) -> tuple[Lora, CascadeConfig]:
    """The LoRA in `file`, and the first of the `known` models that it fits."""
    failures: list[UserError] = []
    for _, cascade in known:
        try:
            return read(file, cascade), cascade
        except UserError as error:
            failures.append(error)
    raise next((e for e in failures if "does not fit" in str(e)), failures[0])


def lora_component(
    file: TensorFile, lora: Lora, cascade: CascadeConfig
) -> tuple[dict[str, Any], ComponentInfo]:
    """A LoRA as a component of a checkpoint: the file's numbers, by our names.

    Raises:
        UserError: it brings whole embeddings, which a component does not hold.
    """
    flat: dict[str, np.ndarray] = {}
    for network, own in lora.changes.items():
        for path, change in own.items():
            at = path if network == "stage_c" else f"{network}/{path}"
            flat |= {f"{at}/down": change.down, f"{at}/up": change.up}
            if change.scale != np.float32(1 / change.down.shape[0]):
                flat[f"{at}/scale"] = np.asarray(change.scale, np.float32)
            if change.magnitude is not None:
                flat[f"{at}/magnitude"] = change.magnitude
    if any(token.absolute for token in lora.tokens):
        raise UserError(
            f"{lora.origin} brings whole embeddings of new words, which a checkpoint does not hold; give the "
            "file itself to sample.py --lora"
        )
    vectors = [token.vectors[0] for token in lora.tokens] + list(lora.offsets.values())
    aside = {}
    if vectors:
        first = cascade.clip_text.vocab_size
        flat["embeddings"] = np.stack(vectors)
        aside[INDICES] = np.asarray([*range(first, first + len(lora.tokens)), *lora.offsets], np.int64)
    ranks = [change.down.shape[0] for own in lora.changes.values() for change in own.values()]
    config = dataclasses.replace(
        LoraConfig(), stage_c=cascade.stage_c, rank=max(ranks, default=1), text_width=cascade.clip_text.width,
        modules=(".*",), new_tokens=len(vectors),
    )  # fmt: skip
    info = ComponentInfo(
        config=to_dict(config), source=printable(file.path.name), source_sha256=file.sha256, kept_aside=aside
    )
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}, info


def _networks(
    whole: TensorFile, known: Sequence[tuple[str, CascadeConfig]], only: Sequence[str]
) -> Iterator[tuple[TensorFile, Recognised]]:
    """What a file holds. Where a message has no room for all problems, they are put in a file."""
    where = printable(whole.path)
    for file in networks(whole):
        shapes = {key: shape for key, (shape, _) in file.specs.items()}
        if not formats_of(shapes):
            raise UserError(f"{where} is no checkpoint known here: {printable(look(whole.specs))}")
        try:
            for found in recognise(shapes, known, where, only):
                yield file, found
        except TableError as error:
            if not error.left_out:
                raise
            with tempfile.NamedTemporaryFile(prefix="convert-", suffix=".txt", delete=False) as listed:
                listed.write("".join(f"{printable(p)}\n" for p in error.problems).encode())
            raise UserError(f"{error}; all of them are in {listed.name}") from error


def _equal(one: tuple[TensorFile, Recognised], other: tuple[TensorFile, Recognised]) -> bool:
    """Whether two files hold the same network bit for bit, in whatever layout."""
    if one[1].config != other[1].config:
        return False
    return _digests(*one) == _digests(*other)


def _digests(file: TensorFile, found: Recognised) -> dict[str, str]:
    out = {}
    for step in found.steps:
        tensor = file.read(found.keys[step.key])
        for path, array in zip(step.paths, step.row.layout.forward(tensor) if step.paths else ()):
            content = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            out[path] = f"{array.dtype} {array.shape} {content.hexdigest()}"
    return out


def _add(writer: CheckpointWriter, name: str, file: TensorFile, found: Recognised, dtype: str | None) -> int:
    """Convert one component; its tensors are read one at a time and freed on return."""

    def read(key: str) -> np.ndarray:
        tensor = file.read(found.keys[key])
        check_finite(f"{found.keys[key]} of {printable(file.path)}", tensor)
        return tensor

    target = None if dtype is None else np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    variables, aside = import_tensors(found.steps, read, target)
    if found.format.component == "guidance":  # where the training module kept its two lists
        aside["first"] = np.asarray(min(int(k.removeprefix("module.").split(".")[0]) for k in file.specs))
    info = ComponentInfo(
        config=to_dict(found.config),
        variant=found.variant,
        source=printable(file.path.name),
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
