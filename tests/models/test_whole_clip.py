"""CLIPs that score pictures, beside transformers' `CLIPModel`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from convert.formats import recognise
from tests.models.importing import check_round_trip, import_named, run
from tests.models.test_clip import TEXT_TINY, VISION_TINY
from tests.recordings import relative_error
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.config import ClipConfig
from ultrapixel_jax.layouts.apply import flatten
from ultrapixel_jax.layouts.tables.clip import WHOLE
from ultrapixel_jax.models import measuring


def theirs(config: ClipConfig, device: str = "cpu"):
    """transformers' model of a configuration."""
    import torch
    import transformers

    t, v = config.text, config.vision
    whole = transformers.CLIPConfig(
        text_config={
            "vocab_size": t.vocab_size, "hidden_size": t.width, "intermediate_size": t.mlp_width,
            "hidden_act": config.activation, "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "projection_dim": t.projection, "max_position_embeddings": t.positions,
            "bos_token_id": t.vocab_size - 2,
            "eos_token_id": t.vocab_size - 1,
        },
        vision_config={
            "hidden_size": v.width, "intermediate_size": v.mlp_width, "hidden_act": config.activation,
            "num_hidden_layers": v.layers, "num_attention_heads": v.heads, "projection_dim": v.projection,
            "image_size": v.image_size, "patch_size": v.patch_size,
        },
        projection_dim=t.projection,
    )  # fmt: skip
    with torch.device(device):
        return transformers.CLIPModel(whole).eval()


def difference(config: ClipConfig) -> float:
    """Of the logits of two pictures and two prompts from transformers', relative to the largest."""
    import torch

    other = theirs(config)
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
    del other, weights  # of gigabytes, at full size
    variables = import_named(WHOLE, flatten(measuring.abstract(config)), keys)
    variables["params"]["logit_scale"] = jnp.float32(2.5)
    found = run(measuring.build(config), variables, jnp.asarray(image), jnp.asarray(ids), jnp.asarray(mask))
    return relative_error(found, expected)


@pytest.mark.parametrize(
    "activation", ["quick_gelu", "gelu"]
)  # OpenAI's L/14 and B/32; H/14, bigG, PickScore
def test_logits_are_those_of_transformers(activation: str) -> None:
    assert difference(ClipConfig(TEXT_TINY, VISION_TINY, activation)) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("name", measuring.CLIPS)
def test_files_of_the_full_size_are_recognised(name: str) -> None:
    """By the shapes of transformers' own model of that size; only where they are named."""
    shapes = {k: tuple(v.shape) for k, v in theirs(measuring.CLIPS[name], "meta").state_dict().items()}
    (found,) = recognise(shapes, [], name, [name])
    assert (found.format.component, found.variant) == ("clip", name)


def test_import_and_export_are_inverse() -> None:
    check_round_trip(WHOLE, flatten(measuring.abstract(ClipConfig(TEXT_TINY, VISION_TINY))))
