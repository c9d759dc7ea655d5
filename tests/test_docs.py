"""What the documentation shows to type runs, with tiny networks in the place of the demo's."""

from __future__ import annotations

import dataclasses
import re

import pytest

from configs.tiny import config
from tests.conftest import ROOT
from ultrapixel_jax import UltraPixel

LOAD = UltraPixel.load
assert config.guidance is not None
SQUARE = dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, lr_side=8))
"""Its LR pass has the size of a picture of 256×256, to which `tiny` takes all pictures."""


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Few steps, small networks, and files that go elsewhere."""
    model = LOAD(config=SQUARE, cache=False)
    stream = UltraPixel.stream

    def short(self, prompt, **options):
        assert options["height"] >= 256 and options["width"] >= 256
        return stream(self, prompt, **{**options, "steps": 1, "steps_b": 1, "height": 256, "width": 256})

    monkeypatch.setattr(UltraPixel, "load", lambda: model)
    monkeypatch.setattr(UltraPixel, "stream", short)
    monkeypatch.chdir(tmp_path)


def test_the_page_on_python_runs(tiny, capsys):
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 8
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "C high 1/1" in out and "height 100" not in out.split("stage_c_low")[0]
    assert set(names["image"].latents) == {"stage_c_low", "stage_c", "stage_b"}
