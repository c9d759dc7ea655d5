"""Prompts to token ids, with the tokenizer that lies in a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ultrapixel_jax.errors import UserError

BYTE_TOKENIZER = Path(__file__).parent / "assets" / "byte_tokenizer"
"""CLIP's byte-level alphabet without merges: 514 tokens, for small models trained from nothing."""
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
"""What a tokenizer consists of, on disk; not all of them need be there."""


def is_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` holds a tokenizer's files."""
    files = Path(directory)
    return (files / "tokenizer.json").is_file() or all(
        (files / name).is_file() for name in ("vocab.json", "merges.txt")
    )


class Tokenizer:
    """CLIP's tokenizer from a directory with `tokenizer.json`, or `vocab.json` and `merges.txt`."""

    def __init__(self, directory: str | Path, length: int = 77) -> None:
        directory = Path(directory)
        if not is_tokenizer(directory):
            raise UserError(
                f"no tokenizer in {directory}: it needs tokenizer.json, or vocab.json and merges.txt "
                "(they lie beside CLIP's weights); convert again with them in the source directory"
            )
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
        from transformers import CLIPTokenizer

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(directory))
        except Exception as error:
            raise UserError(f"the tokenizer in {directory} cannot be read: {error}") from error
        self.length = length
        """Tokens per prompt, after padding and truncation."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tokenizer)

    def __call__(self, prompts: Sequence[str]) -> tuple[Int32[np.ndarray, "b n"], Int32[np.ndarray, "b n"]]:
        """Ids and mask (1 for tokens, 0 for padding), padded and truncated to `length`."""
        out = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="np"
        )
        return out["input_ids"].astype(np.int32), out["attention_mask"].astype(np.int32)

    def truncated(self, prompt: str) -> str | None:
        """The part of `prompt` that is cut off, None if it fits; start and end take two tokens."""
        out = self._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = out["offset_mapping"]
        if len(offsets) <= self.length - 2:
            return None
        return prompt[offsets[self.length - 2][0] :]
