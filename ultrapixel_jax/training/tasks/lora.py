"""LoRA alone (the paper's ablation, table 4): low-rank changes of stage C's attention at the HR size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from ultrapixel_jax import flops
from ultrapixel_jax.models import lora
from ultrapixel_jax.training.config import LoraTask
from ultrapixel_jax.training.tasks.base import Batch, Losses, Shapes, Task, Variables, batch_size, latent_size
from ultrapixel_jax.training.tasks.guidance import encoders
from ultrapixel_jax.training.tasks.stage_c import denoising_loss


@dataclasses.dataclass(frozen=True)
class TrainLora(Task):
    """The same ε loss as guidance has, on another set of parameters."""

    needs_images = False

    @property
    def trained(self) -> tuple[str, ...]:
        """The changes; new text tokens are personalisation's."""
        return ("lora",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Stage C, and the encoders where latents are not cached."""
        return ("stage_c", *encoders(self))

    def arrange(self, name: str, variables: Variables) -> dict[str, Any]:
        """The changes are unstacked, and without text tokens."""
        if name != "lora":
            return super().arrange(name, variables)
        return {"params": {k: v for k, v in variables["params"].items() if k != "embeddings"}}

    def initial(self, name: str, key: Array) -> dict[str, Any]:
        """Fresh changes, without text tokens."""
        return self.arrange(name, lora.init(key, self.config.model.lora))

    def flops(self, shapes: Shapes) -> int:
        """Forward and back through the frozen pass; gradients of the attention's weights are left out."""
        config, text = self.config.model.stage_c, self.config.model.clip_text.positions
        batch, size = batch_size(shapes), latent_size(shapes, "latent")
        once = flops.stage_c_condition_flops(config, batch, text_tokens=text)
        return once + 2 * flops.stage_c_flops(config, size, batch, text_tokens=text)

    def loss(
        self,
        params: Mapping[str, Any],
        collections: Mapping[str, Any],
        frozen: Mapping[str, Variables],
        batch: Batch,
    ) -> Losses:
        """The ε loss of stage C with the changes beside its weights."""
        del collections
        task = self.config.task
        assert isinstance(task, LoraTask)
        config = self.config
        changes = lora.branches({"params": params["lora"]}, config.model.lora, scanned=config.scanned)
        changed = {**frozen["stage_c"], "lora": changes}
        dropout = self.training and task.frozen_dropout
        return denoising_loss(self, task.diffusion, changed, frozen, batch, dropping=dropout)
