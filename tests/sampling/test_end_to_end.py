"""From a directory of released files to pictures on disk, by the commands that people run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import sample
from configs.tiny import config
from convert.__main__ import main as convert
from tests.conftest import ROOT
from tests.released import state_dict, write, write_release
from ultrapixel_jax.sampling.pictures import read_metadata

FAST = ["--steps", "2", "--steps-b", "1", "--dtype", "float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Every file in its released format, guidance as a pickle, converted."""
    directory = tmp_path_factory.mktemp("release")
    write_release(directory / "files", config)
    assert convert([str(directory / "files"), str(directory / "checkpoint")]) == 0
    return directory / "checkpoint"


def run(checkpoint, *args: str) -> int:
    kept = [] if "--cache-dir" in args else ["--no-cache"]
    return sample.main(["--checkpoint", str(checkpoint), *FAST, *kept, *args])


def test_three_aspect_ratios_and_each_made_again(checkpoint, tmp_path, capsys):
    lines = [
        {"prompt": "a red circle", "size": "256x256", "name": "square"},
        {"prompt": "a blue square", "negative_prompt": "red", "size": "270x400", "seed": 5, "name": "wide"},
        {"prompt": "a green star", "size": "387x259", "seed": 6, "name": "tall"},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    out = tmp_path / "out"
    cache = ["--cache-dir", str(tmp_path / "cache")]
    args = ["--prompts", str(prompts), "--output", str(out), "--save-latents", *cache]
    assert run(checkpoint, *args) == 0
    sizes = {"square": (256, 256), "wide": (270, 400), "tall": (387, 259)}
    for line in lines:
        name = line["name"]
        with Image.open(out / f"{name}.png") as image:
            assert (image.height, image.width) == sizes[name]
            assert np.asarray(image).std() > 1
        metadata = read_metadata(out / f"{name}.png")
        assert line["prompt"] in json.dumps(metadata)
        assert (out / f"{name}.safetensors").is_file()

    # The same list again has nothing left to do.
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run(checkpoint, *args) == 0
    assert "0 written" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before

    for name in sizes:  # one compiled anew, the others with the programs that are kept
        kept = ["--no-cache"] if name == "tall" else cache
        again = ["--reproduce", str(out / f"{name}.png"), "--checkpoint", str(checkpoint), *kept]
        assert sample.main([*again, "--output", str(tmp_path / "again")]) == 0
        assert "bit-identical" in capsys.readouterr().out
        with Image.open(out / f"{name}.png") as one, Image.open(tmp_path / "again" / f"{name}.png") as other:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_preview_and_compile_only(checkpoint, tmp_path, capsys):
    assert run(checkpoint, "--compile-only", "--size", "320x320", "--preview") == 0
    assert "1 bucket(s) compiled" in capsys.readouterr().out
    out = tmp_path / "out"
    args = ["--prompt", "a", "--size", "320x320", "--preview", "--output", str(out)]
    assert run(checkpoint, *args) == 0
    (png,) = out.glob("*.png")
    with Image.open(png) as image:
        assert image.size == (8 * 8, 8 * 8)  # eight pixels for each of the 8×8 latents


def fails(capsys, code: int) -> str:
    captured = capsys.readouterr()
    assert code == 2
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_checkpoint_of_another_variant(checkpoint, tmp_path, capsys):
    args = ["--prompt", "a", "--config", str(ROOT / "configs" / "lite.py"), "--output", str(tmp_path)]
    line = fails(capsys, run(checkpoint, *args))
    assert "another variant" in line and "clip_text" in line


def test_damaged_checkpoint(checkpoint, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    largest = max((copy / "stage_b").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    line = fails(capsys, run(copy, "--prompt", "a", "--output", str(tmp_path)))
    assert "stage_b" in line and "damaged" in line


def test_checkpoint_without_a_component(tmp_path, capsys):
    source = tmp_path / "stage_c.safetensors"
    write(source, state_dict("stage_c", config.stage_c))
    assert convert([str(source), str(tmp_path / "c")]) == 0
    capsys.readouterr()
    line = fails(capsys, run(tmp_path / "c", "--prompt", "a", "--output", str(tmp_path / "out")))
    assert "needs clip_text, stage_b, stage_a" in line and "have stage_c" in line


def test_export_gives_the_same_files(checkpoint, tmp_path):
    assert convert(["--export", str(checkpoint), str(tmp_path / "out")]) == 0
    from ultrapixel_jax.layouts.files import find_files

    for file in find_files([tmp_path / "out"]):
        name = file.path.stem
        first = 14 if name == "guidance" else 64
        expected = state_dict(name, getattr(config, name), first=first)
        assert set(file.specs) == set(expected)
        for key, tensor in expected.items():
            assert file.read(key).tobytes() == tensor.tobytes()
