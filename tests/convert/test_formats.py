"""Recognition and conversion: every released file at full size, both ways, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from configs.tiny import config as tiny
from convert.__main__ import main
from convert.convert import known_configs
from convert.formats import file_keys, recognise
from tests.recordings import MANIFESTS, manifest
from tests.released import state_dict, write, write_pickle
from ultrapixel_jax.config import ClipTextConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.apply import export_specs, flatten, plan_export
from ultrapixel_jax.layouts.files import find_files
from ultrapixel_jax.models import components

# file: component, layout, variant, parameters (§13)
RELEASED = {
    "stage_c": ("stage_c", "released", "full", 3_589_103_632),
    "stage_c_lite": ("stage_c", "released", "lite", 1_030_785_040),
    "diffusers_stage_c": ("stage_c", "diffusers", "full", 3_589_103_632),
    "stage_b": ("stage_b", "released", "full", 1_562_941_136),
    "stage_b_lite": ("stage_b", "released", "lite", 699_471_248),
    "stage_a": ("stage_a", "released", "full", 18_406_894),
    "ultrapixel_t2i": ("guidance", "released", "full", 105_524_224),
    "previewer": ("previewer", "released", "full", 3_979_651),
    "effnet_encoder": ("effnet_encoder", "released", "full", 20_197_968),
    "controlnet_canny": ("controlnet", "released", "canny", 54_255_776),
    "controlnet_inpainting": ("controlnet", "released", "inpainting", 54_256_424),
    "controlnet_super_resolution": ("controlnet", "super_resolution", "super_resolution", 203_491_584),
    "clip_text_bigg": ("clip_text", "transformers", "full", 694_659_840),
    "clip_vision_l14": ("clip_vision", "transformers", "full", 303_966_208),
}
ASIDE = ("num_batches_tracked", "position_ids", "indices")


@pytest.fixture(scope="module")
def known():
    return known_configs(None)


@pytest.mark.parametrize("name", RELEASED)
def test_manifest_is_recognised_and_mapped_both_ways(known, name):
    shapes = manifest(name)
    component, layout, variant, parameters = RELEASED[name]
    (found,) = recognise(shapes, known, name)
    assert (found.format.component, found.format.layout, found.variant) == (component, layout, variant)

    variables = components.abstract(component, found.config)
    assert components.parameter_count(variables) == parameters
    flat = flatten(variables)
    filled = [path for step in found.steps for path in step.paths]
    assert sorted(filled) == sorted(flat)

    steps = plan_export(found.format.table(found.config), {p: s.shape for p, s in flat.items()}, name)
    specs = export_specs(steps, flat)
    first = 64 if component == "guidance" else None
    keys = file_keys(found.format, found.config, list(specs), first)
    written = {keys[k]: shape for k, (shape, _) in specs.items()}
    assert written == {k: s for k, s in shapes.items() if not k.endswith(ASIDE)}


def test_every_manifest_is_in_the_table_above():
    names = {p.name.removesuffix(".json") for p in MANIFESTS.glob("*.json")}
    of_layouts = {"lora_personalized", "lora_personalized.order"}  # tests/layouts/lora
    assert names - of_layouts == set(RELEASED)


def test_all_problems_are_listed_at_once(known):
    shapes = dict(manifest("stage_c"))
    del shapes["clf.1.bias"]
    shapes["clf.1.extra"] = (3,)
    shapes["clip_img_mapper.bias"] = (7,)
    with pytest.raises(UserError) as error:
        recognise(shapes, known, "broken.safetensors")
    text = str(error.value)
    assert "broken.safetensors (stage_c, released layout, variant full): 3 problem(s)" in text
    assert "missing: clf.1.bias" in text and "unexpected: clf.1.extra" in text
    assert "shape: clip_img_mapper.bias is (7,), expected (8192,)" in text


def test_shapes_must_be_the_released_ones_exactly(known):
    """A 1x1 convolution and a linear layer give one kernel of ours; the file's own shape must be right."""
    shapes = dict(manifest("stage_c"))
    assert shapes["clf.1.weight"] == (16, 2048, 1, 1)
    shapes["clf.1.weight"] = (16, 2048)
    with pytest.raises(UserError, match=r"clf\.1\.weight is \(16, 2048\), expected \(16, 2048, 1, 1\)"):
        recognise(shapes, known, "squeezed.safetensors")


def convert(*paths) -> int:
    return main([str(p) for p in paths])


def exported(tmp_path, source) -> dict[str, np.ndarray]:
    """Convert a file and export it again."""
    assert convert(source, tmp_path / "c") == 0
    assert convert("--export", tmp_path / "c", tmp_path / "out") == 0
    (file,) = find_files([tmp_path / "out"])
    return {key: file.read(key) for key in file.specs}


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["stage_c", "stage_a", "previewer"])
def test_round_trip_is_bit_exact_in_any_dtype(tmp_path, name, dtype):
    import ml_dtypes

    to = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    tensors = {k: v.astype(to) for k, v in state_dict(name, getattr(tiny, name)).items()}
    counters = [k.replace("running_mean", "num_batches_tracked") for k in tensors if "running_mean" in k]
    tensors |= {k: np.asarray(12345 + i, np.int64) for i, k in enumerate(counters)}
    write(tmp_path / "file.safetensors", tensors)
    assert_same_bits(exported(tmp_path, tmp_path / "file.safetensors"), tensors)


