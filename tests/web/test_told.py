"""What a browser is told names files, and not the folders that they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultrapixel_jax.web.told import by_name


@pytest.mark.parametrize(
    ("folder", "name"), [("loras", "cat.safetensors"), ("a folder with spaces", "b c.png"), ("猫", "c.d.png")]
)
@pytest.mark.parametrize("there", [True, False])
def test_names_alone(tmp_path: Path, folder: str, name: str, there: bool) -> None:
    file = tmp_path / folder / name
    if there:
        file.parent.mkdir()
        file.touch()
    short = name.replace(" ", "")
    said = by_name(f"{str(file)!r} is not a picture; see {tmp_path}/{short}, or (/tmp/x.y): no")
    assert str(tmp_path) not in said and folder not in said
    assert said == f"{name!r} is not a picture; see {short}, or (x.y): no"


@pytest.mark.parametrize(
    "words",
    [
        "no /api/loras here", "4/5 or 1/2", "gs://bucket/tmp/run", "https://example.org/tmp/a", "a and/or b",
        "pictures/a.png is gone", "'/api/x' is not known", "sent/tmp/x", "/",
    ],
)  # fmt: skip
def test_other_words_stay(words: str) -> None:
    assert by_name(words) == words


def test_of_one_line() -> None:
    assert "\n" not in by_name("OSError: /tmp/a\n/tmp/b") and "/tmp" not in by_name("/tmp/a\n/tmp/b")
