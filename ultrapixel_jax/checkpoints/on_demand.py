"""Networks that some pictures need and most do not: loaded when the first of them is drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ultrapixel_jax.checkpoints.sources import Entry, Form, Sources
from ultrapixel_jax.checkpoints.weights import DEMO, load_network, untrained
from ultrapixel_jax.config import CascadeConfig, ControlNetConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath
from ultrapixel_jax.models import components
from ultrapixel_jax.sharding import parameter_sharding


class OnDemand:
    """What a model's sources have beside the networks that every picture takes."""

    def __init__(
        self,
        checkpoint: AnyPath | None,
        config: CascadeConfig | None,
        *,
        controlnets: Sequence[AnyPath] = (),
        dtype: str,
        mesh: jax.sharding.Mesh | None,
        ema: bool = True,
    ) -> None:
        """List what there is, and load nothing.

        Args:
            checkpoint: the model's own; None for the demo, or with a `config` for weights made from names.
            config: the model's, where it is not the checkpoint's.
            controlnets: further checkpoints and runs, whose ControlNets count before its own.
            dtype: of the weights.
            mesh: devices to spread over.
            ema: of training runs, the moving average of their weights.

        Raises:
            UserError: one of `controlnets` is no checkpoint, or has no ControlNet.
        """
        self._checkpoint, self._config = checkpoint, config
        self._dtype, self._mesh, self._ema = dtype, mesh, ema
        self._further: dict[str, tuple[Entry, str]] = {}
        for directory in controlnets:
            sources = Sources([directory], ema=ema, traced=True)
            found = _controlnets(sources)
            if not found:
                has = ", ".join(sources.entries) or "nothing"
                raise UserError(
                    f"{directory} has no ControlNet, only {has}; give one that was converted or trained"
                )
            self._further |= {kind: (entry, sources.identity) for kind, entry in found.items()}

    @functools.cached_property
    def _own(self) -> dict[str, Entry]:
        if self._checkpoint is None and self._config is not None:
            return {}
        return _controlnets(Sources([self._checkpoint or DEMO], ema=self._ema, traced=True))

    @property
    def controlnets(self) -> dict[str, str]:
        """The kinds of ControlNet that there are, and the directory of each."""
        own = {kind: entry.origin for kind, entry in self._own.items()}
        return own | {kind: entry.origin for kind, (entry, _) in self._further.items()}

    def control_identity(self, kind: str) -> str:
        """Tells two ControlNets of a kind apart; empty for one of the model's own checkpoint."""
        return self._further[kind][1] if kind in self._further else ""

    def network(self, name: str) -> dict[str, Any]:
        """Variables of the network `name`, by component.

        Raises:
            UserError: the checkpoint lacks it, or has it damaged.
        """
        return load_network(
            name, self._checkpoint, self._config, mesh=self._mesh, ema=self._ema, dtype=self._dtype
        )

    def controlnet(self, kind: str, model: CascadeConfig) -> tuple[ControlNetConfig, Mapping[str, Any]]:
        """Configuration and variables of the ControlNet of that kind.

        Raises:
            UserError: there is none, it is another model's, or damaged.
        """
        if self._checkpoint is None and self._config is not None and kind not in self._further:
            return self._made_from_names(kind, self._config)
        entry = self._further[kind][0] if kind in self._further else self._own.get(kind)
        if entry is None:
            has = ", ".join(self.controlnets) or "none"
            raise UserError(
                f"there is no ControlNet for {kind} (there is: {has}); convert its file with the checkpoint "
                "or name a checkpoint or run that has it with --controlnet"
            )
        check_fits(entry.config, model, entry.origin)
        mesh = self._mesh
        place = None if mesh is None else lambda path, s: parameter_sharding(path, s.shape, mesh)
        return entry.config, entry.load(Form(jnp.dtype(self._dtype), place))

    def _made_from_names(
        self, kind: str, config: CascadeConfig
    ) -> tuple[ControlNetConfig, Mapping[str, Any]]:
        own = config.controlnet
        if own.kind != kind:
            raise UserError(f"the configuration's ControlNet is for {own.kind}, not for {kind}")
        return own, untrained(config, ["controlnet"], self._dtype, self._mesh).variables["controlnet"]


def check_fits(config: ControlNetConfig, model: CascadeConfig, origin: str) -> None:
    """Refuse a ControlNet of another stage C.

    Raises:
        UserError: it is one.
    """
    levels = model.stage_c.levels
    blocks = sum(level.down_blocks + level.up_blocks for level in levels)
    if any(level.channels != config.channels for level in levels) or max(config.slots) >= blocks:
        widths = "/".join(str(level.channels) for level in levels)
        raise UserError(
            f"the ControlNet of {origin} is of another model: {config.channels} channels and block "
            f"{max(config.slots)}, and this stage C has {widths} channels and {blocks} blocks"
        )


def _controlnets(sources: Sources) -> dict[str, Entry]:
    """Those among the networks of `sources`, by what they are controlled by."""
    return {
        entry.config.kind: entry
        for name, entry in sources.entries.items()
        if components.kind_of(name) == "controlnet"
    }
