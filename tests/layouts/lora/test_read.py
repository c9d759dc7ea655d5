"""Every trainer's files against what they do to the released weights, added densely with NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util

from convert.formats import variables_of
from tests.layouts.lora.files import (
    CONFIG,
    TRAINERS,
    WIDTH,
    Deltas,
    factors,
    file_of,
    lora_of,
    numbered,
)
from tests.released import state_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.lora.read import Lora
from ultrapixel_jax.models.lora import merge

NETWORKS = ("stage_c", "clip_text")
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def released() -> dict[str, Tensors]:
    return {name: state_dict(name, getattr(CONFIG, name)) for name in NETWORKS}


@pytest.fixture(scope="module")
def weights(released: dict[str, Tensors]) -> dict[str, Any]:
    return {name: variables_of(name, getattr(CONFIG, name), released[name]) for name in NETWORKS}


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {k: np.asarray(x) for k, x in traverse_util.flatten_dict(variables, sep="/").items()}


def assert_adds(lora: Lora, deltas: Deltas, released: dict[str, Tensors], weights: dict[str, Any]) -> None:
    """Merging `lora` gives the released weights with `deltas` added, and leaves the others as they are."""
    assert {key for key in deltas if key.startswith("text_")} == set() or "clip_text" in lora.changes
    for network, changes in lora.changes.items():
        own = {key: x for key, x in deltas.items() if key in released[network]}
        assert own
        changed = {key: (x + own.get(key, 0)).astype(np.float32) for key, x in released[network].items()}
        expected = flat(variables_of(network, getattr(CONFIG, network), changed))
        base, found = flat(weights[network]), flat(merge(weights[network], [(changes, 1.0)]))
        moved = {path for path in base if not np.array_equal(base[path], expected[path])}
        assert {path for path in base if not np.array_equal(base[path], found[path])} == moved
        for path in moved:
            np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_files_of_trainers(trainer: str, tmp_path: Path, released: Any, weights: Any) -> None:
    tensors, deltas = file_of(trainer)
    assert_adds(lora_of(tmp_path, tensors), deltas, released, weights)


@pytest.mark.parametrize("style", ["module", "weights"])
def test_files_that_number_layers(
    style: str, golden: Any, tmp_path: Path, released: Any, weights: Any
) -> None:
    order = []
    for side, blocks in (("down", (1, 2)), ("up", (2, 1))):  # blocks of a level, in order of execution
        for level, count in enumerate(blocks):
            for n in range(count):
                base = f"{side}_blocks.{level}.{3 * n + 2}.attention.attn."
                order += [f"{base}out_proj.weight", f"{base}in_proj_weight"]
    assert (
        [name.split(".")[-1] for name in order[:2]]
        == [  # as the recording has them
            "weight" if "out_proj" in name else "in_proj_weight"
            for name in golden("stage_c_lora")[1]["order"][:2]
        ]
    )
    tensors, deltas = numbered(style, order)
    rng = np.random.default_rng(2)
    stored = rng.standard_normal((3, 48)).astype(np.float32)
    where = f"module.{len(order)}." if style == "module" else "embeddings.0."
    tokens = {f"{where}embeddings": stored, f"{where}indices": np.array([515, 300, 514])}
    lora = lora_of(tmp_path, {**tensors, **tokens})
    assert_adds(lora, deltas, released, weights)
    # Two new tokens in the order of their ids, and an offset to one that there is.
    assert [(t.name, t.absolute) for t in lora.tokens] == [(None, False)] * 2
    np.testing.assert_array_equal(np.concatenate([t.vectors for t in lora.tokens]), stored[[2, 0]])
    np.testing.assert_array_equal(lora.offsets[300], stored[1])
    with pytest.raises(UserError, match="changes of 10 layers, and the model's stage C has 12"):
        lora_of(tmp_path, dict([*tensors.items()][:20]))


def test_tokens_of_onetrainer_and_textual_inversion(tmp_path: Path) -> None:
    vectors = np.random.default_rng(3).standard_normal((2, 48)).astype(np.float32)
    tensors, _ = file_of("onetrainer-legacy")
    named = {"bundle_emb.<my cat>.clip_g": vectors, "bundle_emb.<my cat>.clip_g_out": np.zeros((2, 48))}
    (token,) = lora_of(tmp_path, {**tensors, **named}).tokens
    assert (token.name, token.absolute) == ("<my cat>", True)
    np.testing.assert_array_equal(token.vectors, vectors)
    inversion = lora_of(tmp_path, {"clip_g": vectors})
    assert inversion.changes == {} and [t.name for t in inversion.tokens] == [None]
    assert inversion.tokens[0].absolute
    with pytest.raises(UserError, match="another place than CLIP bigG's input"):
        lora_of(tmp_path, {**tensors, "bundle_emb.x.clip_g_out": np.ones((1, 48), np.float32)})


# ---------------------------------------------------------------------------- DoRA


def dora(
    weight: torch.Tensor,
    down: np.ndarray,
    up: np.ndarray,
    scale: float,
    magnitude: np.ndarray,
    strength: float,
) -> torch.Tensor:
    """What the tools do, on torch's (out, in): W' = m · V / ‖V‖ with V = W + ΔW, and W + s · (W' − W)."""
    v = weight + scale * torch.from_numpy(up) @ torch.from_numpy(down)
    axis = 0 if magnitude.shape[0] == 1 else 1
    changed = torch.from_numpy(magnitude) * v / torch.linalg.norm(v, dim=axis, keepdim=True)
    return weight + strength * (changed - weight)


@pytest.mark.parametrize("shape", [(1, WIDTH), (WIDTH, 1)])
def test_dora_and_its_strength(shape: tuple[int, int], tmp_path: Path, released: Any, weights: Any) -> None:
    rng = np.random.default_rng(4)
    base, key = "lora_unet_down_blocks_0_2_attention_attn_", "down_blocks.0.2.attention.attn."
    packed = torch.from_numpy(np.array(released["stage_c"][f"{key}in_proj_weight"])).double()
    expected, tensors = packed.clone(), {}
    for i, x in ((0, "q"), (2, "v")):  # each norm is that of its third alone
        down, up = factors(rng, (WIDTH, WIDTH), 2)
        magnitude = np.abs(rng.standard_normal(shape)).astype(np.float32)
        rows = slice(i * WIDTH, (i + 1) * WIDTH)
        wide = (array.astype(np.float64) for array in (down, up))
        expected[rows] = dora(packed[rows], *wide, 3 / 2, magnitude.astype(np.float64), 0.6)
        tensors |= {f"{base}to_{x}.lora_down.weight": down, f"{base}to_{x}.lora_up.weight": up}
        tensors |= {f"{base}to_{x}.alpha": np.float32(3), f"{base}to_{x}.dora_scale": magnitude}
    changed = {**released["stage_c"], f"{key}in_proj_weight": expected.numpy().astype(np.float32)}
    lora = lora_of(tmp_path, tensors)
    found = flat(merge(weights["stage_c"], [(lora.changes["stage_c"], 0.6)]))
    for path, x in flat(variables_of("stage_c", CONFIG.stage_c, changed)).items():
        np.testing.assert_allclose(found[path], x, rtol=0, atol=2e-6, err_msg=path)


def test_shapes_of_dora(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def magnitude(leaf: str, shape: tuple[int, ...], module: str, size: tuple[int, int]) -> tuple[int, ...]:
        down, up = factors(rng, size, 2)
        values = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        values[f"{module}.{leaf}"] = np.ones(shape, np.float32)
        ((change),) = lora_of(tmp_path, values).changes["stage_c"].values()
        return change.magnitude.shape

    square, wide = ("prior.down_blocks.0.2.attention.to_q", (64, 64)), ("prior.clip_img_mapper", (40, 256))
    assert magnitude("lora_magnitude_vector.weight", (64,), *square) == (1, 64)  # PEFT's: of outputs
    assert magnitude("lora_magnitude_vector.weight", (1, 64), *square) == (64, 1)
    assert magnitude("dora_scale", (1, 40), *wide) == (40, 1)
    assert magnitude("dora_scale", (256,), *wide) == (1, 256)
    assert magnitude("dora_scale", (40,), *wide) == (40, 1)
    with pytest.raises(UserError, match="has one axis, which does not say"):
        magnitude("dora_scale", (64,), *square)
    with pytest.raises(UserError, match="has shape"):
        magnitude("dora_scale", (7, 1), *wide)


# ---------------------------------------------------------------------------- several, and none


def test_several_add_up_and_strength_0_is_the_base_bit_for_bit(
    tmp_path: Path, released: Any, weights: Any
) -> None:
    one, first = file_of("kohya", rank=2)
    other, second = file_of("peft", rank=3)
    uses = [lora_of(tmp_path, tensors).changes["stage_c"] for tensors in (one, other)]
    base = weights["stage_c"]
    total = {key: 0.5 * first[key] - 2.0 * second[key] for key in first if key in released["stage_c"]}
    changed = {key: (x + total.get(key, 0)).astype(np.float32) for key, x in released["stage_c"].items()}
    expected = flat(variables_of("stage_c", CONFIG.stage_c, changed))
    found = merge(base, [(uses[0], 0.5), (uses[1], -2.0)])
    for path, x in flat(found).items():
        np.testing.assert_allclose(x, expected[path], rtol=0, atol=5e-5, err_msg=path)
    for path, x in flat(merge(base, [(uses[1], -2.0), (uses[0], 0.5)])).items():
        np.testing.assert_allclose(x, flat(found)[path], rtol=0, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, merge(base, [(uses[0], 0.0)]), base)


# ---------------------------------------------------------------------------- what is refused

Q = "lora_unet_down_blocks_0_2_attention_attn_to_q"
PAIR = {f"{Q}.lora_down.weight": np.ones((2, 64)), f"{Q}.lora_up.weight": np.ones((64, 2))}


def pair(module: str, down: tuple[int, ...], up: tuple[int, ...]) -> Tensors:
    return {f"{module}.lora_down.weight": np.ones(down), f"{module}.lora_up.weight": np.ones(up)}


REFUSED: dict[str, tuple[Tensors, str]] = {
    "SDXL": (
        pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", (2, 640), (640, 2))
        | pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", (2, 48), (96, 2)),
        "a LoRA for SDXL",
    ),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv", (2, 8), (8, 2)), "a LoRA for Flux"),
    "Flux in PEFT's names": (
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": np.ones((2, 8)),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": np.ones((8, 2)),
        },
        "a LoRA for Flux",
    ),
    "Stable Diffusion 1": (
        pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", (2, 8), (8, 2)),
        "a LoRA for Stable Diffusion 1",
    ),
    "an unknown model": (pair("lora_unet_some_layer", (2, 8), (8, 2)), "looks like a LoRA"),
    "another width": (
        pair("lora_unet_up_blocks_0_2_attention_attn_out_proj", (2, 1536), (1536, 2)),
        r"1536→1536 channels, and the model has 64→64; it belongs to the lite stage C",
    ),
    "another depth": (PAIR | pair("lora_unet_down_blocks_1_11_attention_attn_to_q", (2, 64), (64, 2)),
                      "down_blocks_1_11_attention_attn_to_q, which this model does not have"),
    "LoHa": ({f"{Q}.hada_w1_a": np.ones((2, 2)), f"{Q}.alpha": np.ones(())}, "is a LoHa"),
    "LoKr": ({f"{Q}.lokr_w1": np.ones((2, 2))}, "is a LoKr"),
    "OFT": ({f"{Q}.oft_blocks": np.ones((2, 2))}, "is an OFT"),
    "full differences": ({f"{Q}.diff": np.ones((2, 2))}, "a file of full differences"),
    "norms": (PAIR | {f"{Q}.w_norm": np.ones(2)}, "a file of full differences"),
    "Tucker": (PAIR | {f"{Q}.lora_mid.weight": np.ones((2, 2, 3, 3))}, "lora_mid"),
    "reshaping": (PAIR | {f"{Q}.reshape_weight": np.ones(2)}, "reshape_weight"),
    "depthwise": (
        pair("lora_prior_unet_down_blocks_0_0_depthwise", (2, 64, 3, 3), (64, 2, 1, 1)), "depthwise"
    ),
    "rank 0": (pair(Q, (0, 64), (64, 0)), "ranks 0 and 0"),
    "two ranks": (pair(Q, (2, 64), (64, 3)), "ranks 2 and 3"),
    "a 3×3 convolution": (pair(Q, (2, 64, 3, 3), (64, 2, 1, 1)), r"shape \(2, 64, 3, 3\)"),
    "half of it": ({f"{Q}.lora_down.weight": np.ones((2, 64))}, "has no lora_up"),
    "NaN": (PAIR | {f"{Q}.lora_up.weight": np.full((64, 2), np.nan)}, "128 of 128 values are NaN"),
    "the same by two names": (
        PAIR | pair("lora_prior_unet_down_blocks_0_2_attention_attn_in_proj_0", (2, 64), (64, 2)), "twice"
    ),
    "wide tokens": (PAIR | {"bundle_emb.x.clip_g": np.ones((1, 1280))}, "1280 wide, the text encoder's 48"),
    "tokens without rows": (PAIR | {"embeddings.embeddings": np.ones((1, 48))}, "has no indices"),
    "something else": (PAIR | {"state.0.exp_avg": np.ones(2)}, "state.0.exp_avg is no part of a LoRA"),
    "no LoRA": ({"something.else": np.ones(2)}, "is no LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    tensors, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        lora_of(tmp_path, {key: np.asarray(x, np.float32) for key, x in tensors.items()})
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path) in said and len(said) < 600
