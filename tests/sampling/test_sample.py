"""What ``sample.py`` makes and writes, with a fake model in the place of the real one."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import sample
from tests.commands.test_ending import STREAMS
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import pictures, ultrapixel
from ultrapixel_jax.sampling.pipeline import AMPLE, Cascade
from ultrapixel_jax.sampling.progress import Progress
from ultrapixel_jax.sizes import Bucket


@dataclasses.dataclass
class FakeResult:
    image: np.ndarray
    latents: dict[str, np.ndarray]
    controls: dict = dataclasses.field(default_factory=dict)


class FakeCascade(Cascade):
    """Pictures that depend on seed, prompt and size; every call is written down."""

    calls: list = []  # noqa: RUF012
    weights = "weights-1"
    unused = ()
    controlnets: dict = {}  # noqa: RUF012
    executables: Path | None = None
    fail: BaseException | None = None

    @classmethod
    def load(
        cls,
        checkpoint,
        *,
        config=None,
        dtype,
        mesh=None,
        preview=False,
        ema=True,
        executables=None,
        controlnets=(),
        memory=AMPLE,
        scanned=False,
    ):
        cls.executables = executables
        cls.calls.append(("load", checkpoint, dtype, mesh, preview))
        model = cls(config or CascadeConfig(sampling_c=DiffusionConfig(steps=11)), preview)
        model.mesh, model.dtype, model.memory = mesh, dtype or "float32", memory
        return model

    def __init__(self, config, preview):
        self.config, self.identity, self.preview = config, type(self).weights, preview
        self.personal = types.SimpleNamespace(check=lambda conditions: None)
        self.report = types.SimpleNamespace(rows=lambda: [("load", 1.5, 2_000_000_000), ("A", 0.25, None)])

    def cut_off(self, requests):
        return list(dict.fromkeys(r.prompt[200:] for r in requests if r.prompt[200:]))

    def compile(self, request, *, batch_size):
        self.calls.append(("compile", Bucket.of(request.height, request.width).hr, batch_size, self.preview))

    def generate(self, requests, *, batch_size, progress, tile, decode_bytes, latents):
        assert len(requests) <= batch_size
        self.calls.append(("generate", [(r.prompt, r.seed) for r in requests], batch_size, self.preview))
        if self.fail is not None and any(r.seed == 2 for r in requests):
            raise self.fail
        self.settings = [(r.stage_c, r.stage_b) for r in requests]
        FakeCascade.last_settings = self.settings
        results = []
        for r in requests:
            rng = np.random.default_rng([r.seed, *r.prompt.encode()])
            image = rng.integers(0, 256, (r.height, r.width, 3), dtype=np.uint8)
            results.append(FakeResult(image, {"stage_c": np.full((2, 2), r.seed, np.float32)}))
        return results


@pytest.fixture
def fake(monkeypatch, tmp_path):
    for name, value in (("calls", []), ("weights", "weights-1"), ("fail", None)):
        monkeypatch.setattr(FakeCascade, name, value)
    monkeypatch.setattr(ultrapixel, "Cascade", FakeCascade)

    def run(*arguments, code=0):
        FakeCascade.calls.clear()
        assert (
            sample.main([*arguments, "--size", "256x264", "--no-cache", "--output", str(tmp_path / "out")])
            == code
        )
        return [call for call in FakeCascade.calls if call[0] == "generate"]

    return run


def listing(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_pictures_their_names_and_settings(fake, tmp_path, capsys):
    calls = fake(
        "--prompt",
        "A cat!",
        "--num-images",
        "3",
        "--batch-size",
        "2",
        "--cfg-b",
        "2",
        "--cfg-hr",
        "1.5",
        "--save-latents",
    )
    assert [(c[1], c[2]) for c in calls] == [([("A cat!", 0), ("A cat!", 1)], 2), ([("A cat!", 2)], 2)]
    stems = [f"0000{i}-a-cat-{i}" for i in range(3)]
    assert listing(tmp_path) == sorted(f"{s}{e}" for s in stems for e in (".png", ".safetensors"))
    request, run = pictures.recorded(pictures.read_metadata(tmp_path / "out" / f"{stems[2]}.png"))
    assert (request.seed, request.height, request.width) == (2, 256, 264)
    assert request.stage_c.steps == 11  # from the model's configuration
    assert request.stage_b.cfg == 2.0 and request.stage_b.steps == 10
    assert (request.stage_c.cfg_hr, request.stage_b.cfg_hr) == (1.5, None)
    assert (run.checkpoint, run.batch_size, run.dtype) == ("weights-1", 2, "float32")
    assert load_file(tmp_path / "out" / f"{stems[2]}.safetensors")["stage_c"][0, 0] == 2
    out, err = capsys.readouterr()
    assert "the demo draws" in err and err.count("\n") == 1
    assert "3 written" in out and "2.00 GB" in out and "compilation cache: none" in out
    assert f"{stems[0]}.png" in out


def test_a_rerun_continues_where_it_stopped(fake, tmp_path, capsys):
    (tmp_path / "list").write_text("one\n" + '{"prompt": "two", "name": "own"}\n')
    command = ["--prompts", str(tmp_path / "list"), "--num-images", "2"]
    fake(*command)
    first = listing(tmp_path)
    assert fake(*command) == []
    assert "0 written" in capsys.readouterr().out
    (tmp_path / "out" / "own-1.png").unlink()
    path = tmp_path / "out" / "00000-one-0.png"
    path.write_bytes(path.read_bytes()[:-3])
    assert [c[1] for c in fake(*command)] == [[("one", 0)], [("two", 1)]]
    assert listing(tmp_path) == sorted([*first, "00000-one-0-1.png"])
    assert fake(*command) == []
    assert len(fake(*command, "--steps", "5")) == 4  # other settings are other pictures
    FakeCascade.weights = "weights-2"
    assert len(fake(*command)) == 4


def test_settings_of_lines_run_in_batches_of_their_own(fake, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("Prompt,Steps,CFG,Note\n# x,1,1,\na,5,,\nb,6,,\nc,5,2.5,\nd,5,,z\n")
    calls = fake(
        "--prompts",
        str(tmp_path / "list.csv"),
        "--comments",
        "--batch-size",
        "4",
        "--cfg",
        "3",
        "--steps",
        "9",
    )
    assert [call[1] for call in calls] == [[("a", 0), ("d", 0)], [("b", 0)], [("c", 0)]]
    request, _ = pictures.recorded(pictures.read_metadata(tmp_path / "out" / "00002-c-0.png"))
    assert (request.stage_c.steps, request.stage_c.cfg) == (5, 2.5)  # the line wins
    request, _ = pictures.recorded(pictures.read_metadata(tmp_path / "out" / "00000-a-0.png"))
    assert (request.stage_c.steps, request.stage_c.cfg) == (5, 3.0)
    assert "columns without a meaning here: Note" in capsys.readouterr().err


def test_processes_share_the_list(fake, tmp_path):
    command = ["--prompt", "a", "--num-images", "5", "--process-count", "2", "--process-index"]
    one, two = fake(*command, "0"), fake(*command, "1")
    assert sorted(c[1][0][1] for c in [*one, *two]) == [0, 1, 2, 3, 4]
    assert len(listing(tmp_path)) == 5
    assert fake("--prompt", "a", "--process-count", "2", "--process-index", "0") == []


def test_ctrl_c_keeps_what_is_finished(fake, tmp_path, capsys):
    FakeCascade.fail = KeyboardInterrupt()
    fake("--prompt", "a", "--num-images", "4", code=130)
    assert listing(tmp_path) == ["00000-a-0.png", "00001-a-1.png"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted: ")
    FakeCascade.fail = None
    assert len(fake("--prompt", "a", "--num-images", "4")) == 2


def test_out_of_memory_says_what_to_do(fake, capsys):
    FakeCascade.fail = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    fake("--prompt", "a", "--seed", "2", code=2)
    assert "error: out of memory for 256x264 at batch size 1; use a smaller" in capsys.readouterr().err
    FakeCascade.fail = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        sample.main(["--prompt", "a", "--seed", "2", "--no-cache"])


def test_a_long_prompt_is_cut_with_a_warning(fake, capsys):
    fake("--prompt", "x" * 200 + "the rest", "--num-images", "2")
    assert capsys.readouterr().err.count("'the rest'") == 1


def test_compile_only_makes_no_picture(fake, tmp_path, capsys):
    (tmp_path / "list").write_text(
        'a\n{"prompt": "b", "size": "512x512"}\n{"prompt": "c", "size": "511x512"}\n'
    )
    fake("--compile-only", "--prompts", str(tmp_path / "list"), "--preview", "--batch-size", "3")
    compiled = [c for c in FakeCascade.calls if c[0] == "compile"]
    assert compiled == [("compile", (6, 7), 3, True), ("compile", (12, 12), 3, True)]
    assert not (tmp_path / "out").exists()
    fake("--compile-only", "--quiet")
    assert len(FakeCascade.calls) == 2


def test_the_batch_is_rounded_up_to_the_mesh(fake, capsys):
    calls = fake("--prompt", "a", "--mesh", "data=2,fsdp=2,tensor=2", "--batch-size", "3")
    assert calls[0][2] == 4
    assert "batch size rounded up to 4" in capsys.readouterr().err
    (_, _, _, mesh, _) = FakeCascade.calls[0]
    assert {axis: n for axis, n in mesh.shape.items() if n > 1} == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_mesh_that_does_not_fit_is_refused_before_loading(fake, capsys):
    fake("--prompt", "a", "--mesh", "data=64", code=2)
    assert FakeCascade.calls == []
    assert capsys.readouterr().err.count("\n") == 1


def test_errors_of_the_model_are_one_line(fake, monkeypatch, capsys):
    def load(*_, **__):
        raise UserError("checkpoint is\ncorrupt")

    monkeypatch.setattr(FakeCascade, "load", load)
    fake("--prompt", "a", code=2)
    assert capsys.readouterr().err == "error: checkpoint is corrupt\n"


def reproduce(path, *arguments, code=0):
    FakeCascade.calls.clear()
    assert sample.main(["--reproduce", str(path), "--no-cache", *arguments]) == code


def test_reproduce(fake, tmp_path, capsys):
    fake("--prompt", "a", "--seed", "5", "--steps", "7", "--cfg-b", "3", "--batch-size", "2", "--tile", "64")
    path = tmp_path / "out" / "00000-a-5.png"
    settings = FakeCascade.last_settings
    reproduce(path)
    assert FakeCascade.calls[1] == ("generate", [("a", 5)], 2, False)
    assert FakeCascade.last_settings == settings
    assert listing(tmp_path) == ["00000-a-5-1.png", "00000-a-5.png"]
    assert "reproduced: yes, every pixel is bit-identical" in capsys.readouterr().out
    reproduce(path, "--output", str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "00000-a-5.png").exists()
    image = pictures.load_pixels(path)
    image[0, 0, 0] ^= 128
    pictures.save(tmp_path, "changed", image, pictures.read_metadata(path))
    reproduce(tmp_path / "changed.png")
    assert "reproduced: NO, 0.00% of the values differ, by 128 of 255" in capsys.readouterr().out


def test_reproduce_refuses_another_model(fake, tmp_path, capsys):
    fake("--prompt", "a")
    FakeCascade.weights = "weights-2"
    reproduce(tmp_path / "out" / "00000-a-0.png", code=2)
    assert "made with checkpoint weights-1, and this is weights-2" in capsys.readouterr().err
    FakeCascade.weights = "weights-1"
    (tmp_path / "bare.py").write_text(
        "from ultrapixel_jax.config import CascadeConfig\nconfig = CascadeConfig(guidance=None)\n"
    )
    reproduce(tmp_path / "out" / "00000-a-0.png", "--config", str(tmp_path / "bare.py"), code=2)
    assert "give its own with --config" in capsys.readouterr().err
    assert len(listing(tmp_path)) == 1


def test_the_compilation_cache_is_where_it_says(fake, tmp_path, monkeypatch, capsys):
    import jax

    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    arguments = ["--prompt", "a", "--size", "256x256", "--output", str(tmp_path / "out")]
    assert sample.main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 0
    assert changed["jax_compilation_cache_dir"] == str(tmp_path / "cache")
    assert FakeCascade.executables == tmp_path / "cache" / "executables"
    assert str(tmp_path / "cache") in capsys.readouterr().out
    changed.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")  # a default that cannot be written is no mistake
    assert sample.main([*arguments, "--seed", "1"]) == 0
    assert not changed and "no compilation cache" in capsys.readouterr().err
    assert FakeCascade.executables is None
    (tmp_path / "file").touch()
    assert sample.main([*arguments, "--cache-dir", str(tmp_path / "file")]) == 2


@pytest.mark.parametrize("name", STREAMS)
def test_pictures_are_saved_whatever_the_terminal_does(name, fake, tmp_path, monkeypatch):
    make, code, _ = STREAMS[name]
    for lost in ("stdout", "stderr"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, lost, stream := make())
            prompts = ["--prompt", "猫 🐈", "--prompt", "two", "--negative-prompt", lost]
            fake(*prompts, code=code if lost == "stdout" else 0)
        if stream is not None:
            stream.close()
    first = ["00000-猫-0.png", "00000-猫-0-1.png"]
    assert {*first} <= {*listing(tmp_path)}
    assert name == "pipe" or len(listing(tmp_path)) == 4  # without a reader it ends, after what was drawn


class Terminal:
    def isatty(self):
        return True

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def test_bars_only_on_a_terminal(monkeypatch):
    assert not Progress(1, 0, quiet=False).visible
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not Progress(1, 0, quiet=True).visible
    with Progress(3, 1, quiet=False) as progress:
        for stage in ("C low", "C high", "B", "C low"):
            for step in range(1, 5):
                progress(stage, step, 4)
                assert (progress._steps.n, progress._steps.total) == (step, 4)
        progress.picture(Path("x.png"))
        assert progress._pictures.n == 2
