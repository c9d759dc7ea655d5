"""Prompts to token ids, with the tokenizer that lies in a checkpoint."""

from __future__ import annotations

import atexit
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath, is_remote, place

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BYTE_TOKENIZER = Path(__file__).parent.parent / "assets" / "byte_tokenizer"
"""CLIP's byte-level alphabet without merges: 514 tokens, for small models trained from nothing."""
PREPARED = "prepared.json"
"""The whole tokenizer, as the library under transformers saves it: read without importing transformers."""
END = "</w>"
"""What tokens end with that end a word."""
FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", PREPARED
)  # fmt: skip
"""What a tokenizer consists of, on disk; not all of them need be there."""


def is_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Whether `directory` holds a tokenizer's files."""
    files = place(directory)
    return (files / "tokenizer.json").is_file() or all(
        (files / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def local_tokenizer(directory: AnyPath) -> Path:
    """`directory`, or a temporary copy of its files where it is in a bucket, since libraries read them."""
    if not is_remote(directory):
        return directory
    copy = tempfile.TemporaryDirectory(prefix="ultrapixel_jax-tokenizer-")
    atexit.register(copy.cleanup)
    for name in FILES:
        if (directory / name).exists():
            (Path(copy.name) / name).write_bytes((directory / name).read_bytes())
    return Path(copy.name)


class Tokenizer:
    """CLIP's tokenizer from a directory with `tokenizer.json`, or `vocab.json` and `merges.txt`."""

    def __init__(self, directory: str | Path, length: int = 77) -> None:
        directory = Path(directory)
        if not is_tokenizer(directory):
            raise UserError(
                f"no tokenizer in {directory}: it needs tokenizer.json, or vocab.json and merges.txt "
                "(they lie beside CLIP's weights); convert again with them in the source directory"
            )
        ready = directory / PREPARED
        backend = _from_file(ready) if ready.is_file() else _from_transformers(directory)
        backend.enable_padding(**{**(backend.padding or {}), "length": length})
        backend.enable_truncation(length)
        self._use(backend, length)

    def _use(self, backend: Backend, length: int) -> None:
        self._backend, self.length = backend, length
        """Tokens per prompt, after padding and truncation."""
        self._spelled: dict[str, str] = {}
        self._moved: dict[int, int] = {}

    def with_tokens(self, words: Mapping[str, int], moved: Mapping[int, int] | None = None) -> Tokenizer:
        """A tokenizer that knows new words too, upper case or lower.

        Args:
            words: each new word, with the number of tokens that it is; their ids go on from `vocab_size`.
            moved: ids of tokens that get other ids, from and to.

        Raises:
            UserError: the vocabulary has such a word already.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        known, names = {name.removesuffix(END) for name in self._backend.get_vocab()}, []
        spelled: dict[str, str] = {}
        for word, count in words.items():
            if word.lower() in known or word.lower() in (other.lower() for other in spelled):
                raise UserError(
                    f"token {word!r:.80} exists already; give the new word another name, like '[{word:.40}]'"
                )
            own = [word, *(f"{word}#{i}" for i in range(1, count))]
            spelled[word], names = "".join(own), [*names, *own]
        out, backend = Tokenizer.__new__(Tokenizer), Backend.from_str(self._backend.to_str())
        if names:
            backend.add_tokens([AddedToken(name, normalized=True) for name in names])
        out._use(backend, self.length)
        out._spelled = {word: text for word, text in spelled.items() if text != word}
        out._moved = dict(moved or {})
        return out

    def found_by(self, pattern: str) -> list[int]:
        """Ids of the tokens in which the regular expression `pattern` is found, such as ``^cat</w>``.

        Raises:
            UserError: it is none, or is found in no token.
        """
        try:
            ids = [i for name, i in self._backend.get_vocab().items() if re.search(pattern, name)]
        except re.error as error:
            raise UserError(f"pattern {pattern!r:.80} is no regular expression ({error})") from error
        if not ids:
            raise UserError(
                f"pattern {pattern!r:.80} is found in none of the vocabulary's {self.vocab_size} tokens; "
                "whole words are like '^cat</w>'"
            )
        return sorted(ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._backend.get_vocab_size()

    def __call__(self, prompts: Sequence[str]) -> tuple[Int32[np.ndarray, "b n"], Int32[np.ndarray, "b n"]]:
        """Ids and mask (1 for tokens, 0 for padding), padded and truncated to `length`."""
        encodings = self._backend.encode_batch([self._written(prompt) for prompt in prompts])
        ids = np.asarray([encoding.ids for encoding in encodings], np.int32)
        for old, new in self._moved.items():
            ids[ids == old] = new
        mask = np.asarray([encoding.attention_mask for encoding in encodings], np.int32)
        return ids.reshape(-1, self.length), mask.reshape(-1, self.length)

    def truncated(self, prompt: str) -> str | None:
        """The part of `prompt` that is cut off, None if it fits; start and end take two tokens."""
        if self._spelled:
            prompt = self._written(prompt)
        rest = self._backend.encode(prompt).overflowing
        if not rest:
            return None
        first = rest[0].special_tokens_mask.index(0)
        return prompt[rest[0].offsets[first][0] :]

    def _written(self, prompt: str) -> str:
        """`prompt` with all the tokens of words that are several."""
        for word, text in self._spelled.items():
            prompt = re.sub(re.escape(word), lambda _, text=text: text, prompt, flags=re.IGNORECASE)
        return prompt


def prepared(directory: Path) -> str:
    """The contents of `prepared.json` for the tokenizer in `directory`.

    Raises:
        UserError: it cannot be read.
    """
    return _from_transformers(directory).to_str()


def _from_file(path: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the tokenizer {path} cannot be read: {error}; convert again") from error


def _from_transformers(directory: Path) -> Backend:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(directory))
    except Exception as error:
        raise UserError(f"the tokenizer in {directory} cannot be read: {error}") from error
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return backend
