"""What is written in each layout is read again as the same, and is what its trainer writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.layouts.lora.files import CONFIG, WIDTH, file_of, lora_of, numbered, opened
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.lora.names import numbered as order_of
from ultrapixel_jax.layouts.lora.read import read
from ultrapixel_jax.layouts.lora.write import write
from ultrapixel_jax.models.lora import PACKED, QKV, Change, Lora, stage_c_layers

MANIFESTS = Path(__file__).parent.parent.parent / "manifests"


def test_the_released_file_numbers_these_layers() -> None:
    """§11: of the manifest of UltraPixel's file, each layer and its shapes."""
    full = CascadeConfig().stage_c
    order, sizes = order_of(full), stage_c_layers(full)
    shapes = {
        key: tuple(shape)
        for key, shape in json.loads((MANIFESTS / "lora_personalized.json").read_text()).items()
    }
    modules = json.loads((MANIFESTS / "lora_personalized.order.json").read_text())
    assert len(order) == len(modules) == 128 and len(shapes) == 2 * 128 + 2
    for i, (path, module) in enumerate(zip(order, modules, strict=True)):
        level, layer, part = path.split("/")
        end = "in_proj_weight" if part == PACKED else "out_proj"
        name = f"{level.replace('_', '_blocks.')}.{layer.removeprefix('layer_')}.attention.attn."
        assert module.startswith(name) and end in module
        inputs, outputs = sizes[path]
        assert shapes[f"module.{i}.lora_down"] == (4, inputs)
        assert shapes[f"module.{i}.lora_up"] == (outputs, 4)


def dense(changes: dict[str, Change]) -> dict[str, np.ndarray]:
    """What each kernel gets, (out, in); thirds of what is packed."""
    out = {}
    for path, change in changes.items():
        delta = (np.float64(1) * change.up) @ change.down * change.scale
        parts = np.split(delta, 3) if path.endswith(PACKED) else [delta]
        names = [path.replace(PACKED, n) for n in QKV] if path.endswith(PACKED) else [path]
        out |= dict(zip(names, parts, strict=True))
    return {path: x for path, x in out.items() if np.any(x)}


def assert_same(one: Lora, other: Lora) -> None:
    assert one.changes.keys() == other.changes.keys()
    for network, own in one.changes.items():
        a, b = dense(dict(own)), dense(dict(other.changes[network]))
        assert a.keys() == b.keys()
        for path, x in a.items():
            np.testing.assert_allclose(b[path], x, rtol=0, atol=2e-5, err_msg=path)
    for a, b in zip(one.tokens, other.tokens, strict=True):
        assert (a.name, a.absolute) == (b.name, b.absolute)
        np.testing.assert_array_equal(a.vectors, b.vectors)
    assert one.offsets.keys() == other.offsets.keys()


def again(tmp_path: Path, lora: Lora, layout: str) -> Lora:
    written = write(lora, layout, CONFIG, "a fox")
    assert written.metadata["modelspec.architecture"] == "stable-cascade-v1-prior/lora"
    assert written.left_out == ()
    return read(opened(tmp_path, written.tensors, f"{layout}.safetensors"), CONFIG)


@pytest.mark.parametrize("layout", ["ultrapixel", "stability"])
def test_files_that_number_layers_come_back_bit_for_bit(layout: str, tmp_path: Path) -> None:
    style = "module" if layout == "ultrapixel" else "weights"
    tensors, _ = numbered(style, order_of(CONFIG.stage_c))
    where = f"module.{len(order_of(CONFIG.stage_c))}" if layout == "ultrapixel" else "embeddings"
    vectors = np.random.default_rng(0).standard_normal((2, 48)).astype(np.float32)
    tensors |= {f"{where}.embeddings": vectors, f"{where}.indices": np.array([514, 300])}
    lora = lora_of(tmp_path, tensors)
    written = write(lora, layout, CONFIG, "").tensors
    assert written.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(written[key], x)
        assert written[key].dtype == x.dtype
    for other in ("ultrapixel", "stability"):
        assert_same(lora, again(tmp_path, lora, other))
    # Of tokens, ComfyUI's has whole embeddings by name.
    written = write(lora, "comfyui", CONFIG, "")
    assert len(written.left_out) == 2 and "its name is not in the file" in written.left_out[0]


def test_comfyuis_file_is_what_onetrainer_writes(tmp_path: Path) -> None:
    tensors, _ = file_of("onetrainer-legacy")
    tensors["bundle_emb.<my cat>.clip_g"] = np.ones((2, 48), np.float32)
    q = "lora_prior_unet_down_blocks_0_2_attention_attn_to_q"
    tensors[f"{q}.dora_scale"] = np.arange(WIDTH, dtype=np.float32)[None]
    tensors["lora_prior_unet_embedding_1.dora_scale"] = np.ones((WIDTH, 1, 1, 1), np.float32)
    written = write(lora_of(tmp_path, tensors), "comfyui", CONFIG, "").tensors
    assert written.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(written[key], x, err_msg=key)


def test_attention_apart_becomes_packed(tmp_path: Path) -> None:
    tensors, _ = file_of("kohya")
    attention = {key: x for key, x in tensors.items() if "_attention_attn_" in key}
    lora = lora_of(tmp_path, attention)
    for layout in ("ultrapixel", "stability", "comfyui"):
        assert_same(lora, again(tmp_path, lora, layout))
    with pytest.raises(UserError, match="which is no attention of stage C; the layout stability cannot"):
        write(lora_of(tmp_path, tensors), "stability", CONFIG, "")
    one = dict([*attention.items()][:3])
    module = next(iter(one)).removesuffix(".lora_down.weight")
    one[f"{module}.dora_scale"] = np.ones((1, WIDTH), np.float32)
    with pytest.raises(UserError, match="as a DoRA; the layout ultrapixel cannot"):
        write(lora_of(tmp_path, one), "ultrapixel", CONFIG, "")
    with pytest.raises(UserError, match="has the embedding of token None itself"):
        write(lora_of(tmp_path, {"clip_g": np.ones((1, 48), np.float32)}), "ultrapixel", CONFIG, "")
