"""Checkpoint files of any size in the released formats, with weights made from names.

    python -m benchmarks.named_checkpoint --config configs/lite.py --dtype bfloat16 DIRECTORY
    python -m benchmarks.named_checkpoint --component stage_c --dtype bfloat16 DIRECTORY

For measuring conversion and sampling at full size without the released weights. Memory: one tensor.
Stage A, the previewer and the encoders are float32, as released. Beside CLIP lies a tokenizer whose
vocabulary is the byte alphabet, padded to the configured size.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE
from ultrapixel_jax.config import CascadeConfig, load_config

SAMPLING = ("clip_text", "stage_c", "guidance", "stage_b", "stage_a", "previewer")
FLOAT32 = ("stage_a", "previewer", "effnet_encoder")


def write_component(directory: Path, name: str, config: CascadeConfig, dtype: np.dtype) -> Path:
    """Write one component's file."""
    from convert.export import released_format, released_shapes
    from ultrapixel_jax.checkpoints.named_weights import tensor
    from ultrapixel_jax.layouts.files import write_safetensors

    shapes = released_shapes(released_format(name, getattr(config, name)), getattr(config, name))
    dtype = np.dtype(np.float32) if name in FLOAT32 else dtype
    path = directory / f"{name}.safetensors"
    specs = {key: (shape, dtype) for key, shape in shapes.items()}
    write_safetensors(path, specs, lambda key: tensor(key, shapes[key]).astype(dtype))
    return path


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """The byte tokenizer with unused entries before its two markers, which CLIP has at the end."""
    from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER

    vocabulary = json.loads((BYTE_TOKENIZER / "vocab.json").read_text())
    markers = [token for token in vocabulary if token.startswith("<|")]
    plain = {token: i for token, i in vocabulary.items() if token not in markers}
    unused = {f"<unused {i}>": i for i in range(len(plain), vocab_size - len(markers))}
    ends = {token: vocab_size - len(markers) + i for i, token in enumerate(markers)}
    (directory / "vocab.json").write_text(json.dumps(plain | unused | ends))
    for name in ("merges.txt", "tokenizer_config.json"):
        (directory / name).write_bytes((BYTE_TOKENIZER / name).read_bytes())


def main(argv: list[str] | None = None) -> int:
    """Write the files that the command line asks for; returns the exit code."""
    p = commands.Parser("python -m benchmarks.named_checkpoint", __doc__)
    p.argument("directory", Path, "where files are written")
    p.option("--config", Path, "sizes of the networks", Path("configs/full.py"), metavar="FILE")
    p.option(
        "--component", str, "one alone; may be given again", shown="all that sampling needs", action="append"
    )
    p.option("--dtype", DTYPE, "of the weights", "bfloat16")

    def run() -> None:
        options = p.read(argv)
        config = load_config(options.config)
        dtype = np.dtype(ml_dtypes.bfloat16 if options.dtype == "bfloat16" else np.float32)
        options.directory.mkdir(parents=True, exist_ok=True)
        for name in options.component or SAMPLING:
            began = time.perf_counter()
            path = write_component(options.directory, name, config, dtype)
            if name == "clip_text":
                write_tokenizer(options.directory, config.clip_text.vocab_size)
            size = path.stat().st_size
            print(f"{path}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)

    return commands.run(run, interrupted="files under way are not whole")


if __name__ == "__main__":
    sys.exit(main())
