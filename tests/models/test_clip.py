from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.models.importing import (
    check_manifest,
    check_round_trip,
    import_named,
    named_variables,
    released_shapes,
    run,
    shapes,
    struct,
    variable_specs,
)
from tests.recordings import manifest, relative_error
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.config import ClipTextConfig, ClipVisionConfig
from ultrapixel_jax.layouts.apply import plan_import
from ultrapixel_jax.layouts.tables.clip import TEXT, VISION
from ultrapixel_jax.models.clip_text import ClipText, end_of_text
from ultrapixel_jax.models.clip_vision import CLIP_MEAN, CLIP_STD, ClipVision, preprocess

TEXT_TINY = ClipTextConfig(vocab_size=50, width=32, layers=3, heads=4, mlp_width=48, projection=20)
VISION_TINY = ClipVisionConfig(
    image_size=42, patch_size=14, width=32, layers=3, heads=4, mlp_width=48, projection=20
)
BOS, EOS = 48, 49


def prompts(*lengths: int, padding: int = EOS) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of prompts with that many words, padded to 77."""
    rng = np.random.default_rng(0)
    ids, mask = np.full((len(lengths), 77), padding, np.int32), np.zeros((len(lengths), 77), np.int32)
    for row, length in enumerate(lengths):
        ids[row, : length + 2] = [BOS, *rng.integers(1, BOS, length), EOS]
        mask[row, : length + 2] = 1
    return ids, mask


def tiny_text():
    """A tiny tower, its variables, and the specs of a file."""
    module = ClipText(TEXT_TINY)
    specs = variable_specs(module, struct(1, 77, dtype=np.int32), struct(1, 77, dtype=np.int32))
    return module, specs


@pytest.mark.parametrize("eos_token_id", [EOS, 2])  # 2: how old configurations have it
@pytest.mark.parametrize("padding", [EOS, 0])
def test_text_agrees_with_transformers(eos_token_id, padding):
    import torch
    import transformers

    c = TEXT_TINY
    config = transformers.CLIPTextConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, hidden_act="gelu",
        num_hidden_layers=c.layers, num_attention_heads=c.heads, projection_dim=c.projection,
        max_position_embeddings=c.positions, bos_token_id=BOS, eos_token_id=eos_token_id,
    )  # fmt: skip
    other = transformers.CLIPTextModelWithProjection(config).eval()
    keys = {k: tuple(v.shape) for k, v in other.state_dict().items()}
    other.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict(keys).items()})
    module, specs = tiny_text()
    variables = import_named(TEXT, specs, keys)

    ids, mask = prompts(0, 1, 6, 40, 75, padding=padding)
    with torch.no_grad():
        expected = other(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask),
            output_hidden_states=True,
        )  # fmt: skip
    states, pooled = run(module, variables, jnp.asarray(ids), jnp.asarray(mask))
    assert relative_error(states, expected.hidden_states[-1].numpy()) < 1e-5
    assert relative_error(pooled, expected.text_embeds.numpy()) < 1e-5


def test_padding_is_not_seen_but_passed_on():
    module, _ = tiny_text()
    ids, mask = prompts(5)
    variables = named_variables(TEXT, module, ids, mask)
    states, pooled = run(module, variables, jnp.asarray(ids), jnp.asarray(mask))
    other = ids.copy()
    other[0, 20] = 3
    changed, changed_pooled = run(module, variables, jnp.asarray(other), jnp.asarray(mask))
    differs = np.abs(np.asarray(states - changed)).max((0, 2)) > 0
    assert differs.nonzero()[0].tolist() == [20]
    np.testing.assert_array_equal(pooled, changed_pooled)


def test_appended_tokens_take_the_extra_rows():
    module, _ = tiny_text()
    ids, mask = prompts(5, 7)
    ids, mask = jnp.asarray(ids), jnp.asarray(mask)
    variables = named_variables(TEXT, module, ids, mask)
    table = variables["params"]["token_embedding"]
    # New tokens with the rows of known ones are these tokens, and the end of text is still found.
    extra = table[jnp.asarray([7, 9])]
    known, new = ids.at[0, 2].set(7).at[1, 3].set(9), ids.at[0, 2].set(50).at[1, 3].set(51)
    expected = run(module, variables, known, mask, extra)
    found = run(module, variables, new, mask, extra)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    without = run(module, variables, known, mask)
    np.testing.assert_allclose(without[1], expected[1], atol=1e-6)


def test_end_of_text_is_the_first():
    ids = jnp.asarray([[48, 3, 49, 49], [48, 50, 51, 49], [48, 49, 0, 0]])
    assert end_of_text(ids, 50).tolist() == [2, 3, 1]


def test_text_computes_in_the_dtype_it_is_given():
    module, _ = tiny_text()
    ids, mask = (jnp.asarray(x) for x in prompts(5))
    variables = named_variables(TEXT, module, ids, mask)
    low = ClipText(TEXT_TINY, dtype=jnp.bfloat16)
    for a, b in zip(run(low, variables, ids, mask), run(module, variables, ids, mask), strict=True):
        assert a.dtype == jnp.bfloat16
        assert relative_error(a, b) < 0.05


def test_vision_agrees_with_transformers():
    import torch
    import transformers

    c = VISION_TINY
    config = transformers.CLIPVisionConfig(
        hidden_size=c.width, intermediate_size=c.mlp_width, hidden_act="quick_gelu",
        num_hidden_layers=c.layers, num_attention_heads=c.heads, projection_dim=c.projection,
        image_size=c.image_size, patch_size=c.patch_size,
    )  # fmt: skip
    other = transformers.CLIPVisionModelWithProjection(config).eval()
    keys = {k: tuple(v.shape) for k, v in other.state_dict().items()}
    other.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict(keys).items()})
    module = ClipVision(c)
    image = np.random.default_rng(0).normal(size=(2, 42, 42, 3)).astype(np.float32)
    variables = import_named(VISION, variable_specs(module, struct(1, 42, 42, 3)), keys)
    with torch.no_grad():
        expected = other(pixel_values=torch.from_numpy(image).permute(0, 3, 1, 2)).image_embeds
    assert relative_error(run(module, variables, jnp.asarray(image)), expected.numpy()) < 1e-5


@pytest.mark.parametrize("size", [(224, 224), (300, 231), (100, 333)])
def test_preprocess_agrees_with_transformers(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    processor = CLIPImageProcessorPil(image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    expected = np.asarray(processor(image)["pixel_values"][0])
    found = preprocess([image])
    assert found.shape == (1, 224, 224, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.moveaxis(expected, 0, -1), atol=1e-5)


def test_released_files_map_onto_the_full_size():
    ids = struct(1, 77, dtype=np.int32)
    assert check_manifest("clip_text_bigg", TEXT, ClipText(ClipTextConfig()), ids, ids) == 694_659_840
    vision = ClipVision(ClipVisionConfig())
    assert check_manifest("clip_vision_l14", VISION, vision, struct(1, 224, 224, 3)) == 303_966_208


def test_import_and_export_are_inverse():
    check_round_trip(TEXT, tiny_text()[1])
    check_round_trip(VISION, variable_specs(ClipVision(VISION_TINY), struct(1, 42, 42, 3)))


def test_old_files_position_ids_are_kept_aside():
    _, specs = tiny_text()
    keys = released_shapes(TEXT, specs) | {"text_model.embeddings.position_ids": (1, 77)}
    steps = plan_import(TEXT, keys, shapes(specs), "test")
    assert [s.key for s in steps if not s.paths] == ["text_model.embeddings.position_ids"]
    assert "text_model.embeddings.position_ids" not in manifest("clip_text_bigg")


def test_both_towers_initialise():
    text = ClipText(dataclasses.replace(TEXT_TINY, layers=1))
    vision = ClipVision(dataclasses.replace(VISION_TINY, layers=1))
    text = jax.jit(text.init)(jax.random.key(0), *(jnp.asarray(x) for x in prompts(5)))
    vision = jax.jit(vision.init)(jax.random.key(0), jnp.zeros((1, 42, 42, 3)))
    for variables in (text, vision):
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(variables))
