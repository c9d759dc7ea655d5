"""Pieces put together are the picture, at every size of it, and memory is bounded."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.web.conftest import Client
from ultrapixel_jax.web import reading, tiles

SIZE = 1100, 700
"""Width and height: neither a multiple of a piece's side, nor a power of two."""


def test_pieces_are_the_picture(web: Client, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "out" / "ünder 100%.png")
    (item,) = web.get("/api/pictures")[1]["pictures"]
    address = f"/tiles/{item['version']}/%C3%BCnder%20100%25.png"
    status, headers, data = web.raw("GET", f"{address}.dzi")
    described = ET.fromstring(data)
    assert status == 200 and "immutable" in headers["Cache-Control"]
    side, overlap = int(described.attrib["TileSize"]), int(described.attrib["Overlap"])
    assert (side, overlap, described.attrib["Format"]) == (tiles.TILE, 0, "png")
    assert described[0].attrib == {"Width": str(SIZE[0]), "Height": str(SIZE[1])}

    def level(number: int, width: int, height: int) -> np.ndarray:
        whole = np.zeros((height, width, 3), np.uint8)
        for row in range(-(-height // side)):
            for column in range(-(-width // side)):
                got = web.raw("GET", f"{address}_files/{number}/{column}_{row}.png")[2]
                piece = np.asarray(Image.open(io.BytesIO(got)))
                top, left = row * side, column * side
                assert piece.shape[:2] == (min(side, height - top), min(side, width - left))
                whole[top : top + side, left : left + side] = piece
        return whole

    np.testing.assert_array_equal(level(11, *SIZE), pixels)  # 2¹¹ is the first power of two above 1100
    mean = pixels.reshape(350, 2, 550, 2, 3).mean((1, 3))
    assert np.abs(level(10, 550, 350) - mean).max() <= 1
    assert level(0, 1, 1).shape == (1, 1, 3)
    for wrong in ("12/0_0.png", "11/3_0.png", "11/0_2.png", "11/0_0.jpg", "11/-1_0.png", "x/0_0.png"):
        status, _, answer = web.raw("GET", f"{address}_files/{wrong}")
        assert status in (400, 404) and json.loads(answer)["error"]


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    real = reading.pixels
    monkeypatch.setattr(reading, "pixels", lambda path: (opened.append(path.name), real(path))[1])
    one = 4 * 64 * 64 * 4 // 3
    monkeypatch.setattr(tiles, "BUDGET", 2 * one + 100)
    monkeypatch.setattr(tiles, "CUT", 1)
    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    cutter = tiles.Tiles()
    for name in "ababcbacb":
        cutter.cut(tmp_path / f"{name}.png", "1", 6, 0, 0)
        assert cutter.held <= 2 * one + 100
    # The last two that were asked for stay: c takes a's place, then a takes c's.
    assert opened == ["a.png", "b.png", "c.png", "a.png", "c.png", "b.png"]


def test_what_is_too_large_or_broken_is_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ultrapixel_jax.errors import UserError

    monkeypatch.setattr(reading, "MAX_PIXELS", 100)
    Image.new("L", (11, 10)).save(tmp_path / "large.png")
    Image.new("RGBA", (10, 10), "red").save(tmp_path / "fits.png")
    assert reading.pixels(tmp_path / "fits.png").getpixel((3, 3)) == (255, 0, 0)
    with pytest.raises(UserError, match=r"'large\.png' has 11x10 pixels"):
        tiles.Tiles().cut(tmp_path / "large.png", "1", 4, 0, 0)
    whole = (tmp_path / "fits.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"'cut\.png' is truncated or damaged"):
        tiles.Tiles().cut(tmp_path / "cut.png", "1", 4, 0, 0)
