"""The demo that comes with the package: small, whole, and what `sample.py` draws with by itself."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import DEMO
from ultrapixel_jax.demo.config import config
from ultrapixel_jax.demo.measure.detect import Found, detect

NETWORKS = {"clip_text", "stage_c", "guidance", "stage_b", "stage_a", "previewer", "effnet_encoder"}


def test_it_is_whole_and_small() -> None:
    sources = Sources([DEMO])
    found = {name: entry.config for name, entry in sources.entries.items()}
    assert found == {name: getattr(config, name) for name in NETWORKS}
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 24e6


def test_its_tokenizer_knows_its_words() -> None:
    tokenizer = Tokenizer(Sources([DEMO]).tokenizer, config.clip_text.positions)
    ids, _ = tokenizer(["a red circle above a striped blue square"])
    assert ids.max() < config.clip_text.vocab_size
    assert tokenizer.truncated("a small dotted orange cross right of a large checked purple triangle") is None


def draw(tmp_path: Path, colours: Iterable[str], size: str, *more: str) -> list[tuple[str, list[Found]]]:
    """(colour, what is on it) of a picture of each colour's circle."""
    words = [word for colour in colours for word in ("--prompt", f"a {colour} circle")]
    out = tmp_path / size
    assert sample.main([*words, "--size", size, "--output", str(out), "--no-cache", "--quiet", *more]) == 0
    return [
        (colour, detect(np.asarray(Image.open(path).convert("RGB"))))
        for colour, path in zip(colours, sorted(out.glob("*.png")), strict=True)
    ]


@pytest.mark.parametrize("size", ["384x384", "512x640"])
def test_a_prompt_without_a_checkpoint_gives_what_it_says(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(tmp_path, ("red", "blue", "green"), size, "--batch-size", "3")
    right = [any(found.colour == colour for found in of) for colour, of in drawn]
    assert sum(right) >= 2, drawn
    assert "the demo draws" in capsys.readouterr().err
