"""Personalisation (§11): a LoRA and new words from a few pictures of one subject, all networks frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from ultrapixel_jax import flops
from ultrapixel_jax.models import lora
from ultrapixel_jax.training.config import PersonalTask
from ultrapixel_jax.training.tasks import encode
from ultrapixel_jax.training.tasks.base import Batch, Losses, Shapes, Task, Variables, batch_size, latent_size
from ultrapixel_jax.training.tasks.guidance import encoders, guided_loss
from ultrapixel_jax.training.tasks.stage_c import denoising_loss

HIGH = ("image", "latent")
"""What only passes at the high resolution take."""


@dataclasses.dataclass(frozen=True)
class TrainPersonal(Task):
    """Noise of the LR latent without guidance, or of the HR latent with it."""

    needs_images = False

    @property
    def _guided(self) -> bool:
        return self.config.model.guidance is not None

    @property
    def _words(self) -> bool:
        return bool(self.config.model.lora.tokens)

    @property
    def _reads(self) -> bool:
        """Whether captions are encoded in the step: their encoding is in training."""
        return self._words or bool(self.config.model.lora.text_modules)

    @property
    def trained(self) -> tuple[str, ...]:
        """The changes, the text encoder's too, with the offsets of the new words."""
        return ("lora",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """All other networks: the text encoder too, where captions are encoded in the step."""
        own = ("stage_c", *(["guidance"] if self._guided else []), *(["clip_text"] if self._reads else []))
        return tuple(dict.fromkeys((*own, *encoders(self))))

    def arrange(self, name: str, variables: Variables) -> dict[str, Any]:
        """The changes are unstacked; embeddings are there for the words that have a name."""
        if name != "lora":
            return super().arrange(name, variables)
        params = {k: v for k, v in variables["params"].items() if k != "embeddings" or self._words}
        return {**variables, "params": params}

    def initial(self, name: str, key: Array) -> dict[str, Any]:
        """Fresh changes, and offsets of zero."""
        return self.arrange(name, lora.init(key, self.config.model.lora))

    @property
    def kinds(self) -> int:
        """One for each resolution."""
        return 2 if self._guided else 1

    def part(self, step: int, arrays: Batch) -> Batch:
        """At the low resolution in the first `lr_steps` updates, and in every second one after them."""
        task = self.config.task
        assert isinstance(task, PersonalTask)
        if self._guided and (step <= task.lr_steps or (step - task.lr_steps) % 2 == 0):
            return {name: x for name, x in arrays.items() if name not in HIGH}
        return arrays

    def flops(self, shapes: Shapes) -> int:
        """Forward and back through frozen passes, and the LR pass that guides."""
        config, batch = self.config.model, batch_size(shapes)
        text = config.clip_text.positions
        once = flops.stage_c_condition_flops(config.stage_c, batch, text_tokens=text)
        if self._reads:
            once += 2 * flops.clip_text_flops(config.clip_text, batch)
        if not any(name in shapes for name in HIGH):
            size = latent_size(shapes, "latent_lr")
            return once + 2 * flops.stage_c_flops(config.stage_c, size, batch, text_tokens=text)
        size = latent_size(shapes, "latent")
        if config.guidance is not None:
            low = latent_size(shapes, "latent_lr")
            once += flops.stage_c_flops(config.stage_c, low, batch, text_tokens=text)
            once += flops.guidance_prepare_flops(config.guidance, low, size, batch)
            once += 2 * flops.guidance_fuse_flops(config.guidance, size, batch)
        return once + 2 * flops.stage_c_flops(config.stage_c, size, batch, text_tokens=text)

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of the pass that the batch has the latents of."""
        del collections
        config, task = self.config, self.config.task
        assert isinstance(task, PersonalTask)
        own = params["lora"]
        words = encode.words(batch, frozen, own["embeddings"]) if self._words else None
        readers = dict(frozen)
        if text_changes := lora.text_branches({"params": own}, config.model.lora):
            readers["clip_text"] = {**frozen["clip_text"], "lora": text_changes}
        text = encode.text(batch, readers, config.model, self.dtype, words)
        changes = lora.branches({"params": own}, config.model.lora, scanned=config.scanned)
        networks = {**frozen, "stage_c": {**frozen["stage_c"], "lora": changes}}
        dropout = self.training and task.frozen_dropout
        if self._guided and any(name in batch for name in HIGH):
            return guided_loss(self, task.diffusion, networks, text, batch, dropping=dropout)
        return denoising_loss(
            self, task.diffusion, networks["stage_c"], networks, batch, dropping=dropout,
            latent="latent_lr" if self._guided else "latent", text=text,
        )  # fmt: skip
