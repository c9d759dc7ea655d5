"""The tokenizer against transformers' own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, PREPARED, Tokenizer, prepared
from ultrapixel_jax.checkpoints.weights import DEMO
from ultrapixel_jax.errors import UserError

LENGTH = 12
WORDS = (
    "a",
    " red",
    "circle's",
    "ß",
    "É",
    "e\u0301",
    "漢",
    "😀",
    "  ",
    "\n",
    "<|endoftext|>",
    "9",
    "!!",
    "ﬁ",
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=20).map("".join))


@pytest.fixture(scope="module", params=[BYTE_TOKENIZER, DEMO / "tokenizer"], ids=["bytes", "demo"])
def pair(request, tmp_path_factory):
    """transformers' tokenizer, and ours read without and with the prepared file."""
    plain, ready = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("ready")
    for directory in (plain, ready):
        shutil.copytree(request.param, directory, dirs_exist_ok=True)
        (directory / PREPARED).unlink(missing_ok=True)
    (ready / PREPARED).write_text(prepared(ready), encoding="utf-8")
    ours = [Tokenizer(directory, LENGTH) for directory in (plain, ready)]
    return CLIPTokenizer.from_pretrained(str(plain)), ours


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_ids_masks_and_what_is_cut_off(pair, texts):
    theirs, ours = pair
    expected = theirs(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )  # fmt: skip
    for tokenizer in ours:
        ids, mask = tokenizer(texts)
        assert ids.dtype == mask.dtype == np.int32
        np.testing.assert_array_equal(ids, expected["input_ids"])
        np.testing.assert_array_equal(mask, expected["attention_mask"])
        assert tokenizer.vocab_size == len(theirs)
        for text in texts:
            whole = theirs(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = whole["offset_mapping"]
            rest = text[offsets[LENGTH - 2][0] :] if len(offsets) > LENGTH - 2 else None
            assert tokenizer.truncated(text) == rest


def test_another_padding_is_kept(tmp_path):
    """The released cascade's tokenizer pads with `!`."""
    shutil.copytree(BYTE_TOKENIZER, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "tokenizer_config.json"
    text = config.read_text()
    assert '"pad_token": "<|endoftext|>"' in text
    config.write_text(text.replace('"pad_token": "<|endoftext|>"', '"pad_token": "!"'))
    (tmp_path / PREPARED).write_text(prepared(tmp_path))
    ids, mask = Tokenizer(tmp_path, LENGTH)(["a"])
    pad = CLIPTokenizer.from_pretrained(str(tmp_path)).convert_tokens_to_ids("!")
    assert ids[0, 3:].tolist() == [pad] * (LENGTH - 3) and mask[0].tolist() == [1] * 3 + [0] * (LENGTH - 3)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer(tmp_path)
    shutil.copytree(BYTE_TOKENIZER, tmp_path, dirs_exist_ok=True)
    (tmp_path / PREPARED).write_text("{}")
    with pytest.raises(UserError, match=r"cannot be read.*convert again"):
        Tokenizer(tmp_path)


def test_the_demo_needs_no_transformers():
    """Importing it takes as long as drawing a picture."""
    assert (DEMO / "tokenizer" / PREPARED).read_text(encoding="utf-8") == prepared(DEMO / "tokenizer")
    script = (
        "import sys; from pathlib import Path; from ultrapixel_jax.checkpoints.tokenizer import Tokenizer; "
        f"Tokenizer(Path({str(DEMO / 'tokenizer')!r})); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
