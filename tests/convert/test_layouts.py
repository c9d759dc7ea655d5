"""Checkpoints as people have them: every tool's layout of the tiny cascade gives the same bits."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from configs.tiny import config as tiny
from convert.__main__ import main
from tests.released import state_dict, write
from ultrapixel_jax.checkpoints.directory import read_manifest, restore
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.layouts.apply import flatten
from ultrapixel_jax.layouts.describe import look
from ultrapixel_jax.layouts.files import find_files
from ultrapixel_jax.layouts.torch_stream import HEAD

Tensors = dict[str, np.ndarray]
ROOT = Path(__file__).resolve().parents[2]
ASSETS, TINY = ROOT / "ultrapixel_jax" / "assets" / "demo", ROOT / "configs" / "tiny.py"
"""The checkpoint that is packaged; the configuration that makes tracing larger networks needless."""

NAMES = ("stage_c", "stage_b", "stage_a", "clip_text", "clip_vision", "effnet_encoder", "previewer")
RELEASED: dict[str, Tensors] = {name: state_dict(name, getattr(tiny, name)) for name in NAMES}


def variables(directory: Path) -> dict[str, dict[str, np.ndarray]]:
    return {name: flatten(restore(directory, name)) for name in read_manifest(directory).components}


def converted(tmp_path: Path, *sources: Path, arguments: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    options = ["--tokenizer", str(BYTE_TOKENIZER), "--config", str(TINY), *arguments]
    assert main([*map(str, sources), str(tmp_path / "out"), *options]) == 0
    return variables(tmp_path / "out")


def same(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, flat in expected.items():
        assert found[name].keys() == flat.keys()
        for path, array in flat.items():
            got = np.asarray(found[name][path])
            assert got.dtype == array.dtype and got.tobytes() == np.asarray(array).tobytes(), (name, path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Of the files as released."""
    root = tmp_path_factory.mktemp("released")
    (root / "in").mkdir()
    for name, tensors in RELEASED.items():
        write(root / "in" / f"{name}.safetensors", tensors)
    return converted(root, root / "in")


# ------------------------------------------------------------------ what other tools make of the files


