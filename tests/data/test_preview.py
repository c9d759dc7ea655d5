"""The contact sheet shows, pixel by pixel, what the loader gives to training."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from ultrapixel_jax.data import preview as command
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.data.sheet import GAP, LINE, sheet

OPTIONS = ["--areas", "64", "--ratios", "1/1", "--batch-size", "3", "--held-out", "0.2"]


def test_the_first_batches_as_training_reads_them(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sheet.png"
    assert command.main([str(records), str(file), *OPTIONS, "--batches", "2", "--start", "1"]) == 0
    assert capsys.readouterr().out == f"{file}: 2 batches\n"
    found, top = np.asarray(Image.open(file)), 0
    config = DataConfig(str(records), areas=(64,), ratios=("1/1",), batch_size=3)
    with Loader(config, held_out=0.2) as loader:
        loader.seek(1)
        for batch in (next(loader), next(loader)):
            height, width = batch["bucket"]
            top += LINE + 2 * GAP
            for i, image in enumerate(batch["image"]):
                x = GAP + i * (width + GAP)
                np.testing.assert_array_equal(found[top : top + height, x : x + width], image)
            lines = max(len(textwrap.wrap(caption or "(dropped)", 8)) for caption in batch["caption"])
            assert (found[top + height : top + height + LINE] < 128).any(), "captions"
            top += height + lines * LINE + GAP
    assert top == len(found)


def test_labels_below_pictures() -> None:
    """In as many lines as they need, three at most; of letters that there are."""
    black = np.zeros((32, 200, 3), np.uint8)
    one, three = (sheet([black], [text]) for text in ("é", "long words " * 20))
    assert one.shape[0] + 2 * LINE == three.shape[0]
    np.testing.assert_array_equal(one, sheet([black], ["e"]))
    np.testing.assert_array_equal(sheet([black], ["猫"]), sheet([black], [r"\\u732b".replace("\\\\", "\\")]))
    assert sheet([black] * 5, [""] * 5, columns=3).shape == sheet([black] * 6, [""] * 6, columns=3).shape


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{records}", "sheet.gif"], "none of .png"),
        (["{records}", "{tmp}/there.png"], "exists"),
        (["{tmp}/none", "{tmp}/a.png"], "does not exist"),
        (["{records}", "{tmp}/a.png", "--preset", str(ROOT / "configs" / "tiny.py")], "none of train.py's"),
        (["{records}", "{tmp}/a.png", "--held-out", "1e-9"], "holds out none"),
    ],
)  # fmt: skip
def test_what_is_refused(
    arguments: list[str], words: str, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.png").touch()
    assert command.main([a.format(records=records, tmp=tmp_path) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
