"""CLIPs of the full sizes beside transformers' `CLIPModel`, with weights made from names.

    python -m tests.models.full_clip [clip_l14 clip_h14 …]

Takes a minute and four times the weights' memory for each (H/14: 4 GB of weights); `test_whole_clip.py` is of
small ones.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.importing import import_named
from tests.models.test_whole_clip import theirs
from tests.recordings import relative_error
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.layouts.apply import flatten
from ultrapixel_jax.layouts.tables.clip import WHOLE
from ultrapixel_jax.models import measuring


def difference(name: str) -> float:
    """Of the logits of two pictures and two prompts, relative to the largest."""
    import torch

    config = measuring.CLIPS[name]
    other: Any = theirs(config)
    keys = {k: tuple(v.shape) for k, v in other.state_dict().items() if not k.endswith("position_ids")}
    weights = state_dict(keys) | {"logit_scale": np.float32(2.5)}
    other.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()}, strict=False)
    end, rng = config.text.vocab_size - 1, np.random.default_rng(0)
    ids = np.full((2, config.text.positions), end, np.int32)
    mask = np.zeros_like(ids)
    for row, length in enumerate((6, 40)):
        ids[row, : length + 2] = [end - 1, *rng.integers(1, end - 1, length), end]
        mask[row, : length + 2] = 1
    side = config.vision.image_size
    image = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = other(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask),
            pixel_values=torch.from_numpy(image).permute(0, 3, 1, 2),
        ).logits_per_image.numpy()  # fmt: skip
    del other, weights
    variables = import_named(WHOLE, flatten(measuring.abstract(config)), keys)
    variables["params"]["logit_scale"] = jnp.float32(2.5)
    given = jnp.asarray(image), jnp.asarray(ids), jnp.asarray(mask)
    found = jax.jit(measuring.build(config).apply)(variables, *given)
    return relative_error(found, expected)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    for network in sys.argv[1:] or ("clip_l14", "clip_h14"):
        print(f"{network}: {difference(network):.1e} of the largest logit", flush=True)
