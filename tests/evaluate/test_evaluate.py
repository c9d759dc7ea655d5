"""The command, with tiny networks: figures beside a plain computation, going on, statistics, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from convert.__main__ import main as convert
from tests.evaluate.tiny import CLIP, INCEPTION, read_report, tensors, weights, write_pictures
from tests.models.test_whole_clip import theirs
from tests.released import write
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, Tokenizer
from ultrapixel_jax.compilation import cache
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.evaluate import features, plots, table_one
from ultrapixel_jax.evaluate.__main__ import main, parser, without_effect
from ultrapixel_jax.evaluate.sets import read_set
from ultrapixel_jax.layouts.apply import flatten, import_tensors, plan_import
from ultrapixel_jax.layouts.tables.inception import FILE
from ultrapixel_jax.models import measuring
from ultrapixel_jax.models.clip_vision import preprocess
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.picture import KEY, Picture
from ultrapixel_jax.sampling.requests import make_requests

__all__ = ["weights"]
SMALL = ["--quiet", "--batch-size", "8", "--resamples", "20", "--workers", "0"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ours` and `real`; `ours` has one that is broken and one smaller than a crop."""
    root = tmp_path_factory.mktemp("sets")
    write_pictures(root / "ours", 20, 0)
    write_pictures(root / "real", 12, 1, side=155)
    Image.new("RGB", (70, 70), "red").save(root / "ours" / "small.png")
    (root / "ours" / "small.txt").write_text("small")
    (root / "ours" / "broken.png").write_bytes((root / "ours" / "000.png").read_bytes()[:300])
    (root / "ours" / "broken.txt").write_text("broken")
    return root


def evaluate(*arguments: object) -> int:
    return main([*map(str, arguments), *SMALL])


