"""Reading a run's directory: what it says about itself, and the weights that it trained.

A run writes `run.json` beside its configuration: which networks it trains, their configurations, and how they
lie in its state. So nothing of training is needed to read one. `config.json` of a run that was made before
says the same in other words.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from ultrapixel_jax.config import CascadeConfig, drawn_alike, from_dict, to_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import bucket_errors, fingerprint, is_remote

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
RUN_MANIFEST = "run.json"
COMMITTED = "commit_success.txt"
"""What Orbax writes last into a checkpoint in a bucket."""
RUN_VERSION = 1
"""Raised when a run can no longer be read by older code."""


@dataclasses.dataclass(frozen=True)
class RunManifest:
    """What a run is made of."""

    stacked: Mapping[str, bool]
    """By trained network, whether its blocks are stacked in the state (`models.scan`)."""
    ema: bool
    """Whether the state has a moving average of the parameters."""
    model: CascadeConfig
    """The cascade: configurations of all networks, and how to sample."""
    sources: tuple[str, ...]
    """Where the other networks come from."""
    random_seed: int | None
    """Of the random numbers that networks consist of which no source has; None where there are none."""


def manifest_to_json(manifest: RunManifest) -> dict[str, Any]:
    """Plain form."""
    return {"version": RUN_VERSION, **to_dict(manifest)}


def _manifest_from_json(values: Mapping[str, Any]) -> RunManifest:
    """Inverse of `manifest_to_json`.

    Raises:
        UserError: it is of a newer version.
    """
    if values["version"] > RUN_VERSION:
        raise UserError(f"it has version {values['version']}, newer than {RUN_VERSION}; update this program")
    return RunManifest(
        dict(values["stacked"]), bool(values["ema"]), from_dict(CascadeConfig, values["model"]),
        tuple(values["sources"]), values["random_seed"],
    )  # fmt: skip


_TRAINED: Mapping[str, tuple[str, str, str]] = {
    "GuidanceTask": ("guidance", "", ""),
    "LoraTask": ("lora", "", ""),
    "PreviewerTask": ("previewer", "train_encoder", "effnet_encoder"),
    "StageATask": ("stage_a", "", ""),
    "StageBTask": ("stage_b", "train_encoder", "effnet_encoder"),
    "StageCTask": ("stage_c", "train_text_encoder", "clip_text"),
    "TextTask": ("clip_text", "", ""),
}
"""By the task of a run without a manifest: what it trains, and the setting with which another too."""


def _manifest_from_config(values: Mapping[str, Any]) -> RunManifest:
    """The manifest of a run that was made before there were any, from its configuration.

    Raises:
        UserError: an unknown task.
    """
    task = values["task_type"]
    if task not in _TRAINED:
        raise UserError(f"task {task!r} is not known; known are {', '.join(_TRAINED)}")
    first, setting, second = _TRAINED[task]
    trained = [first, *([second] if setting and values["task"][setting] else [])]
    return RunManifest(
        {name: bool(values["scanned"]) and name in ("stage_c", "stage_b") for name in trained},
        values["optimizer"]["ema_decay"] > 0, from_dict(CascadeConfig, values["model"]),
        tuple(values["sources"]), values["seed"] if values["random_frozen"] else None,
    )  # fmt: skip


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` is that of a run, or RUN@STEP."""
    path, _ = _at(directory)
    return _is_run(path)


def _is_run(path: epath.Path) -> bool:
    with bucket_errors(path):
        return (path / CONFIG).exists() and (path / CHECKPOINTS).exists()


