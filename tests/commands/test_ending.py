"""How commands end, and what they write to: terminals without a character, closed pipes, full disks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ultrapixel_jax import commands
from ultrapixel_jax.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    assert commands.run(lambda: None, interrupted="") == 0
    assert commands.run(lambda: 7, interrupted="") == 7
    assert commands.run(lambda: fail(UserError("two\nlines")), interrupted="") == 2
    assert commands.run(lambda: fail(KeyboardInterrupt()), interrupted="go on") == 130
    assert capsys.readouterr().err == "error: two lines\ninterrupted: go on\n"
    with pytest.raises(BrokenPipeError):  # that of another pipe is no reader's doing
        commands.run(lambda: fail(BrokenPipeError()), interrupted="")


@pytest.mark.parametrize(
    "command", [["sample.py"], ["train.py", "configs/train/tiny.py"], ["-m", "convert"]], ids=lambda c: c[-1]
)
def test_help_without_jax_into_a_closed_pipe(command: list[str]) -> None:
    """As `--help | head`: quiet, and as quick as without jax."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False,
    )  # fmt: skip
    os.close(write)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert not said
    assert done.returncode in (0, 141)  # argparse itself says nothing of a closed pipe
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported and not imported & {"jax", "flax"}


def closed_pipe() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return io.TextIOWrapper(os.fdopen(write, "wb"))


def full_disk() -> io.TextIOWrapper:
    return io.TextIOWrapper(Path("/dev/full").open("wb"))


def without_the_characters(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


STREAMS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "cp1252": (lambda: without_the_characters("cp1252"), 0, ""),
    "ascii": (lambda: without_the_characters("ascii"), 0, ""),
    "closed": (lambda: None, 0, ""),
    "full": (full_disk, 2, "error: stdout cannot be written: No space left on device; all else is done\n"),
    "pipe": (closed_pipe, 141, ""),
}
"""What stdout may be, the exit code of a command that prints much, and what it says on stderr."""


@pytest.mark.parametrize("name", STREAMS)
def test_what_stdout_may_be(name: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    make, code, said = STREAMS[name]
    stream, done = make(), []
    monkeypatch.setattr(sys, "stdout", stream)

    def action() -> None:
        print("a 猫 b" + "x" * 100_000)
        done.append(1)

    assert commands.run(action, interrupted="") == code
    assert sys.stdout is stream and done == ([] if name == "pipe" else [1])
    assert capfd.readouterr().err == said
    if name in ("cp1252", "ascii"):
        assert stream.buffer.getvalue().startswith(b"a ? b")
    elif stream is not None:
        stream.close()  # nothing is left that would fail now


@pytest.mark.parametrize("make", [full_disk, closed_pipe, lambda: None])
def test_a_lost_stderr_changes_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)

    def action(code: int) -> int:
        for _ in range(3):
            print("x" * 100_000, file=sys.stderr, flush=True)
        if code == 2:
            raise UserError("no")
        return code

    assert [commands.run(lambda c=c: action(c), interrupted="") for c in (0, 7, 2)] == [0, 7, 2]
    if stream is not None:
        stream.close()


COMMANDS = (
    "sample", "train", "convert.__main__", "ultrapixel_jax.data.build", "ultrapixel_jax.data.cache",
    "ultrapixel_jax.data.preview", "ultrapixel_jax.evaluate.__main__",
    "ultrapixel_jax.demo.train", "ultrapixel_jax.demo.sheet", "ultrapixel_jax.demo.world.build",
    "ultrapixel_jax.demo.world.words", "ultrapixel_jax.demo.measure.ablations",
    "ultrapixel_jax.demo.measure.card", "ultrapixel_jax.demo.measure.evaluate",
    "ultrapixel_jax.demo.measure.validate", "ultrapixel_jax.web.__main__",
    "ultrapixel_jax.demo.measure.control", "ultrapixel_jax.demo.measure.grid",
    "ultrapixel_jax.demo.measure.steps",
    "ultrapixel_jax.demo.measure.subject", "ultrapixel_jax.demo.world.subject",
    "benchmarks.sampling", "benchmarks.topologies",
    "benchmarks.layers", "benchmarks.start_up", "benchmarks.training", "benchmarks.data", "benchmarks.memory",
    "benchmarks.starting", "benchmarks.house", "benchmarks.absent_tpu", "benchmarks.ahead",
    "benchmarks.named_checkpoint", "benchmarks.parity", "benchmarks.profiling", "benchmarks.torch_times",
)  # fmt: skip


def test_every_command_is_in_the_table() -> None:
    folders = ("ultrapixel_jax", "convert", "benchmarks")
    paths = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert found == {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_wherever_it_goes(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    main = import_module(name).main
    preset = [str(ROOT / "configs" / "train" / "tiny.py")] if name == "train" else []
    for make in (full_disk, closed_pipe, lambda: None, lambda: without_the_characters("ascii")):
        stream = make()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            try:
                code = main([*preset, "--help"])
            except SystemExit as stop:
                code = stop.code
        if stream is not None:
            stream.close()
        assert code in (0, 2, 141)
    assert capfd.readouterr().err in ("", STREAMS["full"][2])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream := without_the_characters("ascii"))
        assert main([*preset, "--猫"]) == 2
        said = bytes(stream.buffer.getvalue())  # type: ignore[attr-defined]
        assert said.startswith(b"error: ") and said.count(b"\n") == 1


def test_closed_descriptors_are_no_files_of_ours(tmp_path: Path) -> None:
    """As `>&- 2>&- <&-`: the next file that is opened would be what C libraries print to."""
    code = (
        "import os\nfrom pathlib import Path\nfrom ultrapixel_jax import commands\n"
        "def action():\n"
        "    with Path('file').open('w') as file:\n"
        "        print('lost'); os.write(1, b'lost'); os.write(2, b'lost'); file.write('kept')\n"
        "raise SystemExit(commands.run(action, interrupted=''))\n"
    )
    command = f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' >&- 2>&- <&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "kept"


HEAVY = ("jax", "flax", "torch", "tensorflow_datasets", "grain", "transformers")
ASK = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv, out, code = [name, "--help"], io.StringIO(), None
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(name, run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code and "usage: " in out.getvalue(), (name, code, out.getvalue())
    heavy = [module for module in {heavy} if module in sys.modules]
    assert not heavy, (name, heavy)
"""


def test_help_imports_nothing_heavy() -> None:
    # One process for all: what one imports would show in all after it, and the first is named.
    code = ASK.replace("{heavy}", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMANDS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