def split(tensors: Tensors, q: str = "attention.attn.to_{}", out: str = "attention.attn.out_proj") -> Tensors:
    """Attention in three, as ComfyUI and diffusers store it."""
    result = {}
    for key, value in tensors.items():
        if "attention.attn.in_proj_" in key:
            stem, kind = key.split("attention.attn.in_proj_")
            for name, part in zip("qkv", np.split(value, 3), strict=True):
                result[f"{stem}{q.format(name)}.{kind}"] = np.ascontiguousarray(part)
        else:
            result[key.replace("attention.attn.out_proj", out)] = value
    return result


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def open_clip(tensors: Tensors) -> Tensors:
    """transformers' names to open_clip's, by its own conversion script's rules backwards."""
    out: Tensors = {
        "logit_scale": np.ones((), np.float32),
        "visual.conv1.weight": np.zeros((2, 3, 4, 4), np.float32),
    }
    out["attn_mask"] = np.zeros((3, 3), np.float32)
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if ".layers." in key)
    old, new = "text_model.encoder.layers.{}.", "transformer.resblocks.{}."
    for i in range(layers):
        a, b = old.format(i), new.format(i)
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{a}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            out[f"{b}attn.in_proj_{kind}"] = np.concatenate(qkv)
            out[f"{b}attn.out_proj.{kind}"] = tensors[f"{a}self_attn.out_proj.{kind}"]
            out[f"{b}ln_1.{kind}"] = tensors[f"{a}layer_norm1.{kind}"]
            out[f"{b}ln_2.{kind}"] = tensors[f"{a}layer_norm2.{kind}"]
            out[f"{b}mlp.c_fc.{kind}"] = tensors[f"{a}mlp.fc1.{kind}"]
            out[f"{b}mlp.c_proj.{kind}"] = tensors[f"{a}mlp.fc2.{kind}"]
    out["token_embedding.weight"] = tensors["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = tensors["text_model.embeddings.position_embedding.weight"]
    out |= {f"ln_final.{kind}": tensors[f"text_model.final_layer_norm.{kind}"] for kind in ("weight", "bias")}
    out["text_projection"] = np.ascontiguousarray(tensors["text_projection.weight"].T)
    return out


def torch_state(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}


def comfy_text(projection: str) -> Tensors:
    text = dict(RELEASED["clip_text"])
    weight = text.pop("text_projection.weight")
    out = under("text_encoder.clip_g.transformer.", text)
    out["text_encoder.clip_g.logit_scale"] = np.full((), 4.6, np.float32)
    if projection == "transposed":
        return {**out, "text_encoder.clip_g.text_projection": np.ascontiguousarray(weight.T)}
    return {**out, "text_encoder.clip_g.transformer.text_projection.weight": weight}


def comfy(folder: Path) -> None:
    """Both files all in one, as ComfyUI saves them; CLIP is in both, alike."""
    means = {"vae.encoder.mean": np.zeros(3, np.float32), "vae.encoder.std": np.ones(3, np.float32)}
    write(folder / "stable_cascade_stage_c.safetensors", {
        **under("model.diffusion_model.", split(RELEASED["stage_c"])), **comfy_text("transposed"),
        **under("clip_l_vision.", RELEASED["clip_vision"]), **means,
        **under("vae.encoder.", RELEASED["effnet_encoder"]), **under("vae.previewer.", RELEASED["previewer"]),
    })  # fmt: skip
    write(folder / "stable_cascade_stage_b.safetensors", {
        **under("model.diffusion_model.", RELEASED["stage_b"]), **comfy_text("plain"),
        **under("vae.", RELEASED["stage_a"]),
    })  # fmt: skip


def comfy_apart(folder: Path) -> None:
    """UNets under a prefix and under none, and the file of EffNet encoder and previewer."""
    write(folder / "unet_c.safetensors", split(RELEASED["stage_c"]))
    write(folder / "unet_b.safetensors", under("diffusion_model.", split(RELEASED["stage_b"])))
    write(folder / "vae.safetensors", {
        **under("encoder.", RELEASED["effnet_encoder"]), **under("previewer.", RELEASED["previewer"]),
    })  # fmt: skip
    write(folder / "stage_a.safetensors", under("vae.", RELEASED["stage_a"]))
    write(folder / "clip_g.safetensors", under("text_encoder.", RELEASED["clip_text"]))
    write(folder / "clip_l.safetensors", RELEASED["clip_vision"])


def sd_scripts(folder: Path) -> None:
    """Stage C packed, the text tower beside it; the rest as released."""
    write(folder / "mine.safetensors", RELEASED["stage_c"])
    write(folder / "mine_text_model.safetensors", RELEASED["clip_text"])
    for name in ("stage_b", "stage_a", "clip_vision", "effnet_encoder", "previewer"):
        write(folder / f"{name}.safetensors", RELEASED[name])
    torch.save(
        {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}, folder / "optimizer.pt"
    )
    (folder / "scheduler.bin").write_bytes(pickle.dumps({"last_epoch": 3}))
    (folder / "random_states_0.pkl").write_bytes(pickle.dumps([1, 2]))
    (folder / "config.json").write_text("{}")
    shutil.copy(folder / "stage_a.safetensors", folder / "stage_a_copy.safetensors")


def onetrainer(folder: Path) -> None:
    """A folder of folders; the trained network compiled and wrapped, with an average beside nothing."""
    (folder / "prior").mkdir()
    wrapped = under("module._orig_mod.", split(RELEASED["stage_c"], "attention.attn.to_{}"))
    torch.save(
        {"state_dict": torch_state(wrapped), "epoch": 3, "callbacks": {}}, folder / "prior" / "model.ckpt"
    )
    compiled = {}
    for key, value in RELEASED["stage_b"].items():  # layers compiled one by one
        compiled[key.replace("down_blocks.1.", "down_blocks.1._orig_mod.")] = value
    torch.save({"model": torch_state(compiled), "optimizer": {"lr": 1.0}}, folder / "decoder.pt")
    for name in ("stage_a", "clip_text", "clip_vision", "effnet_encoder", "previewer"):
        averaged = {**under("module.", RELEASED[name]), "n_averaged": np.asarray(7)}
        torch.save(torch_state(averaged), folder / f"{name}.pth")


def diffusers(folder: Path, new: bool = True) -> None:
    """Folders with the variant in their files' names, stage C in two shards with an index."""
    for name, to in (("stage_c", "prior"), ("stage_b", "decoder")):
        (folder / to).mkdir()
        names = split(RELEASED[name], "attention.to_{}", "attention.to_out.0")
        renamed = {
            key.replace("clip_mapper.", "clip_txt_pooled_mapper.") if name == "stage_b" else key: value
            for key, value in names.items()
        }
        stem, keys = "diffusion_pytorch_model", sorted(renamed)
        places = {key: f"{stem}.bf16-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(keys)}
        for shard in sorted(set(places.values())):
            write(folder / to / shard, {key: renamed[key] for key in keys if places[key] == shard})
        index = f"{stem}.safetensors.index.bf16.json" if new else f"{stem}.safetensors.bf16.index.json"
        (folder / to / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / to / "config.json").write_text('{"_class_name": "StableCascadeUNet"}')
    (folder / "text_encoder").mkdir()
    write(folder / "text_encoder" / "model.bf16.safetensors", RELEASED["clip_text"])
    safetensors.torch.save_file(
        torch_state(RELEASED["clip_text"]), folder / "text_encoder" / "again.safetensors"
    )
    for name in ("stage_a", "clip_vision", "effnet_encoder", "previewer"):
        write(folder / f"{name}.fp32.safetensors", RELEASED[name])


def old_pickles(folder: Path) -> None:
    for name, tensors in RELEASED.items():
        state: Any = torch_state(tensors)
        if name == "stage_a":  # tensors that share a storage, and one that is turned
            state = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in state.items()}
        if name == "previewer":
            state = {"state_dict": state, "step": 3}
        torch.save(state, folder / f"{name}.bin", _use_new_zipfile_serialization=False)


def bare_names(folder: Path) -> None:
    """CLIP without its prefix, open_clip's text tower, stage C under torch's averaging."""
    write(
        folder / "c.safetensors",
        {**under("module.model.", RELEASED["stage_c"]), "module.model.n_averaged": np.asarray(1)},
    )
    write(folder / "open_clip_model.safetensors", open_clip(RELEASED["clip_text"]))
    vision = {key.removeprefix("vision_model."): value for key, value in RELEASED["clip_vision"].items()}
    write(folder / "image_encoder.safetensors", vision)
    for name in ("stage_b", "stage_a", "effnet_encoder", "previewer"):
        write(folder / f"{name}.safetensors", under("net.module.", RELEASED[name]))


LAYOUTS = {
    "comfy": comfy, "comfy_apart": comfy_apart, "sd_scripts": sd_scripts, "onetrainer": onetrainer,
    "diffusers": diffusers, "diffusers_old": lambda folder: diffusers(folder, False),
    "old_pickles": old_pickles,
    "bare_names": bare_names,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_bits(name: str, reference: dict, tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    LAYOUTS[name](tmp_path / "in")
    same(converted(tmp_path, tmp_path / "in"), reference)
    out = capsys.readouterr().out
    if name == "sd_scripts":
        assert "stage_a_copy.safetensors: stage_a once more" in out
        passed = next(line for line in out.splitlines() if line.startswith("passed over"))
        assert all(
            file in passed for file in ("optimizer.pt", "scheduler.bin", "random_states_0.pkl", "config.json")
        )
    if name == "comfy":
        assert "clip_text once more" in out


@pytest.mark.parametrize("scaled", [False, True])
def test_eight_bit_floats(scaled: bool, tmp_path: Path) -> None:
    """Against the product of what torch stores and the scale, by hand."""
    state, expected = {}, {}
    for key, value in RELEASED["previewer"].items():
        tensor = torch.from_numpy(np.array(value))
        if key.endswith("weight") and tensor.dim() == 4:
            dtype = torch.float8_e5m2 if "blocks.3." in key else torch.float8_e4m3fn
            scale = tensor.abs().max() / 400 if scaled else torch.tensor(1.0)
            small = (tensor / scale).to(dtype)
            state[key] = small
            expected[key] = small.float().numpy() * scale.float().numpy()
            if scaled:
                state[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            state[key], expected[key] = tensor, value
    if scaled:
        state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    else:
        expected = {k: v.astype(ml_dtypes.bfloat16) if k in state and state[k].itemsize == 1 else v
                    for k, v in expected.items()}  # fmt: skip
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors", expected)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    same(
        converted(tmp_path / "one", tmp_path / "a.safetensors"),
        converted(tmp_path / "two", tmp_path / "b.safetensors"),
    )


# ------------------------------------------------------------------ old pickles


def test_old_pickles_against_torch(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "whole": base, "turned": base.T, "part": base[1:3, ::2], "half": torch.randn(5).half(),
        "long": torch.tensor([7]),
        "bf16": torch.randn(3).to(torch.bfloat16), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)), "step": 3,
    }  # fmt: skip
    path = tmp_path / "old.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    (file,) = find_files([path])
    expected = torch.load(path)
    assert file.format == "torch stream" and file.skipped == ("step",)
    for key in file.specs:
        tensor = expected[key].detach().contiguous()
        raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        assert file.read(key).tobytes() == raw.numpy().tobytes(), key
        assert file.specs[key][0] == tuple(tensor.shape)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["object", "first", "keys"])
