"""LoRA files of every layout, from one set of random factors, with what each does to the released weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.tiny import config as tiny
from tests.released import write
from ultrapixel_jax.config import LevelConfig
from ultrapixel_jax.layouts.files import TensorFile, open_file
from ultrapixel_jax.layouts.lora.read import Lora, read

LEVELS = (LevelConfig(64, 4, down_blocks=1, up_blocks=1), LevelConfig(64, 4, down_blocks=2, up_blocks=2))
"""Of two blocks in a level, so that the order of blocks matters."""
STAGE_C = dataclasses.replace(tiny.stage_c, levels=LEVELS)
CONFIG = dataclasses.replace(tiny, stage_c=STAGE_C, lora=dataclasses.replace(tiny.lora, stage_c=STAGE_C))
A, B = "down_blocks.0.2", "up_blocks.0.2"
"""Two attention blocks, which `configs/tiny.py` has, too."""
QKV = "qkv"
WIDTH, TEXT = 64, 48


class Names(NamedTuple):
    """How a trainer calls what it changes; `{}` stands for a block, or a module."""

    q: str
    out: str
    other: str
    text: str | None
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    alpha: bool = True
    flat: bool = False


DOTTED = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
TRAINERS: dict[str, Names] = {
    "onetrainer-legacy": Names(
        "lora_prior_unet_{}_attention_attn_to_{x}", "lora_prior_unet_{}_attention_attn_out_proj",
        "lora_prior_unet_{}", "lora_prior_te_{}", flat=True,
    ),
    "onetrainer-february-2024": Names(
        "lora_prior_unet_{}_attention_attn_to_{x}", "lora_prior_unet_{}_attention_attn_to_out_proj",
        "lora_prior_unet_{}", None, flat=True,
    ),
    "onetrainer-2025": Names(
        "unet.{}.attention.attn.in_proj.{i}", "unet.{}.attention.attn.out_proj", "unet.{}", "clip_g.{}",
    ),
    "onetrainer-2026-diffusers": Names(
        "prior.{}.attention.to_{x}", "prior.{}.attention.to_out.0", "prior.{}", None, **DOTTED, alpha=False,
    ),
    "onetrainer-2026-flat": Names(
        "lora_unet_{}_attention_attn_in_proj_{i}", "lora_unet_{}_attention_attn_out_proj", "lora_unet_{}",
        "lora_te_{}", flat=True,
    ),
    "onetrainer-2026-dotted": Names(
        "diffusion_model.{}.attention.attn.in_proj.{i}", "diffusion_model.{}.attention.attn.out_proj",
        "diffusion_model.{}", None, **DOTTED,
    ),
    "bare": Names("{}.attention.attn.in_proj.{i}", "{}.attention.attn.out_proj", "{}", None, **DOTTED),
    "peft": Names(
        "base_model.model.prior.{}.attention.to_{x}", "base_model.model.prior.{}.attention.to_out.0",
        "base_model.model.prior.{}", "base_model.model.text_encoder.{}",
        down=".lora_A.default.weight", up=".lora_B.default.weight", alpha=False,
    ),
    "diffusers-old": Names(
        "unet.{}.attention.processor.to_{x}", "unet.{}.attention.to_out.0", "transformer.{}", None,
        down="_lora.down.weight", up="_lora.up.weight", alpha=False,
    ),
    "kohya": Names(
        "lora_unet_{}_attention_attn_to_{x}", "lora_unet_{}_attention_attn_out_proj", "lora_unet_{}",
        "lora_te_{}", flat=True,
    ),
    "kohya-early": Names(
        "lora_unet_{}_attention_attn_to_{x}_", "lora_unet_{}_attention_attn_out_proj_", "lora_unet_{}_", None,
        flat=True,
    ),
    "lycoris": Names(
        "lycoris_{}_attention_attn_to_{x}", "lycoris_{}_attention_attn_out_proj", "lycoris_{}", None,
        flat=True,
    ),
}  # fmt: skip
OTHERS = {
    "down_blocks.0.2.kv_mapper.1": (64, 64),
    "up_blocks.1.0.channelwise.0": (128, 256),
    "down_blocks.1.0.channelwise.4": (256, 64),
    "down_blocks.1.1.mapper": (64, 128),
    "down_blocks.1.1.mapper_sca": (64, 128),
    "up_blocks.0.1.mapper_crp": (64, 128),
    "clip_txt_mapper": (48, 64),
    "clip_txt_pooled_mapper": (48, 256),
    "clip_img_mapper": (40, 256),
    "embedding.1": (16, 64),
    "clf.1": (64, 16),
    "down_downscalers.1.1.blocks.0": (64, 64),
    "up_upscalers.0.1.blocks.1": (64, 64),
}
"""(in, out) of layers by released name."""
CONVOLUTIONS = ("embedding.1", "clf.1", "down_downscalers.1.1.blocks.0", "up_upscalers.0.1.blocks.1")
TEXTS = {
    "text_model.encoder.layers.0.self_attn.q_proj": (48, 48),
    "text_model.encoder.layers.1.self_attn.out_proj": (48, 48),
    "text_model.encoder.layers.1.mlp.fc1": (48, 96),
    "text_model.encoder.layers.0.mlp.fc2": (96, 48),
    "text_projection": (48, 48),
}
Deltas = dict[str, np.ndarray]
"""What is added to a released tensor."""


def factors(rng: np.random.Generator, size: tuple[int, int], rank: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, outputs = size
    return (
        rng.standard_normal((rank, inputs)).astype(np.float32),
        rng.standard_normal((outputs, rank)).astype(np.float32),
    )


def file_of(trainer: str, rank: int = 3, alpha: float = 2.0) -> tuple[dict[str, np.ndarray], Deltas]:
    """Tensors of a file of `trainer`, and its changes as torch's weights."""
    names, rng = TRAINERS[trainer], np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    deltas: Deltas = {}

    def add(module: str, key: str, size: tuple[int, int], *, rows: slice | None = None) -> None:
        down, up = factors(rng, size, rank)
        delta = (up.astype(np.float64) @ down) * (alpha / rank if names.alpha else 1.0)
        if any(name in key for name in CONVOLUTIONS):
            down, up, delta = (x[..., None, None] for x in (down, up, delta))
        tensors[module + names.down], tensors[module + names.up] = down, up
        if names.alpha:
            tensors[f"{module}.alpha"] = np.float32(alpha)
        if rows is None:
            deltas[key] = delta
        else:
            deltas.setdefault(key, np.zeros((3 * WIDTH, WIDTH)))[rows] = delta

    def called(pattern: str, module: str, **more: object) -> str:
        return pattern.format(module.replace(".", "_") if names.flat else module, **more)

    for block in (A, B):
        for i, x in enumerate(QKV[: 3 if block == A else 2]):  # of the second, v stays as it is
            rows = slice(i * WIDTH, (i + 1) * WIDTH)
            key = f"{block}.attention.attn.in_proj_weight"
            add(called(names.q, block, x=x, i=i), key, (WIDTH, WIDTH), rows=rows)
        add(called(names.out, block), f"{block}.attention.attn.out_proj.weight", (WIDTH, WIDTH))
    for module, size in OTHERS.items():
        add(called(names.other, module), f"{module}.weight", size)
    if names.text:
        for module, size in TEXTS.items():
            add(called(names.text, module), f"{module}.weight", size)
    return tensors, deltas


def numbered(style: str, order: list[str], rank: int = 3) -> tuple[dict[str, np.ndarray], Deltas]:
    """Tensors of UltraPixel's file (`module`) or Stability's (`weights`), of modules in `order`."""
    rng, tensors, deltas = np.random.default_rng(1), {}, {}
    for i, name in enumerate(order):
        down, up = factors(rng, (WIDTH, 3 * WIDTH if "in_proj" in name else WIDTH), rank)
        tensors |= {f"{style}.{i}.lora_down": down, f"{style}.{i}.lora_up": up}
        deltas[name] = (up.astype(np.float64) @ down) / rank
    return tensors, deltas


def opened(tmp_path: Path, tensors: dict[str, np.ndarray], name: str = "x.safetensors") -> TensorFile:
    (tmp_path / name).unlink(missing_ok=True)
    write(tmp_path / name, {key: np.asarray(x) for key, x in tensors.items()})
    file = open_file(tmp_path / name)
    assert file is not None
    return file


def lora_of(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Lora:
    return read(opened(tmp_path, tensors), CONFIG)