def _at(directory: str | os.PathLike[str]) -> tuple[epath.Path, int | None]:
    """Directory and step of RUN@STEP; a directory whose own name ends so is meant as it is."""
    path = epath.Path(directory)
    found = re.fullmatch(r"(.+)@([0-9]{1,18})", path.name)
    with bucket_errors(path):
        if found is None or path.exists():
            return path, None
    run = path.with_name(found[1])
    return (run, int(found[2])) if _is_run(run) else (path, None)


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Steps of the checkpoints in a run's directory, ascending; none where there is no such directory.

    In a bucket nothing can be renamed: there Orbax writes in place, and last of all a file that says so.
    """
    path = epath.Path(directory) / CHECKPOINTS
    with bucket_errors(directory):
        steps = [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.exists() else []
        whole = [n for n in steps if not is_remote(path) or (path / str(n) / COMMITTED).exists()]
    return sorted(whole)


def _read(path: epath.Path) -> RunManifest:
    """What the run in `path` says about itself."""
    file, read = path / RUN_MANIFEST, _manifest_from_json
    if not file.exists():
        file, read = path / CONFIG, _manifest_from_config
    try:
        return read(json.loads(file.read_text()))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error!r:.200}); if {path} is a run, the command that trained it writes "
            "it anew"
        ) from error


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """What one checkpoint of a run holds."""

    directory: epath.Path
    manifest: RunManifest
    step: int
    checksums: Mapping[str, int]
    """Of the arrays, as `checkpoints.checksum` names and computes them."""

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> RunWeights:
        """Read what the run says about itself, and find its newest checkpoint, or the one of RUN@STEP.

        Raises:
            UserError: nothing was saved yet, or not at that step, or what is there is damaged.
        """
        from ultrapixel_jax.checkpoints.faults import reading

        path, wanted = _at(directory)
        manifest = _read(path)
        steps = saved_steps(path)
        if not steps:
            raise UserError(f"run {path} has no checkpoint yet; let it train on")
        if wanted is not None and wanted not in steps:
            listed = ", ".join(map(str, steps))
            raise UserError(f"run {path} has no checkpoint of step {wanted}; it has those of {listed}")
        step = steps[-1] if wanted is None else wanted
        with reading(*_words(path, step)):
            saved = json.loads((path / CHECKPOINTS / str(step) / "data" / "metadata").read_text())
            return cls(path, manifest, step, dict(saved.get("checksums", {})))

    def identity(self, *, ema: bool = True) -> str:
        """Differs between weights, models and steps; where it lies and how it was trained do not enter."""
        fields = (self._parameters(ema), "collections")
        sums = {name: n for name, n in self.checksums.items() if name.split("/")[0] in fields}
        model = dataclasses.replace(
            self.manifest.model, sampling_c=CascadeConfig().sampling_c, sampling_b=CascadeConfig().sampling_b
        )
        values = to_dict(model)
        values["guidance"] = drawn_alike(values["guidance"])
        return fingerprint([sums, self.step, fields, sorted(self.manifest.stacked), values])

    def _parameters(self, ema: bool) -> str:
        """The field of the state that is meant."""
        return "ema" if ema and self.manifest.ema else "params"

    def restore(
        self,
        name: str,
        *,
        ema: bool = True,
        dtype: Any = None,
        place: Callable[[str, Any], Any] | None = None,
        stacked: bool = False,
        checked: bool = True,
    ) -> dict[str, Any]:
        """Variables of the trained network `name`, straight onto the devices.

        Args:
            name: which.
            ema: the moving average, where the run has one; else the parameters themselves.
            dtype: of floating arrays; None keeps float32.
            place: placement of an array, of its path and shape; None is the first device.
            stacked: with the blocks stacked (`models.scan`).
            checked: compare the shapes with the network's, which means tracing it.

        Raises:
            UserError: the checkpoint is damaged or not the configuration's, cannot be reached, or does not
                fit into memory.
        """
        import jax
        import numpy as np

        from ultrapixel_jax.checkpoints import arrays, orbax_log
        from ultrapixel_jax.checkpoints.checksum import check_sums
        from ultrapixel_jax.checkpoints.faults import reading
        from ultrapixel_jax.models import components, scan

        config = getattr(self.manifest.model, name)
        field, is_stacked = self._parameters(ema), self.manifest.stacked[name]
        # Earlier runs have checksums of what all their networks have together.
        alone = f"{field}/{name}" in self.checksums or not self.checksums
        orbax_log.ignore_tasks_left_behind()
        path = os.fspath(absolute(self.directory / CHECKPOINTS / str(self.step) / "state"))
        wanted = {}
        with reading(*_words(self.directory, self.step)):
            for key, struct in arrays.stored_shapes(path).items():
                kind, _, inner = key.partition("/")
                network, _, inner = inner.partition("/")
                if kind in (field, "collections") and (network == name or not alone):
                    inner = f"params/{inner}" if kind == field else inner
                    wanted[key] = arrays.placed(inner, struct, None, place)
        prefixes = {f"{field}/{name}/": "params/", f"collections/{name}/": ""}

        def own(values: Mapping[str, Any]) -> dict[str, Any]:
            """What belongs to the network itself, by its own paths."""
            return {
                inner + key.removeprefix(prefix): value
                for key, value in values.items()
                for prefix, inner in prefixes.items()
                if key.startswith(prefix)
            }

        if checked:
            like = components.abstract(name, config)
            if is_stacked:
                like = jax.eval_shape(lambda v: scan.stack(v, config), like)
            like = arrays.flatten(like)
            if name == "lora" and not config.tokens:  # new text tokens are not trained
                like.pop("params/embeddings", None)
            arrays.check_like(f"{name} in checkpoint {self.step} of run {self.directory}", own(wanted), like)
        with reading(*_words(self.directory, self.step)):
            found = arrays.restore_arrays(path, wanted)
            tree = arrays.unflatten(found)
            names = [name] if alone else list(self.manifest.stacked)
            state = {
                kind: {n: tree.get(kind, {}).get(n, {}) for n in names} for kind in (field, "collections")
            }
            check_sums(state, self.checksums)
            del tree, state
            variables = arrays.unflatten(own(found))
            del found
            if dtype is not None:
                variables = arrays.converted(variables, np.dtype(dtype))
            if stacked and not is_stacked:
                variables = scan.stack_on_devices(variables, config)
            if is_stacked and not stacked:
                variables = scan.unstack_on_devices(variables, config)
        return variables


def _words(directory: epath.Path, step: int) -> tuple[str, str]:
    """What is read, and what helps against damage of it."""
    checkpoint = f"checkpoint {step} of run {directory}"
    return checkpoint, f"remove {CHECKPOINTS}/{step} to take the one before, or train the run again"


def absolute(path: epath.Path) -> epath.Path:
    """Orbax wants absolute paths; those of a bucket are."""
    return path if "://" in os.fspath(path) else path.expanduser().absolute()
