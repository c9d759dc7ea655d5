"""The demo's tokenizer: CLIP's, with merges that make one token of every word of the captions.

    python -m ultrapixel_jax.demo.world.words OUTPUT

Other words are spelled in bytes, so that every prompt has tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ultrapixel_jax import commands
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import caption
from ultrapixel_jax.errors import UserError

SCENES = 4000
"""Captions whose words are merged: enough for every word to be among them."""


def words() -> list[str]:
    """All words of the captions, in order."""
    texts = (caption(scenes.sample(0, i), 0, i) for i in range(SCENES))
    return sorted({word for text in texts for word in text.split()})


def write(output: str | Path) -> int:
    """Write the tokenizer's files to the directory `output`; returns the size of the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )  # pyright: ignore[reportCallIssue]
    trained.train_from_iterator(words(), trainer)
    pairs = json.loads(trained.to_str())["model"]["merges"]

    vocabulary = list(json.loads((BYTE_TOKENIZER / "vocab.json").read_text()))
    letters, special = vocabulary[:-2], vocabulary[-2:]
    tokens = [*letters, *("".join(pair) for pair in pairs), *special]
    directory = Path(output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "vocab.json").write_text(
            json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False, indent=0)
        )
        lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n")
        name = "tokenizer_config.json"
        (directory / name).write_text((BYTE_TOKENIZER / name).read_text())
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    return len(tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        p = commands.Parser("python -m ultrapixel_jax.demo.world.words", __doc__)
        p.argument("directory", str, "where the tokenizer is written")
        print(f"{write(p.read(argv).directory)} tokens")

    return commands.run(run, interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
