"""Bad input to ``sample.py``: one line, exit code 2, and nothing heavy imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sample
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling.options import parse_arguments

ROOT = Path(sample.__file__).parent
HEAVY = ("jax", "flax", "orbax", "transformers", "tensorflow", "torch")

P = ["--prompt", "a"]
BAD = [
    ([], "nothing to draw"),
    (["--promt", "a"], "unknown option: '--promt'; did you mean '--prompt'"),
    (["--promp", "a"], "did you mean '--prompt'"),
    ([*P, "--stepsb", "3"], "did you mean '--steps-b'"),
    ([*P, "--hieght=512", "--width", "512"], "did you mean '--height'"),
    (["a cat"], "unexpected argument 'a cat'; put a prompt in quotes"),
    ([*P, "cat"], "unexpected argument 'cat'"),
    (["--prompt"], "expected one argument"),
    (["--prompt", "-x"], "--option=value"),
    (["--prompt", "a\udc80"], "not valid Unicode"),
    ([*P, "--negative-prompt", "\udc80"], "not valid Unicode"),
    ([*P, "--size", "512"], "HEIGHTxWIDTH"),
    ([*P, "--size", "100x512"], "height 100 is outside 256 to 8192"),
    ([*P, "--size", "512x9000"], "width 9000 is outside"),
    ([*P, "--size", "512x4096"], "aspect ratio of 8.00:1"),
    ([*P, "--height", "512", "--width", "4096"], "aspect ratio"),
    ([*P, "--height", "512"], "--width is missing"),
    ([*P, "--width", "512"], "--height is missing"),
    ([*P, "--height", "255", "--width", "512"], "--height 255 is outside"),
    ([*P, "--size", "512x512", "--width", "512"], "either --size or"),
    ([*P, "--num-images", "0"], "--num-images 0 is outside"),
    ([*P, "--num-images", "two"], "--num-images 'two' is not a whole number"),
    ([*P, "--seed", "-1"], "--seed -1 is outside"),
    ([*P, "--seed", "4294967296"], "--seed 4294967296 is outside"),
    ([*P, "--seed", "4294967295", "--num-images", "2"], "seed 4294967296 is outside"),
    ([*P, "--seed", "1.5"], "not a whole number"),
    ([*P, "--steps", "0"], "--steps 0 is outside 1 to 1000"),
    ([*P, "--steps-b", "1001"], "--steps-b 1001 is outside"),
    ([*P, "--cfg", "nan"], "--cfg 'nan' is not a finite number"),
    ([*P, "--cfg-b", "x"], "--cfg-b 'x' is not a number"),
    ([*P, "--shift", "0"], "--shift '0' must be above 0"),
    ([*P, "--shift-b", "-1"], "--shift-b '-1' must be above 0"),
    ([*P, "--sampler", "ddmp"], "--sampler 'ddmp' is not known; did you mean 'ddpm'"),
    ([*P, "--sampler-b", "euler"], "--sampler-b"),
    ([*P, "--eta", "1.5"], "--eta '1.5' must be at least 0 and at most 1"),
    ([*P, "--eta-b", "-0.5"], "--eta-b '-0.5' must be at least 0"),
    ([*P, "--schedule", "cosin"], "did you mean 'cosine'"),
    ([*P, "--schedule-b", "none"], "--schedule-b"),
    ([*P, "--dtype", "float16"], "become NaN; use bfloat16 or float32"),
    ([*P, "--dtype", "int8"], "dtype 'int8' is not known"),
    ([*P, "--mesh", "data"], "write it like data=2,fsdp=2,tensor=2"),
    ([*P, "--mesh", "data=2,fdsp=2"], "unknown mesh axis: 'fdsp'; did you mean 'fsdp'"),
    ([*P, "--mesh", "data=0"], "size 0; use 1 or more"),
    ([*P, "--mesh", "data=2,data=2"], "twice"),
    ([*P, "--mesh", "data=-1"], "write it like"),
    ([*P, "--batch-size", "0"], "--batch-size 0 is outside"),
    ([*P, "--tile", "4"], "--tile 4 is outside"),
    ([*P, "--decode-memory", "0"], "must be above 0"),
    ([*P, "--process-index", "1"], "must be below --process-count 1"),
    ([*P, "--process-count", "0"], "--process-count 0 is outside"),
    ([*P, "--cache-dir", "x", "--no-cache"], "either --cache-dir or --no-cache"),
    ([*P, "--checkpoint", "{tmp}/none"], "does not exist; give the directory"),
    ([*P, "--checkpoint", "{tmp}/file"], "is a file; give the directory"),
    ([*P, "--checkpoint", "x" * 5000], "cannot be read"),
    ([*P, "--config", "{tmp}/none.py"], "does not exist"),
    ([*P, "--config", "{tmp}/file"], "must define `config"),
    ([*P, "--config", "{tmp}/typo.py"], "'stage_d'"),
    (["--prompts", "{tmp}/none"], "does not exist"),
    (["--prompts", "{tmp}"], "cannot be read"),
    (["--prompts", "{tmp}/file"], "is empty"),
    (["--prompts", "{tmp}/bad.jsonl"], "bad.jsonl:2: unknown key: 'sead'; did you mean 'seed'"),
    (["--prompts", "{tmp}/leave.jsonl"], "leave.jsonl:1: name '../../x' would leave the output directory"),
    ([*P, "--output", "{tmp}/file"], "is not writable"),
    ([*P, "--output", "/dev/null/x"], "is not writable"),
    (["--reproduce", "{tmp}/none.png"], "does not exist"),
    (["--reproduce", "{tmp}/file"], "not a PNG"),
    (["--reproduce", "{tmp}/file", "--seed", "1"], "leave out --seed"),
    (["--reproduce", "{tmp}/file", *P], "leave out --prompt"),
]


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "typo.py").write_text(
        "from ultrapixel_jax.config import CascadeConfig\nconfig = CascadeConfig(stage_d=None)\n"
    )
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "sead": 1}\n')
    (tmp_path / "leave.jsonl").write_text('{"prompt": "a", "name": "../../x"}\n')
    return tmp_path


def filled(arguments, tmp_path):
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    return given if "--output" in given else [*given, "--output", str(tmp_path / "out")]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(inputs, capsys, arguments, message):
    assert sample.main(filled(arguments, inputs)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err
    assert not (inputs / "out").exists()


def test_bad_input_never_imports_what_is_heavy(inputs):
    # One process for all cases: the first import of a heavy package would show in every later one too.
    cases = [filled(arguments, inputs) for arguments, _ in BAD]
    code = (
        "import json, sys, sample\n"
        f"for case in json.loads({json.dumps(cases)!r}):\n"
        "    assert sample.main(case) == 2, case\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, (case, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    assert len(lines) == len(cases)
    assert all(message in line for line, (_, message) in zip(lines, BAD))
    assert "'stage_d'; did you mean 'stage_" in done.stderr  # pytest's type checks hide the hint above


def test_the_script_itself_answers_bad_input():
    command = [sys.executable, "sample.py", "--size", "1x1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: height 1 is outside 256 to 8192 pixels\n"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--size HEIGHTxWIDTH", "--steps-b", "--reproduce", "--mesh"))


def test_what_was_not_given_is_left_to_the_model():
    options = parse_arguments([*P, "--steps", "3", "--eta-b", "0"])
    assert options.settings == {"steps": 3, "eta_b": 0.0}
    assert (options.height, options.width, options.seed, options.dtype) == (1024, 1024, 0, None)
    assert parse_arguments([*P, "--mesh", "data=2, tensor=4"]).mesh == {"data": 2, "tensor": 4}
    assert parse_arguments([*P, "--dtype", "bf16", "--tile", "auto"]).dtype == "bfloat16"


def test_processes_that_share_a_mesh():
    together = ["--prompt", "x", "--coordinator", "host:1234", "--process-index", "1", "--process-count", "2"]
    options = parse_arguments([*together, "--mesh", "data=4"])
    assert options.distributed
    assert (options.coordinator, options.process_index, options.process_count) == ("host:1234", 1, 2)
    assert parse_arguments(["--prompt", "x", "--distributed", "--mesh", "data=4"]).coordinator == ""
    for arguments, words in (
        (together, "give --mesh"),
        (["--prompt", "x", "--distributed"], "give --mesh"),
        ([*together[:4], *together[6:], "--mesh", "data=4"], "--process-index and --process-count"),
        ([*together[:3], "host", *together[4:], "--mesh", "data=4"], "HOST:PORT"),
        ([*together[:2], *together[4:], "--distributed", "--mesh", "data=4"], "leave out --process-index"),
    ):
        with pytest.raises(UserError, match=words):
            parse_arguments(arguments)
