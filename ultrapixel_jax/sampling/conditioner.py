"""What requests are steered by, as arrays for stage C: image vectors, maps, latents of pictures."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ultrapixel_jax.checkpoints.on_demand import OnDemand
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.diffusion.two_branch import Prompts
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.clip_vision import preprocess
from ultrapixel_jax.sampling import canvas
from ultrapixel_jax.sampling.conditions import Conditions
from ultrapixel_jax.sampling.given import GivenPicture
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.stages.base import Setup, Stage
from ultrapixel_jax.sampling.stages.control import ControlEncoder, enlarged
from ultrapixel_jax.sampling.stages.image_prompt import ImagePromptEncoder
from ultrapixel_jax.sampling.stages.latent import LatentEncoder
from ultrapixel_jax.sampling.stages.stage_c import NOTHING, Given, Maps
from ultrapixel_jax.sizes import HW, LR_SIDE, Bucket, control_side


class Pass(enum.Enum):
    """The passes of stage C."""

    LR = "lr"
    HR = "hr"


class Conditioner:
    """The stages that take pictures in, whose networks are loaded when the first picture wants them."""

    def __init__(
        self, setup: Setup, config: CascadeConfig, variables: Mapping[str, Any], on_demand: OnDemand
    ) -> None:
        self._config, self._report, self.on_demand = config, setup.report, on_demand
        self.encoder = LatentEncoder(setup, config, variables)
        self.image_prompt = ImagePromptEncoder(setup, config, variables)
        self.control_side = control_side(LR_SIDE if config.guidance is None else config.guidance.lr_side)
        """Shorter side of control images, in pixels, where they do not keep their own."""
        self.control = ControlEncoder(setup, lambda kind: on_demand.controlnet(kind, config))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them."""
        return self.encoder, self.image_prompt, self.control

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """With the variables of all of them on the device (`Stage.at_work`)."""
        with contextlib.ExitStack() as stack:
            for stage in self.stages:
                stack.enter_context(stage.at_work())
            yield

    def check(self, conditions: Conditions) -> None:
        """Load what `conditions` need, and refuse before any work what this model cannot do.

        Raises:
            UserError: a network is missing, or another model's.
        """
        start = conditions.start
        if (
            start
            and start.strength != start.strength_hr
            and self._config.guidance is not None
            and self._config.guidance.timestep == "synchronized"
        ):
            raise UserError("both passes run side by side in this model; give one strength for both")
        for control in conditions.controls:
            self.control.need(control.kind)
        if start or conditions.inpaint or any(c.kind == "super_resolution" for c in conditions.controls):
            self._need(self.encoder)
        if conditions.image_prompts:
            self._need(self.image_prompt)

    def with_images(self, prompts: Prompts, requests: Sequence[Request]) -> Prompts:
        """`prompts` with the vectors of the requests' image prompts."""
        given = [r.conditions.image_prompts for r in requests]
        if not given[0]:
            return prompts
        side = self.image_prompt.image_size
        images = np.stack([preprocess([p.image.image() for p in own], side) for own in given])
        weights = np.asarray([[p.weight for p in own] for own in given], np.float32)
        return prompts._replace(image=self.image_prompt(images, weights))

    def given(self, requests: Sequence[Request], bucket: Bucket, which: Pass) -> Given:
        """What a pass of `requests`, whose conditions are of one kind, is given beside the text."""
        all_of = [r.conditions for r in requests]
        first, alone = all_of[0], self._config.guidance is None
        if not first or (alone and which is Pass.LR):
            return NOTHING
        size = bucket.lr if which is Pass.LR else bucket.hr
        with self._report.stage("steering"):
            out = Given(
                tuple(
                    self._maps(all_of, k, bucket, size, which)
                    for k, control in enumerate(first.controls)
                    if alone or control.passes in (which.value, "both")
                )
            )
            if first.start is not None:
                at_hr = which is Pass.HR and not alone
                strength = first.start.strength_hr if at_hr else first.start.strength
                if strength < 1:
                    latent = self._latent([own.start.image for own in all_of if own.start], size)
                    out = out._replace(start=latent, strength=strength)
            if first.inpaint is not None:
                parts = [own.inpaint for own in all_of if own.inpaint]
                known = self._latent([part.image for part in parts], size)
                mask = np.stack([canvas.latent_mask(part.mask, size) for part in parts])
                out = out._replace(known=known, mask=mask)
            return out

    def shown(self, request: Request, bucket: Bucket) -> dict[str, np.ndarray]:
        """What the ControlNets saw of a request, by their kinds; of two passes, in the first."""
        out: dict[str, np.ndarray] = {}
        for k, control in enumerate(request.conditions.controls):
            which = Pass.HR if control.passes == "hr" else Pass.LR
            image = self._control_image(request.conditions, k, bucket, which)
            same = sum(other.kind == control.kind for other in request.conditions.controls[:k])
            out[f"{control.kind}-{same + 1}" if same else control.kind] = canvas.shown(control, image)
        return out

    def _maps(self, all_of: Sequence[Conditions], k: int, bucket: Bucket, size: HW, which: Pass) -> Maps:
        """Maps of the k-th control of each picture, at the `size` of a pass's latent."""
        kind = all_of[0].controls[k].kind
        images = np.stack([self._control_image(own, k, bucket, which) for own in all_of])
        if kind == "super_resolution":
            control = enlarged(self.encoder(images))
        else:
            control = images.astype(np.float32) / np.float32(255)
        strength, start, until = (
            np.asarray([getattr(own.controls[k], name) for own in all_of], np.float32)
            for name in ("strength", "start", "until")
        )
        return Maps(self.control(kind, control, size), strength, start, until)

    def _control_image(self, conditions: Conditions, k: int, bucket: Bucket, which: Pass) -> np.ndarray:
        control = conditions.controls[k]
        own = control if which is Pass.HR else None
        size = canvas.control_size(bucket.pixels, bucket.hr, self.control_side, own)
        return canvas.control_image(control, size, self.control_side)

    def _latent(self, pictures: Sequence[GivenPicture], size: HW) -> Any:
        """Stage C's latents of pictures, at `size`."""
        return self.encoder(np.stack([canvas.fitted(picture, size) for picture in pictures]))

    def _need(self, stage: Stage) -> None:
        """Load the networks of `stage`, if it has none yet."""
        for name in stage.networks:
            if name not in stage.variables:
                with self._report.stage("load"):
                    stage.replace_variables(self.on_demand.network(name))