def test_diffusers_layout_comes_out_in_the_released_one(tmp_path):
    """The same numbers either way: the export of one layout is the other."""
    released = state_dict("stage_c", tiny.stage_c)
    diffusers = {}
    for key, value in released.items():
        if "in_proj" in key:
            kind = key.rsplit("_", 1)[1]
            stem = key.split("attn.in_proj")[0]
            for part, name in zip(np.split(value, 3), "qkv", strict=True):
                diffusers[f"{stem}to_{name}.{kind}"] = np.ascontiguousarray(part)
        else:
            diffusers[key.replace("attn.out_proj", "to_out.0")] = value
    write(tmp_path / "b.safetensors", diffusers)
    assert_same_bits(exported(tmp_path, tmp_path / "b.safetensors"), released)


@pytest.mark.parametrize(("prefix", "first"), [("module.", 64), ("", 14)])
def test_guidance_with_and_without_the_prefix(tmp_path, prefix, first):
    tensors = state_dict("guidance", tiny.guidance, first=first)
    renamed = {prefix + k.removeprefix("module."): v for k, v in tensors.items()}
    write_pickle(tmp_path / "guidance.safetensors", renamed)
    assert_same_bits(exported(tmp_path, tmp_path / "guidance.safetensors"), tensors)


def test_nested_state_dict(tmp_path):
    import torch

    tensors = state_dict("previewer", tiny.previewer)
    nested = {"state_dict": {k: torch.from_numpy(v) for k, v in tensors.items()}, "epoch": 3}
    torch.save(nested, tmp_path / "previewer.pt")
    assert_same_bits(exported(tmp_path, tmp_path / "previewer.pt"), tensors)


def test_both_towers_of_clip_in_one_file(tmp_path, capsys):
    config = ClipTextConfig(**vars(tiny.clip_text))
    tensors = state_dict("clip_text", config) | {"vision_model.embeddings.class_embedding": np.zeros(5)}
    tensors |= {"visual_projection.weight": np.zeros((5, 5)), "logit_scale": np.asarray(1.0)}
    write(tmp_path / "model.safetensors", tensors)
    known = known_configs(None)
    shapes = {k: v.shape for k, v in tensors.items()}
    (found,) = recognise(shapes, known, "model")
    assert found.format.component == "clip_text"


def refused(capsys, tmp_path, *args) -> str:
    before = sorted(p for p in tmp_path.rglob("*"))
    code = main([str(a) for a in args])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and line.startswith("error: ")
    assert sorted(p for p in tmp_path.rglob("*")) == before  # nothing half-written
    return line


def test_bad_input(tmp_path, capsys):
    out = tmp_path / "out"
    assert "does not exist" in refused(capsys, tmp_path, tmp_path / "nothing", out)
    assert "did you mean '--export'" in refused(capsys, tmp_path, "--exprot", tmp_path, out)
    assert "at least one source" in refused(capsys, tmp_path, out)
    assert "float16 is not supported" in refused(capsys, tmp_path, tmp_path, out, "--dtype", "float16")

    source = tmp_path / "source"
    source.mkdir()
    tensors = state_dict("previewer", tiny.previewer)
    write(source / "previewer.safetensors", tensors)
    changed = {key: value + (key == "blocks.0.weight") for key, value in tensors.items()}
    write(source / "copy.safetensors", {key: value.astype(np.float32) for key, value in changed.items()})
    line = refused(capsys, tmp_path, source, out)
    assert "previewer.safetensors" in line and "copy.safetensors" in line and "only one" in line
    (source / "copy.safetensors").unlink()
    assert "no file holds component 'stage_b'" in refused(
        capsys, tmp_path, source, out, "--component", "stage_b"
    )

    write(source / "strange.safetensors", {"a.weight": np.zeros((2, 2), np.float32)})
    assert "no checkpoint known here" in refused(capsys, tmp_path, source, out)
    (source / "strange.safetensors").unlink()

    nan = dict(tensors)
    nan["blocks.0.weight"] = np.full_like(tensors["blocks.0.weight"], np.nan)
    (source / "previewer.safetensors").unlink()
    write(source / "previewer.safetensors", nan)
    assert "blocks.0.weight" in refused(capsys, tmp_path, source, out)
    (source / "previewer.safetensors").unlink()

    write(source / "clip.safetensors", state_dict("clip_text", tiny.clip_text))
    assert "no tokenizer" in refused(capsys, tmp_path, source, out)
