"""The contact sheet shows every picture in its place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.demo import sheet
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.requests import Request

RUN = pictures.Run("weights", "config", "float32", 1, {}, lr_side=12)
PROMPTS = ("a red circle", "a blue star")
SIZES = ((256, 256), (512, 256))


def colour(prompt: int, size: int) -> tuple[int, int, int]:
    return 40 + 100 * prompt, 50 + 100 * size, 60


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Pictures of one colour each, the largest ones with a white pixel at (200, 100)."""
    (tmp_path / "pictures").mkdir()
    for s, (height, width) in enumerate(SIZES):
        for p, prompt in enumerate(PROMPTS):
            image = np.full((height, width, 3), colour(p, s), np.uint8)
            image[200, 100] = 255
            request = Request(prompt, "", 0, height, width, DiffusionConfig(), DiffusionConfig())
            pictures.save(tmp_path / "pictures", f"{s}{p}", image, pictures.describe(request, RUN))
    return tmp_path / "pictures"


def test_columns_are_prompts_and_rows_are_sizes(directory: Path, tmp_path: Path) -> None:
    side, output = 64, tmp_path / "sheet.png"
    assert sheet.main([str(directory), str(output), "--side", str(side)]) == 0
    out = np.asarray(Image.open(output))
    step, left, top = side + sheet.GAP, sheet.LEFT, sheet.LINES * sheet.LINE + sheet.GAP
    assert out.shape == (top + 3 * step, left + 2 * step, 3)
    for p in range(2):
        for row, s in enumerate((0, 1, 1)):  # the last row is the middle of the larger ones
            assert tuple(out[top + step * row + 5, left + step * p + 5]) == colour(p, s)
        middle = sheet.middle(Image.open(directory / f"1{p}.png"), 2 * side)
        assert np.asarray(middle)[200 - 192, 100 - 64].tolist() == [255, 255, 255]


def test_a_strip_has_every_size_larger_ones_larger(directory: Path, tmp_path: Path) -> None:
    side, output = 64, tmp_path / "strip.png"
    assert sheet.main([str(directory), str(output), "--side", str(side), "--strip"]) == 0
    out = np.asarray(Image.open(output)).astype(int)
    seen = {  # pixels in each colour: area of the largest is side², of half as many pixels side² / √2
        (p, s): int((abs(out - colour(p, s)).max(axis=2) < 12).sum()) for p in range(2) for s in range(2)
    }
    for (_, s), pixels in seen.items():
        assert pixels == pytest.approx(side**2 / (1 if s else 2**0.5), rel=0.06)


def test_what_is_no_picture_is_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert sheet.main([str(tmp_path / "empty"), "x.png"]) == 2
    assert sheet.main([str(directory), "x.txt"]) == 2
    assert sheet.main([str(directory), str(tmp_path / "no" / "x.png")]) == 2
    Image.new("RGB", (8, 8)).save(directory / "other.png")
    assert sheet.main([str(directory), "x.png"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and "has no picture" in errors[0] and "x.txt" in errors[1]