def test_old_pickles_run_nothing(place: str, tmp_path: Path, capsys) -> None:
    target, path = tmp_path / "harm", tmp_path / "old.bin"
    evil = Malicious(target)
    torch.save({"a": torch.ones(2), "x": evil} if place == "object" else {"a": torch.ones(2)}, path,
               _use_new_zipfile_serialization=False)  # fmt: skip
    data = path.read_bytes()
    head = len(HEAD)  # the magic number's pickle
    if place == "first":
        path.write_bytes(data[:head] + pickle.dumps(evil, 2) + data[head:])
    elif place == "keys":
        at = data.rindex(b"\x80\x02]")
        path.write_bytes(data[:at] + pickle.dumps(evil, 2) + data[at:])
    assert main([str(path), str(tmp_path / "out"), "--config", str(TINY)]) == 2
    assert "system" in capsys.readouterr().err
    assert not target.exists()


def test_old_pickles_cut_off_or_changed(tmp_path: Path, capsys) -> None:
    path = tmp_path / "old.bin"
    torch.save({"a": torch.arange(30.0), "b": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for cut in [*range(len(HEAD), len(data), 37), len(data) - 1]:
        path.write_bytes(data[:cut])
        assert main([str(path), str(tmp_path / "out"), "--config", str(TINY)]) == 2
    path.write_bytes(data + b"more")
    assert main([str(path), str(tmp_path / "out"), "--config", str(TINY)]) == 2
    rng = np.random.default_rng(0)
    for _ in range(150):  # nothing but one line, whatever is changed
        changed = bytearray(data)
        changed[rng.integers(len(HEAD), len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        assert main([str(path), str(tmp_path / "out"), "--config", str(TINY)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in errors)


# ------------------------------------------------------------------ what is none


KEYS = {
    "SDXL, all in one": ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.x"],
    "Stable Diffusion 1, all in one": [
        "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x",
    ],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight"],
    "a LoRA for SDXL": ["lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "lora_te2_x.alpha"],
    "a LoHa": ["lora_unet_x.hada_w1_a"],
    "a LoKr": ["lora_unet_x.lokr_w1"],
    "a LoRA for Stable Cascade's stage C": ["lora_unet_down_blocks_7_2_attention_attn_to_q.lora_down.weight"],
    "an optimizer's state": ["state.0.exp_avg"],
    "a VAE of Stable Diffusion": ["decoder.up.0.block.0.conv1.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "a textual inversion": ["clip_g", "clip_l"],
    "a UNet of Stable Diffusion in diffusers'": [
        "down_blocks.0.attentions.0.x", "up_blocks.1.resnets.0.x", "time_embedding.linear_1.weight",
    ],
    "it holds 1 tensors": ["something.else"],
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_what_an_unknown_file_looks_like(name: str, tmp_path: Path, capsys) -> None:
    assert name in look(KEYS[name])
    write(tmp_path / "x.safetensors", {key: np.zeros((2, 2), np.float32) for key in KEYS[name]})
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert (name in line and "needed" in line) or "read are" in line or "are read" in line
    assert line.count("\n") == 1 and len(line) < 2000


def test_long_messages_are_cut_and_the_rest_is_in_a_file(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tensors = {
        **RELEASED["stage_c"],
        **{f"{'very' * 20}.{i}.weight": np.zeros(1, np.float32) for i in range(300)},
    }
    write(tmp_path / "c.safetensors", tensors)
    assert main([str(tmp_path / "c.safetensors"), str(tmp_path / "out"), "--config", str(TINY)]) == 2
    line = capsys.readouterr().err
    assert len(line) < 2000 and "300 problem(s)" in line
    (listed,) = tmp_path.glob("convert-*.txt")
    assert str(listed) in line and len(listed.read_text().splitlines()) == 300


def test_names_that_are_no_utf8(tmp_path: Path, capsys) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll"))
    folder.mkdir()
    torch.save(torch_state(RELEASED["previewer"]), folder / "a.pth")
    assert main([str(folder), str(tmp_path / "out"), "--config", str(TINY)]) == 0
    assert main([str(folder), str(folder / "out"), "--config", str(TINY)]) == 2
    write(tmp_path / "b.safetensors", RELEASED["stage_a"])
    (tmp_path / "b.safetensors").rename(folder / "b.safetensors")
    code = main([str(folder), str(tmp_path / "out2"), "--config", str(TINY)])
    err = capsys.readouterr().err
    assert "m\\xfcll/out: its name is no UTF-8" in err
    assert code == 0 or "m\\xfcll/b.safetensors" in err


# ------------------------------------------------------------------ export


def test_the_demo_exports_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for arguments in (["--export", ASSETS, tmp_path / "files"], [tmp_path / "files", tmp_path / "back"]):
        # In processes of their own: checking shapes while tracing takes several times as long.
        subprocess.run([sys.executable, "-m", "convert", *map(str, arguments)], cwd=ROOT, check=True)
    same(variables(tmp_path / "back"), variables(ASSETS))


@pytest.mark.parametrize("there", [False, True])
def test_an_export_that_fails_leaves_nothing(there: bool, tmp_path: Path, capsys, monkeypatch) -> None:
    from convert import export
    from ultrapixel_jax.errors import UserError

    made, write_one = [], export.export_component

    def fail(*arguments: Any) -> None:
        if made:
            raise UserError("the disk is full")
        made.append(write_one(*arguments))

    monkeypatch.setattr(export, "export_component", fail)
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    assert main(["--export", str(ASSETS), str(out)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert made and [p.name for p in tmp_path.rglob("*")] == (["out", "mine.txt"] if there else [])
