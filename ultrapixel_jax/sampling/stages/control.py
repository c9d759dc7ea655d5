"""ControlNets: control images to maps for stage C, once per picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.config import ControlNetConfig, to_dict
from ultrapixel_jax.files import fingerprint
from ultrapixel_jax.models.controlnet import ControlNet
from ultrapixel_jax.models.resize import resize_bilinear
from ultrapixel_jax.sampling.stages.base import Setup, Stage
from ultrapixel_jax.sizes import HW


class ControlEncoder(Stage):
    """The ControlNets that pictures have asked for so far, each by its kind."""

    networks = ()

    def __init__(
        self, setup: Setup, load: Callable[[str], tuple[ControlNetConfig, Mapping[str, Any]]]
    ) -> None:
        """Without any; `load` gives configuration and variables of a kind when the first picture wants it."""
        super().__init__({})
        self._setup, self._load = setup, load
        self._programs: dict[str, Program] = {}

    def __call__(
        self, kind: str, control: Float[Any, "b hp wp c"], size: HW
    ) -> dict[int, Float[Array, "b h w f"]]:
        """Maps by ResBlock of stage C, at the `size` of its latent.

        Args:
            kind: of ControlNet, as in `ControlNetConfig`.
            control: its input.
            size: height and width of the latent that they are added to.
        """
        self.need(kind)
        return self._programs[kind](self.variables[kind], control, size)

    def need(self, kind: str) -> None:
        """Load the ControlNet of a kind, if it has not been.

        Raises:
            UserError: there is none, or it is another model's.
        """
        if kind not in self.variables:
            config, self.variables[kind] = self._load(kind)
            self._programs.setdefault(kind, self._program(config))

    def bring(self, config: ControlNetConfig, variables: Mapping[str, Any]) -> None:
        """Draw with this ControlNet from now on, in the place of what would be loaded of its kind."""
        self.variables[config.kind] = variables
        self._programs.setdefault(config.kind, self._program(config))

    @property
    def compilations(self) -> int:
        """How many programs it has compiled, or read from disk."""
        return sum(program.compilations for program in self._programs.values())

    def _program(self, config: ControlNetConfig) -> Program:
        compute = self._setup.dtype
        network = ControlNet(config, compute)

        def maps(v: Any, control: Any, size: HW) -> Any:
            found: Any = network.apply(v, control.astype(compute))
            return {slot: resize_bilinear(x, size) for slot, x in zip(config.slots, found, strict=True)}

        # Kept programs are told apart by the model's configuration, which has one ControlNet at most.
        name = f"control_{config.kind}_{fingerprint(to_dict(config))}"
        return self._setup.program(name, maps, batched=[1], static=(2,), wide_maps=True)


def enlarged(latent: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """What super-resolution's ControlNet sees of a small picture's latent: twice as large, by repetition."""
    return jnp.repeat(jnp.repeat(latent, 2, axis=1), 2, axis=2)
