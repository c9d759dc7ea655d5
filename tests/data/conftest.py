"""Small captioned images in each of the forms that `data.build` reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrapixel_jax.data.build import build

SIZES = [(70, 70), (64, 128), (130, 66), (200, 200), (96, 100), (150, 300)]
"""Height and width, of several buckets of areas 64² and 128² and ratios 1/1 and 1/2."""
AREAS, RATIOS = (64, 128), ("1/1", "1/2")


def encoded(index: int, size: tuple[int, int] | None = None, kind: str = "JPEG") -> bytes:
    """An image that differs from the others, smooth enough for JPEG."""
    h, w = size or SIZES[index % len(SIZES)]
    rng = np.random.default_rng(index)
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
    out = io.BytesIO()
    small.resize((w, h), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def write_folder(root: Path, count: int) -> Path:
    """Images in two folders, captions as .json and .txt in turn."""
    for i in range(count):
        folder = root / f"part{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        kind = ("JPEG", "PNG", "WEBP")[i % 3]
        (folder / f"{i:03d}.{kind.lower()}").write_bytes(encoded(i, kind=kind))
        if i % 2:
            (folder / f"{i:03d}.txt").write_text(f"caption {i}\n")
        else:
            (folder / f"{i:03d}.json").write_text(json.dumps({"caption": f"caption {i}", "x": 1}))
    return root


def write_tars(root: Path, count: int) -> Path:
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard, count, 2):
                caption = json.dumps({"caption": f"caption {i}"}).encode()
                for name, data in ((f"{i:03d}.jpg", encoded(i)), (f"{i:03d}.json", caption)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


def write_lines(root: Path, count: int) -> Path:
    (root / "pictures").mkdir(parents=True)
    lines = []
    for i in range(count):
        (root / "pictures" / f"{i:03d}.jpg").write_bytes(encoded(i))
        lines.append(json.dumps({"image": f"pictures/{i:03d}.jpg", "caption": f"caption {i}"}))
    (root / "list.jsonl").write_text("\n".join(lines) + "\n")
    return root / "list.jsonl"


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "folder": write_folder,
    "webdataset": write_tars,
    "jsonl": write_lines,
}


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 26 images."""
    root = tmp_path_factory.mktemp("data")
    build(str(write_folder(root / "images", 26)), str(root / "records"), shard_images=8, quiet=True)
    return root / "records"