@pytest.fixture(scope="module", autouse=True)
def small_shards_on_one_device() -> Iterator[None]:
    """Dividing Inception over eight devices takes three times as long to compile; one test does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD", 8)
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(cache, "use", lambda: None)  # tests have one of their own
        yield


@pytest.fixture(scope="module")
def report(weights: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    both = ["--weights", weights / "weights", weights / "pick"]
    stats = ["--write-stats", out / "ours.npz"]
    assert evaluate(sets / "ours", *both, "--against", sets / "real", "--output", out, *stats) == 0
    return out


def pictures_of(folder: Path) -> dict[str, Image.Image]:
    return {p.stem: Image.open(p).convert("RGB") for p in sorted(folder.glob("*.png")) if p.stem != "broken"}


def inception_features(images: list[np.ndarray]) -> np.ndarray:
    """Features of views, by the module and the file alone."""
    flat, state = flatten(measuring.abstract(INCEPTION)), tensors(INCEPTION)
    shapes = {k: v.shape for k, v in state.items()}
    steps = plan_import(FILE, shapes, {p: x.shape for p, x in flat.items()}, "test")
    variables, _ = import_tensors(steps, state.__getitem__)
    x = (np.stack(images).astype(np.float32) - 128) / 128
    return np.asarray(jax.jit(measuring.build(INCEPTION).apply)(variables, x)[0], np.float64)


def clean(image: Image.Image) -> np.ndarray:
    bands = [band.convert("F").resize((75, 75), Image.Resampling.BICUBIC) for band in image.split()]
    return np.stack([np.asarray(band) for band in bands], -1).clip(0, 255)


def test_fid_of_the_command_is_that_of_its_parts(report: Path, sets: Path) -> None:
    import scipy.linalg

    found = read_report(report)
    x, y = (inception_features([clean(i) for i in pictures_of(sets / n).values()]) for n in ("ours", "real"))
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False) + 1e-12 * np.eye(128)).real
    trace = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False)) - 2 * np.trace(root)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + trace
    fid = found["figures"]["fid"]
    assert fid["value"] == pytest.approx(expected, rel=1e-3)
    assert (fid["pictures"], fid["others"]) == (21, 12)
    assert fid["interval"][0] < fid["value"] < fid["interval"][1]
    assert "singular" in fid["note"]
    patch = found["figures"]["fid_patch"]
    assert (patch["pictures"], patch["rows"]) == (20, 20 * 4)  # 160×170 has 2×2 crops of 75, and one none
    assert set(found["figures"]) == {
        "fid", "kid", "is", "fid_patch", "kid_patch", "is_patch", "clip_l14", "pickscore", "win_rate"
    }  # fmt: skip


def test_scores_are_those_of_transformers(report: Path, sets: Path) -> None:
    lines = [json.loads(line) for line in (report / "scores.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == sorted(f"{name}.png" for name in pictures_of(sets / "ours"))
    tokenizer = Tokenizer(BYTE_TOKENIZER, 77)
    for name, seed in (("clip_l14", 0), ("pickscore", 1)):
        other, state = theirs(CLIP), tensors(CLIP, seed)
        other.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()}, strict=False)
        images = preprocess(list(pictures_of(sets / "ours").values()), 28)
        ids, mask = tokenizer([line["prompt"] for line in lines])
        with torch.no_grad():
            out = other(
                input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask),
                pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
            )  # fmt: skip
        logits = out.logits_per_image.diagonal().numpy()
        scale = float(np.exp(state["logit_scale"]))
        expected = logits if name == "pickscore" else 100 * np.maximum(logits / scale, 0)
        np.testing.assert_allclose([line[name] for line in lines], expected, rtol=1e-4, atol=1e-4)
    figures = read_report(report)["figures"]
    assert figures["clip_l14"]["value"] == pytest.approx(np.mean([line["clip_l14"] for line in lines]))
    assert figures["win_rate"]["pictures"] == 12  # prompts that both have


def test_the_report_tells_what_it_is_of(report: Path) -> None:
    page, found = (report / "report.md").read_text(encoding="utf-8"), read_report(report)
    assert list(found["set"]["broken"]) == ["broken.png"]
    for words in (
        "FID-patch",
        "resizing: clean",
        "broken.png: ",
        "pt_inception.pth",
        "1 pictures are smaller",
    ):
        assert words in page
    assert found["networks"][0]["sha256"] and found["set"]["sizes"] == {"160×170": 20, "70×70": 1}
    for name in ("best_and_worst.jpg", "figures.png"):
        with Image.open(report / name) as picture:
            assert min(picture.size) > 300 and len(set(picture.convert("L").resize((99, 99)).tobytes())) > 9


def test_statistics_of_a_file_give_what_the_set_gives(
    report: Path, weights: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """FID is the same both ways, and on eight devices. Statistics of others have no features and no crops."""
    of_set = read_report(report)["figures"]
    monkeypatch.setattr(plots, "available", lambda: False)
    run = [sets / "real", "--weights", weights / "weights", "--prompts", "none", "--output", tmp_path / "a"]
    assert evaluate(*run, "--against", report / "ours.npz", "--mesh", "data=8") == 0
    found = read_report(tmp_path / "a")
    for name in ("fid", "fid_patch"):
        assert found["figures"][name]["value"] == pytest.approx(of_set[name]["value"], rel=1e-5)
    assert {"kid", "kid_patch"} < found["figures"].keys() and "clip_l14" not in found["figures"]
    assert any("ultrapixel_jax[plots]" in note for note in found["notes"])
    assert not (tmp_path / "a" / "figures.png").exists()
    with np.load(report / "ours.npz") as file:
        np.savez(tmp_path / "theirs.npz", mu=file["mu"], sigma=file["sigma"])
    assert evaluate(*run, "--against", tmp_path / "theirs.npz") == 0
    found = read_report(tmp_path / "a")
    assert found["figures"]["fid"]["value"] == pytest.approx(of_set["fid"]["value"], rel=1e-4)
    assert "kid" not in found["figures"] and "fid_patch" not in found["figures"]
    assert any("does not say" in note for note in found["notes"])
    capsys.readouterr()
    assert evaluate(*run, "--against", report / "ours.npz", "--resize", "pytorch") == 2
    assert "made with another resizing: clean, and now it is pytorch" in capsys.readouterr().err
    assert evaluate(run[0], "--weights", "random:3", *run[3:], "--against", report / "ours.npz") == 2
    assert "of another network" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on_with_the_same_figures(
    report: Path, weights: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sets / "ours", "--weights", weights / "weights", "--prompts", "none", "--against"]
    command += [sets / "real", "--output"]
    seen: list[str] = []
    read = features.Sample.read

    def dies(sample: Any) -> Any:
        if sample.name == "015.png":
            raise KeyboardInterrupt
        return read(sample)

    def noted(sample: Any) -> Any:
        seen.append(sample.name)
        return read(sample)

    monkeypatch.setattr(features.Sample, "read", dies)
    assert evaluate(*command, tmp_path) == 130
    kept = tmp_path / "features" / "pictures"
    assert sorted(p.name for p in kept.iterdir()) == ["crops-00000.npz", "inception-00000.npz"]
    (kept / "crops-00000.npz").write_bytes(b"half a file")
    monkeypatch.setattr(features.Sample, "read", noted)
    assert evaluate(*command, tmp_path) == 0
    names = [sample.name for sample in read_set(sets / "ours").samples]
    assert seen == names  # those of the damaged shard, and the rest; none of what is compared with
    whole, resumed = (read_report(path)["figures"] for path in (report, tmp_path))
    assert resumed.items() <= whole.items()


def test_prompts_come_from_metadata_captions_or_a_file(sets: Path, tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    folder = tmp_path / "drawn"
    folder.mkdir()
    for i in range(2):
        info = PngImagePlugin.PngInfo()
        info.add_itxt(KEY, json.dumps({"prompt": f"told {i}"}))
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png", pnginfo=info)
        (folder / f"{i}.txt").write_text("caption")
    assert [s.prompt for s in read_set(folder).samples] == ["told 0", "told 1"]
    assert [s.prompt for s in read_set(folder, "captions").samples] == ["caption"] * 2
    listed = tmp_path / "list.txt"
    listed.write_text("a\nb\n")
    assert [s.prompt for s in read_set(folder, listed).samples] == ["a", "b"]
    listed.write_text(json.dumps({"1.png": "one", "0.png": "none"}))
    assert [s.prompt for s in read_set(folder, listed).samples] == ["none", "one"]
    assert not read_set(folder, "none").has_prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sets}/ours"], "give --weights"),
        (["--weights", "random:0"], "give either a folder of PICTURES or --sizes"),
        (["{sets}/none", "--weights", "random:0"], "does not exist"),
        (["{root}/empty", "--weights", "random:0"], "no picture; a set that is measured needs two or more"),
        (["{root}/one", "--weights", "random:0"], "one picture alone"),
        (["{root}/bad", "--weights", "{weights}/weights"], "0 of 2 pictures in bad can be read; 0.png: "),
        (["{sets}/ours", "--weights", "random"], "--weights 'random' needs a seed"),
        (["{sets}/ours", "--weights", "{sets}"], "is not a checkpoint directory"),
        (
            ["{sets}/ours", "--weights", "{weights}/pick", "--against", "{sets}/real"],
            "needs inception",
        ),
        (["{sets}/ours", "--weights", "random:0", "--clip", "l14"], "--clip needs clip_l14"),
        (["{sets}/ours", "--weights", "random:0", "--versus", "{sets}/real"], "--versus needs pickscore"),
        (["{sets}/ours", "--weights", "random:0", "--prompts", "metadata"], "have no such metadata: 000.png"),
        (["{sets}/ours", "--weights", "random:0", "--prompts", "x"], "is no file, and not metadata"),
        (
            ["{sets}/ours", "--weights", "random:0", "--prompts", "{root}/two.txt"],
            "and the pictures are",
        ),
        (
            ["{sets}/ours", "--weights", "{weights}/weights", "--against", "{root}/two.txt"],
            "neither a",
        ),
        (["{sets}/ours", "--weights", "{weights}/weights", "--against", "{root}/x.npz"], "cannot be read"),
        (["{sets}/ours", "--weights", "{weights}/weights", "--against", "{root}/small.npz"], "has 128"),
        (["{root}/bare", "--weights", "{weights}/pick"], "nothing can be measured"),
        (["--sizes", "512x512", "--weights", "random:0"], "--sizes draws prompts of a file"),
        (["{sets}/ours", "--weights", "random:0", "--count", "3"], "--count is for drawing"),
        (["{sets}/ours", "--weights", "random:0", "--write-stats", "x.txt"], "must end with .npz"),
        (["{sets}/ours", "--weights", "random:0", "--crops", "gird"], "is not a whole number"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, weights: Path, sets: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    write_pictures(tmp_path / "one", 1, 0, side=20)
    write_pictures(tmp_path / "bare", 2, 0, side=20, captions=False)
    (tmp_path / "bad").mkdir()
    for i in range(2):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"nothing")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "x.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    places = {"sets": sets, "weights": weights, "root": tmp_path}
    assert evaluate(*(a.format(**places) for a in arguments), "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def test_wrong_files_are_no_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torchvision's classes, a tensor too few, a CLIP of another size than the one named, and none named."""
    inception, clip = tensors(INCEPTION), tensors(CLIP)
    classes = {**inception, "fc.weight": np.zeros((1000, 128), np.float32)}
    few = {key: x for key, x in inception.items() if key != "Mixed_7b.branch1x1.bn.running_mean"}
    for state, named, message in (
        (classes, "inception", "shape: fc.weight is (1000, 128), expected (1008, 128)"),
        (few, "inception", "missing: Mixed_7b.branch1x1.bn.running_mean"),
        (clip, "clip_b32", "problem(s)"),
    ):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        write(tmp_path / "model.safetensors", state)
        paths = [str(tmp_path / "model.safetensors"), str(tmp_path / "out")]
        assert convert([*paths, "--component", named]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said


class Model:
    """Draws noise of the request's seed."""

    drawn: list[tuple[int, int]] = []  # noqa: RUF012

    def device_batch(self, size: int) -> int:
        return size

    def run(self, **settings: Any) -> pictures.Run:
        return pictures.Run("stub", "stub", "float32", mesh={}, lr_side=8, **settings)

    def requests(self, entries: Any, *, height: int, width: int) -> Any:
        own = DiffusionConfig()
        return make_requests(
            entries, height=height, width=width, stage_c=own, stage_b=own, seed=0, negative_prompt="",
            num_images=1,
        )  # fmt: skip

    def compile(self, requests: Any) -> None: ...

    def draw(self, requests: Any) -> Any:
        (request,) = requests
        self.drawn.append((request.height, request.width))
        seed = [len(request.prompt), request.width]
        image = np.random.default_rng(seed).integers(0, 256, (request.height, request.width, 3), np.uint8)
        run = self.run(batch_size=1, tile=None, decode_memory=4.0)
        yield 0, Picture.of(image, pictures.describe(request, run))


def test_every_size_is_drawn_once_timed_and_measured(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_one.UltraPixel, "load", lambda checkpoint: Model())
    (tmp_path / "prompts.txt").write_text("a fox\na red star\nsnow\n")
    command = ["--sizes", "256x256", "256x320", "--prompts", tmp_path / "prompts.txt", "--count", "2"]
    command += ["--weights", weights / "weights", "--crops", "none", "--output", tmp_path / "out"]
    command += ["--resamples", "9", "--batch-size", "4", "--quiet"]
    for _ in range(2):  # the second time, all is there
        assert main([*map(str, command)]) == 0
    assert Model.drawn == [(256, 256)] * 2 + [(256, 320)] * 2
    page = (tmp_path / "out" / "sizes.md").read_text(encoding="utf-8")
    assert "| size | IS | CLIP score (L/14) | seconds |" in page
    columns = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert list(columns) == ["256x256", "256x320"]
    for name, figures in columns.items():
        lines = (tmp_path / "out" / "pictures" / name / "seconds.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        assert len(seconds) == 2
        assert figures["latency"]["value"] == pytest.approx(np.median(seconds))
        assert (tmp_path / "out" / name / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--crops-seed", "3"], ["--crops-seed"]),
        (["--crops-seed", "3", "--crops", "none"], ["--crops-seed"]),
        (["--crops-seed", "3", "--crops", "4"], []),
        (["--subsets", "5", "--subset-size", "9"], ["--subsets, --subset-size"]),
        (["--subsets", "5", "--against", "x"], []),
        (["--clip", "b32", "--prompts", "none"], ["--clip"]),
        (["--clip", "b32"], []),
        (["--subsets", "100", "--crops-seed", "42"], []),
    ],
)
def test_options_without_effect_are_named(options: list[str], named: list[str]) -> None:
    lines = without_effect(parser().read(["pictures", "--weights", "random:0", *options]))
    assert [line.split(" without effect: ")[0] for line in lines] == named
