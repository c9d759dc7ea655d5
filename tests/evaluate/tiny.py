"""Tiny networks that measure, as files that people have, converted; and folders of pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convert.__main__ import main as convert
from tests.convert.test_layouts import open_clip
from tests.released import write
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.config import ClipConfig, ClipTextConfig, ClipVisionConfig, InceptionConfig
from ultrapixel_jax.layouts.apply import export_specs, export_tensors, flatten, plan_export
from ultrapixel_jax.layouts.tables.clip import WHOLE
from ultrapixel_jax.layouts.tables.inception import FILE
from ultrapixel_jax.models import measuring

INCEPTION = InceptionConfig(75, 16)
CLIP = ClipConfig(
    ClipTextConfig(vocab_size=514, width=16, layers=1, heads=2, mlp_width=16, projection=8),
    ClipVisionConfig(image_size=28, patch_size=14, width=16, layers=1, heads=2, mlp_width=16, projection=8),
)


def tensors(config: InceptionConfig | ClipConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The file of a network: an untrained Inception, or a CLIP with weights made from names."""
    if isinstance(config, InceptionConfig):
        flat = flatten(measuring.random_inception(config, seed))
        steps = plan_export(FILE, {path: x.shape for path, x in flat.items()}, "tiny")
        return dict(export_tensors(steps, flat))
    flat = flatten(measuring.abstract(config))
    steps = plan_export(WHOLE, {path: x.shape for path, x in flat.items()}, "tiny")
    return state_dict({key: shape for key, (shape, _) in export_specs(steps, flat).items()}, seed)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inception from torch's old pickle, L/14 in transformers' names, PickScore in open_clip's."""
    root = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measuring.NETWORKS, "inception", INCEPTION)  # type: ignore[arg-type]
        for name in ("clip_l14", "pickscore"):
            patch.setitem(measuring.CLIPS, name, CLIP)  # type: ignore[arg-type]
        for name in ("a", "b"):
            shutil.copytree(BYTE_TOKENIZER, root / name)
        state = {key: torch.from_numpy(x) for key, x in tensors(INCEPTION).items()}
        torch.save(state, root / "a" / "pt_inception.pth", _use_new_zipfile_serialization=False)
        write(root / "a" / "model.safetensors", tensors(CLIP))
        write(root / "b" / "open_clip_model.safetensors", whole_open_clip(tensors(CLIP, 1)))
        both = ["--component", "inception", "--component", "clip_l14"]
        assert convert([str(root / "a"), str(root / "weights"), *both]) == 0
        assert convert([str(root / "b"), str(root / "pick"), "--component", "pickscore"]) == 0
        yield root


def whole_open_clip(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Both towers in open_clip's names, by its own conversion script's rules backwards."""
    vision = {
        key.replace("vision_model.", "text_model."): x for key, x in state.items() if "vision_model." in key
    }
    needed = ("token_embedding.weight", "position_embedding.weight")
    vision |= {f"text_model.embeddings.{key}": state[f"text_model.embeddings.{key}"] for key in needed}
    vision |= {f"text_model.final_layer_norm.{k}": np.zeros(1) for k in ("weight", "bias")}
    vision["text_projection.weight"] = np.zeros((1, 1))
    blocks = {k: v for k, v in open_clip(vision).items() if k.startswith("transformer.")}
    out = {f"visual.{key}": x for key, x in blocks.items()}
    embeddings = "vision_model.embeddings"
    out |= {
        "visual.class_embedding": state[f"{embeddings}.class_embedding"],
        "visual.positional_embedding": state[f"{embeddings}.position_embedding.weight"],
        "visual.conv1.weight": state[f"{embeddings}.patch_embedding.weight"],
        "visual.proj": np.ascontiguousarray(state["visual_projection.weight"].T),
    }
    for ours, name in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        out |= {f"visual.{name}.{k}": state[f"vision_model.{ours}.{k}"] for k in ("weight", "bias")}
    text = {k: v for k, v in open_clip(state).items() if not k.startswith("visual.")}
    return {**text, **out, "logit_scale": state["logit_scale"]}


def write_pictures(folder: Path, count: int, seed: int, *, side: int = 160, captions: bool = True) -> Path:
    """Smooth random pictures, with captions beside them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(small).resize((side + 10, side), Image.Resampling.BICUBIC).save(
            folder / f"{i:03d}.png"
        )
        if captions:
            (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    return folder


def read_report(directory: Path) -> dict:
    return json.loads((directory / "report.json").read_text(encoding="utf-8"))
