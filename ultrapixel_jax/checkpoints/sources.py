"""Where weights come from: converted checkpoints, training runs, or random numbers, by component.

A source lists its components with their configurations; of two sources that have one, the later one's
counts. A run brings its own sources along, so that its directory is enough to sample from it; what it only
brings never replaces what a source itself has, wherever that stands. A directory with a tokenizer's files
alone is a source too, of that tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.checkpoints.directory import restore
from ultrapixel_jax.checkpoints.manifest import identity, read_manifest
from ultrapixel_jax.checkpoints.runs import RunWeights, is_run
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, is_tokenizer
from ultrapixel_jax.compilation.options import options_to_initialise
from ultrapixel_jax.config import COMPONENTS, CascadeConfig, DiffusionConfig, from_dict, to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components

RUN_TIME_FIELDS = ("timestep", "up_guide_weights", "lr_side", "dropout")
"""Fields that a configuration may change without changing any weight's shape or meaning."""
RANDOM_STD = 0.02
TOKENIZER = "tokenizer"

Place = Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding] | None
"""Placement of an array, of its path and shape; None is the first device."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network of a source."""

    config: Any
    """Its configuration."""
    origin: str
    """The directory it lies in, for messages."""
    load: Callable[[Any, Place], dict[str, Any]]
    """(dtype, placement) to variables."""


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
        directory = Path(directory)
        if is_tokenizer(directory):
            if self._nearer(TOKENIZER, depth):
                self.tokenizer = directory
            return _digest([(p.name, p.read_bytes()) for p in sorted(directory.iterdir()) if p.is_file()])
        manifest = read_manifest(directory)
        for name, info in manifest.components.items():
            if name in components.CONFIGS and self._nearer(name, depth):
                config = from_dict(components.CONFIGS[name], info.config)
                checked = name == "lora" or not self._traced  # a LoRA is merged, not traced
                load = _from_checkpoint(directory, name, config, checked)
                self.entries[name] = Entry(config, str(directory), load)
        for name, values in manifest.sampling.items():
            self.sampling[name] = from_dict(DiffusionConfig, values)
        if (directory / "tokenizer").is_dir() and self._nearer(TOKENIZER, depth):
            self.tokenizer = directory / "tokenizer"
        return identity(directory)

    def _add_run(self, run: RunWeights, ema: bool, depth: int) -> str:
        config = run.config
        inner = [self._add(source, ema, depth + 1) for source in config.sources]
        if config.random_frozen:
            self.fill_with_random(config.model, config.seed)
        loaded: dict[str, Any] = {}

        def load(name: str, dtype: Any, place: Place) -> dict[str, Any]:
            if not loaded:
                loaded.update(run.restore(ema=ema))
            return _put(loaded[name], dtype, place)

        from ultrapixel_jax.training.tasks import make_task

        for name in make_task(config).trained:
            if self._nearer(name, depth):
                self.entries[name] = Entry(
                    getattr(config.model, name), str(run.directory),
                    lambda dtype, place, name=name: load(name, dtype, place),
                )  # fmt: skip
        self.config = config.model
        self.sampling = {"sampling_c": config.model.sampling_c, "sampling_b": config.model.sampling_b}
        return _digest([inner, run.step, ema, config])

    def fill_with_random(self, model: CascadeConfig, seed: int) -> None:
        """Give every network of a cascade that is missing random weights, but for what is added to it."""
        for name in COMPONENTS:
            if name not in (*self.entries, "guidance", "controlnet", "lora"):
                self._add_random(name, getattr(model, name), seed)

    def _add_random(self, name: str, config: Any, seed: int) -> None:
        """The same for the same seed on every mesh; made when loaded."""

        def load(dtype: Any, place: Place) -> dict[str, Any]:
            def make() -> Any:
                key = jax.random.fold_in(jax.random.key(seed), sum(name.encode()))
                return _cast(_perturbed(components.initialise(name, config, key), key), dtype)

            abstract = jax.eval_shape(make)
            shardings = None if place is None else _by_path(place, abstract)
            options = options_to_initialise(abstract)
            return jax.jit(make, out_shardings=shardings, compiler_options=options)()

        self.entries[name] = Entry(config, "random numbers", load)

    def require(self, names: Sequence[str], what: str) -> None:
        """Raise `UserError` where one of `names` is missing; `what` needs them."""
        missing = [name for name in names if name not in self.entries]
        if missing:
            found = ", ".join(self.entries) or "nothing"
            raise UserError(
                f"{what} needs {', '.join(missing)}, and the sources have {found}; convert again with "
                "its file among the sources, or name a checkpoint or run that has it"
            )

    def load(self, name: str, config: Any, *, dtype: Any = None, place: Place = None) -> dict[str, Any]:
        """Variables of a network, checked against `config` and put on the devices.

        Raises:
            UserError: no source has it, it is of another variant, or damaged.
        """
        self.require([name], "this")
        entry = self.entries[name]
        if different := difference(to_dict(config), to_dict(entry.config)):
            raise UserError(f"{entry.origin} is of another variant: {name}{different}")
        return entry.load(dtype, place)


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
    directory: Any, name: str, config: Any, checked: bool
) -> Callable[[Any, Place], dict[str, Any]]:
    def load(dtype: Any, place: Place) -> dict[str, Any]:
        like = components.abstract(name, config) if checked else None
        return restore(directory, name, like=like, dtype=dtype, shardings=place)

    return load


def _path(path: Any) -> str:
    return "/".join(str(key.key) for key in path)


def _by_path(place: Callable[..., Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, x: place(_path(p), x), tree)


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating arrays in `dtype`; None keeps theirs."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _put(tree: Any, dtype: Any, place: Place) -> Any:
    """Host arrays in `dtype`, on the devices."""
    tree = _cast(tree, dtype)
    if place is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(jax.device_put, tree, _by_path(place, tree))


def _perturbed(variables: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Variables whose kernels have small noise added: layers that start at zero would hide all others."""

    def noisy(x: jax.Array) -> jax.Array:
        if x.ndim < 2:
            return x
        return x + RANDOM_STD * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)

    return {**variables, "params": jax.tree.map(noisy, variables["params"])}
