"""What the documentation shows to type runs, with tiny networks in the place of the demo's."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from configs.tiny import config
from tests.conftest import ROOT
from ultrapixel_jax import UltraPixel

LOAD = UltraPixel.load
assert config.guidance is not None
SQUARE = dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, lr_side=8))
"""Its LR pass has the size of a picture of 256×256, to which `tiny` takes all pictures."""


@pytest.fixture(scope="module")
def model():
    return LOAD(config=SQUARE, cache=False)


@pytest.fixture
def tiny(model, monkeypatch, tmp_path):
    """Few steps, small networks, and files that go elsewhere."""
    stream = UltraPixel.stream

    def short(self, prompt, **options):
        sides = {name: min(256, options[name]) for name in ("height", "width")}
        return stream(self, prompt, **{**options, **sides, "steps": 1, "steps_b": 1})

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


def test_the_notebook_runs_and_keeps_its_outputs(tiny):
    path = ROOT / "docs" / "quickstart.ipynb"
    assert path.stat().st_size < 1_500_000
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "docs/quickstart.ipynb", "exec"), names)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/jpeg" in output["data"] for cell in cells for output in cell["outputs"]) == 4
    assert names["plan"].size == names["image"].size == (256, 256)
