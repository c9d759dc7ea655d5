"""Where weights come from: converted checkpoints, training runs, or random numbers, by component.

A source lists its components with their configurations; of two sources that have one, the later one's
counts. A run brings its own sources along, so that its directory is enough to sample from it; what it only
brings never replaces what a source itself has, wherever that stands. A directory with a tokenizer's files
alone is a source too, of that tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.checkpoints.directory import restore
from ultrapixel_jax.checkpoints.manifest import ComponentInfo, identity, read_manifest
from ultrapixel_jax.checkpoints.runs import RunWeights, is_run
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, is_tokenizer, local_tokenizer
from ultrapixel_jax.compilation.options import options_to_initialise
from ultrapixel_jax.config import COMPONENTS, CascadeConfig, DiffusionConfig, from_dict, to_dict
from ultrapixel_jax.config.networks import NOT_DRAWN
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath, place
from ultrapixel_jax.models import components, scan

RUN_TIME_FIELDS = ("timestep", "up_guide_weights", "lr_side", "dropout", *NOT_DRAWN)
"""Fields that a configuration may change without changing any weight's shape or meaning."""
RANDOM_STD = 0.02
RANDOM = "random numbers"
"""Origin of networks that no source has."""
TOKENIZER = "tokenizer"

Place = Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding] | None
"""Placement of an array, of its path and shape; None is the first device."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How a network's variables are wanted."""

    dtype: Any = None
    """Of floating arrays; None keeps theirs."""
    place: Place = None
    stacked: bool = False
    """Blocks stacked, as a scanned network takes them (`models.scan`); `place` then gets those paths."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network of a source."""

    config: Any
    """Its configuration; plain, as the manifest has it, where no network here is of that name."""
    origin: str
    """The directory it lies in, for messages."""
    info: ComponentInfo
    """What a checkpoint that has it says about it."""
    load: Callable[[Form], dict[str, Any]]
    """Its variables, straight onto the devices that they are wanted on: no device and no host ever holds
    all of a network that is divided, and none holds more than one array twice."""


class Sources:
    """The networks of several directories."""

    def __init__(
        self, directories: Sequence[str | os.PathLike[str]], *, ema: bool = True, traced: bool = False
    ) -> None:
        """List what is in `directories`.

        Args:
            directories: converted checkpoints, runs and tokenizers.
            ema: of runs, the moving average where there is one.
            traced: what is loaded is traced next, which checks every parameter that it uses; so checkpoints
                are not compared with their networks' shapes before, which means tracing each once more.

        Raises:
            UserError: one is neither a checkpoint nor a run, or is damaged.
        """
        self._traced = traced
        self.entries: dict[str, Entry] = {}
        self.tokenizer: Path = BYTE_TOKENIZER
        """Directory of the tokenizer; that of small models where no source brings one."""
        self.config: CascadeConfig | None = None
        """Of the last run among the sources, which knows how it is to be sampled."""
        self.sampling: dict[str, DiffusionConfig] = {}
        """`sampling_c` and `sampling_b` of the last source that has them."""
        self._depths: dict[str, int] = {}
        """How far away what is in `entries`, or the tokenizer, was: 0 in a directory that was named, 1 in one
        that a run brought along, and so on."""
        parts = [self._add(directory, ema, 0) for directory in directories]
        self.identity = parts[0] if len(parts) == 1 else _digest(parts)
        """Tells two sets of weights apart."""

    def has_itself(self, name: str) -> bool:
        """Whether a directory that was named has the network `name`, and not one that a run brought along."""
        return self._depths.get(name) == 0

    def _nearer(self, name: str, depth: int) -> bool:
        """Whether `name`, found at `depth`, replaces what is there; if so, that is noted."""
        nearer = depth <= self._depths.get(name, depth)
        if nearer:
            self._depths[name] = depth
        return nearer

    def _add(self, directory: str | os.PathLike[str], ema: bool, depth: int) -> str:
        """Add one directory's networks; returns its identity."""
        if is_run(directory):
            return self._add_run(RunWeights.open(directory), ema, depth)
        directory = place(directory)
        if is_tokenizer(directory):
            if self._nearer(TOKENIZER, depth):
                self.tokenizer = local_tokenizer(directory)
            return _digest([(p.name, p.read_bytes()) for p in sorted(directory.iterdir()) if p.is_file()])
        manifest = read_manifest(directory)
        for name, info in manifest.components.items():
            if self._nearer(name, depth):
                kind = components.kind_of(name)
                config = from_dict(components.CONFIGS[kind], info.config) if kind else info.config
                # What a LoRA changes is in its file, and is checked where it is merged.
                checked = kind not in (None, "lora") and not self._traced
                load = _from_checkpoint(directory, name, config, kind if checked else None)
                self.entries[name] = Entry(config, str(directory), info, load)
        for name, values in manifest.sampling.items():
            self.sampling[name] = from_dict(DiffusionConfig, values)
        if (directory / "tokenizer").is_dir() and self._nearer(TOKENIZER, depth):
            self.tokenizer = local_tokenizer(directory / "tokenizer")
        return identity(directory)

    def _add_run(self, run: RunWeights, ema: bool, depth: int) -> str:
        manifest = run.manifest
        inner = [self._add(source, ema, depth + 1) for source in manifest.sources]
        if manifest.random_seed is not None:
            self.fill_with_random(manifest.model, manifest.random_seed)
        for name in manifest.stacked:
            config = getattr(manifest.model, name)
            entry = components.entry_name(name, config)
            if self._nearer(entry, depth):
                load = functools.partial(_from_run, run, name, ema, name == "lora" or not self._traced)
                info = ComponentInfo(to_dict(config), source=run.directory.name)
                self.entries[entry] = Entry(config, str(run.directory), info, load)
        self.config = manifest.model
        self.sampling = {
            "sampling_c": manifest.model.sampling_c,
            "sampling_b": manifest.model.sampling_b,
        }
        return _digest([inner, run.identity(ema=ema), manifest.random_seed])

    def fill_with_random(self, model: CascadeConfig, seed: int) -> None:
        """Give every network of a cascade that is missing random weights, but for what is added to it."""
        for name in COMPONENTS:
            if name not in (*self.entries, "guidance", "controlnet", "lora"):
                self._add_random(name, getattr(model, name), seed)

    def _add_random(self, name: str, config: Any, seed: int) -> None:
        """The same for the same seed on every mesh; made when loaded."""

        def load(form: Form) -> dict[str, Any]:
            def make() -> Any:
                variables = components.initialise(name, config, components.key_for(seed, "frozen", name))
                variables = _cast(_perturbed(variables, seed, name), form.dtype)
                return scan.stack(variables, config) if form.stacked else variables

            abstract = jax.eval_shape(make)
            shardings = None if form.place is None else _by_path(form.place, abstract)
            options = options_to_initialise(abstract)
            return jax.jit(make, out_shardings=shardings, compiler_options=options)()

        self.entries[name] = Entry(config, RANDOM, ComponentInfo(to_dict(config)), load)

    def require(self, names: Sequence[str], what: str, without: Mapping[str, str] | None = None) -> None:
        """Raise `UserError` where one of `names` is missing; `what` needs them.

        `without` are the options that do without one of them, by name.
        """
        missing = [name for name in names if name not in self.entries]
        if missing:
            found = ", ".join(self.entries) or "nothing"
            options = [without[name] for name in missing if without and name in without]
            hint = f"; or do without: {', '.join(options)}" if options else ""
            raise UserError(
                f"{what} needs {', '.join(missing)}, and the sources have {found}; convert again with "
                "its file among the sources, or name a checkpoint or run that has it" + hint
            )

    def load(
        self, name: str, config: Any, *, dtype: Any = None, place: Place = None, stacked: bool = False
    ) -> dict[str, Any]:
        """Variables of a network, checked against `config`, straight onto the devices (`Form`).

        Raises:
            UserError: no source has it, it is of another variant, damaged, out of reach, or does not fit
                into memory.
        """
        self.check(name, config)
        return self.entries[components.entry_name(name, config)].load(Form(dtype, place, stacked))

    def has(self, name: str, config: Any) -> bool:
        """Whether there is a network of that name, for ControlNets of that kind."""
        return components.entry_name(name, config) in self.entries

    def check(self, name: str, config: Any) -> None:
        """Compare a network with the configuration of the one that is wanted, without reading it.

        Raises:
            UserError: no source has it, or it is of another variant.
        """
        name = components.entry_name(name, config)
        self.require([name], "this")
        entry = self.entries[name]
        # With what a manifest of an earlier version leaves out.
        theirs = to_dict(entry.config) if dataclasses.is_dataclass(entry.config) else entry.info.config
        if different := difference(to_dict(config), theirs):
            raise UserError(f"{entry.origin} is of another variant: {name}{different}")


def difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """The first field in which two configurations differ, in words; fields of run time do not count."""
    if isinstance(ours, dict):
        for key in ours:
            if key not in RUN_TIME_FIELDS and (d := difference(ours[key], theirs.get(key), f"{path}.{key}")):
                return d
        return None
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if d := difference(a, b, f"{path}[{i}]"):
                return d
        return None
    return None if ours == theirs else f"{path} is {theirs} there, {ours} in the configuration"


def _digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _from_checkpoint(
    directory: AnyPath, name: str, config: Any, kind: str | None
) -> Callable[[Form], dict[str, Any]]:
    """Loads a component of a checkpoint; compares it with the shapes of a `kind` of network, if given."""

    def load(form: Form) -> dict[str, Any]:
        like = components.abstract(kind, config) if kind else None
        variables = restore(directory, name, like=like, dtype=form.dtype, shardings=form.place)
        return scan.stack_on_devices(variables, config) if form.stacked else variables

    return load


def _from_run(run: RunWeights, name: str, ema: bool, checked: bool, form: Form) -> dict[str, Any]:
    return run.restore(
        name, ema=ema, dtype=form.dtype, place=form.place, stacked=form.stacked, checked=checked
    )


def _path(path: Any) -> str:
    return "/".join(str(key.key) for key in path)


def _by_path(place: Callable[..., Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, x: place(_path(p), x), tree)


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating arrays in `dtype`; None keeps theirs."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _perturbed(variables: Mapping[str, Any], seed: int, name: str) -> dict[str, Any]:
    """Variables of component `name` whose kernels have small noise added: layers that start at zero would
    hide all others. Each array has noise of its own, which the initial weights know nothing of.
    """

    def noisy(path: Any, x: jax.Array) -> jax.Array:
        if x.ndim < 2:
            return x
        key = components.key_for(seed, "noise", name, _path(path))
        return x + RANDOM_STD * jax.random.normal(key, x.shape, jnp.float32)

    params = jax.tree_util.tree_map_with_path(noisy, variables["params"])
    return {**variables, "params": params}
