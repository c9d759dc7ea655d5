"""LoRAs and new words in a loaded model: others for every batch, and the base comes back bit for bit.

They are merged into the weights before a picture is drawn, so that sampling costs nothing; as shapes stay the
same, nothing of it compiles anew. The base's kernels of changed layers stay in memory beside these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ultrapixel_jax.checkpoints.loras import of_directory
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import is_remote, place
from ultrapixel_jax.layouts.lora.read import read_file
from ultrapixel_jax.models.lora import Lora, NewToken, merge, misfit
from ultrapixel_jax.sampling.conditions import Conditions, Token
from ultrapixel_jax.sampling.stages.base import Stage
from ultrapixel_jax.sampling.stages.text import EXTRA_TOKENS, TextEncoder
from ultrapixel_jax.sharding import fetch

KEPT = 4
"""LoRAs that are kept in memory on the host, so that to switch between them reads no file."""


class Word(NamedTuple):
    """A new word, and where its embedding comes from."""

    name: str
    token: NewToken
    start: str | None
    """Pattern of the tokens whose mean embedding an offset is to; None is zero."""


class Personal:
    """Switches the LoRAs and words of a cascade."""

    def __init__(
        self, config: CascadeConfig, stages: Sequence[Stage], text: TextEncoder, own: Iterable[NewToken]
    ) -> None:
        """For `stages`, whose variables are the base's; `own` are the new words of the checkpoint itself."""
        self._config, self._stages, self._text = config, stages, text
        self._tokenizer = text.tokenizer
        self._own = tuple(own)
        self._base: dict[str, Any] = {}
        """Variables of networks that are changed at present, without the change."""
        self._current: Any = None
        self._read = functools.lru_cache(KEPT)(self._opened)
        self._known = functools.lru_cache(KEPT)(lambda conditions: self._table(conditions)[0])
        if any(token.name for token in self._own):
            self.use(Conditions())

    def check(self, conditions: Conditions) -> None:
        """Read what `conditions` ask for and refuse what cannot be used, before anything is drawn.

        Raises:
            UserError: a file is no LoRA of this model or cannot be read, or a word is without embedding,
                without name, or exists already.
        """
        self._table(conditions)

    def words(self, path: str, checksum: str) -> tuple[str | None, ...]:
        """New words that the LoRA at `path` brings, as they stand in prompts; None for one whose name it does
        not say.

        Raises:
            UserError: it is no LoRA of this model, or cannot be read.
        """
        return tuple(token.name for token in self._read(path, checksum).tokens)

    def tokenizer(self, conditions: Conditions) -> Tokenizer:
        """The one that knows the words of `conditions`.

        Raises:
            UserError: as of `check`.
        """
        return self._known(Conditions(loras=conditions.loras, tokens=conditions.tokens))

    def use(self, conditions: Conditions) -> None:
        """Draw with the LoRAs and words of `conditions` from now on.

        Raises:
            UserError: as of `check`.
        """
        wanted = (conditions.loras, conditions.tokens)
        if wanted == self._current:
            return
        tokenizer, rows = self._table(conditions)
        uses: dict[str, list[Any]] = {}
        for one in conditions.loras:
            for network, own in self._read(one.file.path, one.file.checksum).changes.items():
                if one.scale:
                    uses.setdefault(network, []).append((own, one.scale))
        for network in {*uses, *self._base}:
            base = self._base.pop(network, None) or self._variables(network)
            changed = base
            if network in uses:
                self._base[network], changed = base, merge(base, uses[network])
            for stage in self._stages:
                stage.replace_variables({network: changed})
        self._text.tokenizer = tokenizer
        self._text.replace_extra(rows)
        self._current = wanted

    def bring(self, own: Iterable[NewToken]) -> None:
        """Take `own` as the new words of the weights themselves from now on."""
        self._own, self._current = tuple(own), None
        self._known.cache_clear()

    def forget(self, networks: Mapping[str, Any]) -> None:
        """`networks` have other base variables by now."""
        for network in networks:
            self._base.pop(network, None)
        self._current = None

    # ------------------------------------------------------------------------ inside

    def _variables(self, network: str) -> Any:
        return next(stage.variables[network] for stage in self._stages if network in stage.variables)

    def _opened(self, path: str, checksum: str) -> Lora:
        """The LoRA at `path`; of that `checksum`, so that a file that has changed is read again."""
        del checksum
        where, config = place(path), self._config
        if is_remote(where) or where.is_dir() or "@" in where.name:
            lora = of_directory(where, config.clip_text.vocab_size)
        else:
            lora = read_file(where, config)
        if why := misfit(lora, config.stage_c, config.clip_text):
            raise UserError(f"{path} does not fit the model: {why}")
        return lora

    def _table(self, conditions: Conditions) -> tuple[Any, np.ndarray]:
        """The tokenizer that knows the words, and the rows of the embedding that they are."""
        loras = [self._read(one.file.path, one.file.checksum) for one in conditions.loras]
        words, offsets = _named(loras, self._own, conditions.tokens), {}
        for lora in loras:
            for index, vector in lora.offsets.items():
                offsets[index] = offsets.get(index, 0) + vector
        counts = {word.name: len(word.token.vectors) for word in words}
        if len(counts) < len(words):
            twice = next(w.name for w in words if sum(w.name == other.name for other in words) > 1)
            raise UserError(f"token {twice!r:.80} is brought twice; give one of the words another name")
        size, vocabulary = sum(counts.values()) + len(offsets), self._config.clip_text.vocab_size
        if size > EXTRA_TOKENS:
            raise UserError(f"{size} new tokens are more than the {EXTRA_TOKENS} that there is room for")
        rows = np.zeros((EXTRA_TOKENS, self._config.clip_text.width), np.float32)
        if not size:
            return self._tokenizer, rows
        if self._tokenizer.vocab_size != vocabulary:
            raise UserError(
                f"the tokenizer has {self._tokenizer.vocab_size} tokens, and the text encoder {vocabulary}: "
                "new ones have no place; convert again with the tokenizer that belongs to it"
            )
        first = sum(counts.values())
        moved = {index: vocabulary + first + n for n, index in enumerate(offsets)}
        tokenizer = self._tokenizer.with_tokens(counts, moved)
        at = 0
        for word in words:
            vectors = np.asarray(word.token.vectors, np.float32)
            start = np.float32(0)
            if word.start is not None:
                start = self._embeddings(self._tokenizer.found_by(word.start)).mean(0)
            rows[at : at + len(vectors)] = vectors + start
            at += len(vectors)
        for index, vector in offsets.items():
            rows[at] = self._embeddings([index])[0] + vector
            at += 1
        return tokenizer, rows

    def _embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """Rows of the text encoder's own embedding, float32."""
        table = self._variables("clip_text")["params"]["token_embedding"]
        return fetch(table[np.asarray(ids)]).astype(np.float32)


def _named(loras: Sequence[Lora], own: Sequence[NewToken], given: Sequence[Token]) -> list[Word]:
    """All words with their names: those of the files, or in the same order the `given` ones."""
    left, out = list(given), []
    for lora in loras:
        for token in lora.tokens:
            if token.name is not None:
                out.append(Word(token.name, token, token.start))
            elif left:
                name = left.pop(0)
                out.append(Word(name.name, token, name.pattern or None))
            else:
                raise UserError(
                    f"{lora.origin} brings a new word and not its name; say it as it was trained, like "
                    "--token '[name]=^cat</w>' (in Python, token={'[name]': '^cat</w>'})"
                )
    for token in own:
        if token.name is not None:
            out.append(Word(token.name, token, token.start))
        elif left:
            name = left.pop(0)
            out.append(Word(name.name, token, name.pattern or None))
    if left:
        raise UserError(f"token {left[0].name!r:.80}: nothing that is given brings an embedding for it")
    for word in out:
        if word.token.absolute and word.start is not None:
            raise UserError(
                f"token {word.name!r:.80} has an embedding of its own; leave out the pattern "
                f"{word.start!r:.40}"
            )
    return out
