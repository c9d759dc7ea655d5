"""What the runs of a test session share: compiled programs and a small dataset."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.training.tiny_run import SIZES, Launcher, only_line, write_latents
from ultrapixel_jax.compilation import cache as compilation_cache


@pytest.fixture(scope="session")
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Of runs whose programs are compiled once, and kept for the next session as pytest's own cache is."""
    cache = request.config.cache
    assert cache is not None
    return Launcher(Path(cache.mkdir("tiny_run")))


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 examples in two buckets."""
    return write_latents(tmp_path_factory.mktemp("latents") / "data")


@pytest.fixture(scope="session")
def one_bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many in one bucket, for which half as much is compiled."""
    return write_latents(tmp_path_factory.mktemp("one_bucket") / "data", sizes=SIZES[1:])


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command line of `train.py` in this process, which is to end in one line, and returns that."""
    monkeypatch.setattr(compilation_cache, "use", lambda: Path("unused"))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*argv: object) -> str:
        code = train.main([str(argument) for argument in argv])
        said = capfd.readouterr()
        assert (code, said.out) == (2, ""), said.err
        return only_line(said.err)

    return run
