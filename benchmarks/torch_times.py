"""Times of diffusers and transformers for the same components, on a GPU or this CPU, eager and compiled.

    python -m benchmarks.torch_times c-plain b a --config configs/full.py --sizes 4096x4096 [--json FILE]

Beside `benchmarks.sampling` on the same machine: the same shapes, batch (both halves of classifier-free
guidance) and dtype, random weights made on the device. That both compute the same is what the tests and
`benchmarks.sampling` on a CPU are for. Nothing of jax runs, so that torch has all the memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, check_names, in_own_process, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import Bucket, parse_size

COMPONENTS = {
    "clip": "text encoder, prompt and negative prompt",
    "c-plain": "step of stage C at full size, without guidance",
    "b": "step of stage B",
    "a": "stage A's decoder, whole",
}
COLUMNS = (
    ("name", "component"), ("size", "picture"), ("dtype", "dtype"), ("device", "device"),
    ("eager_s", "eager, s"), ("compiled_s", "compiled, s"), ("compile_s", "compiling, s"),
    ("peak_gb", "peak, GB"), ("failed", "not compiled"),
)  # fmt: skip


def component(name: str, config: Any, size: tuple[int, int], dtype: Any, device: str) -> Any:
    """(model, function of the model that runs it once)."""
    import torch

    from benchmarks import torch_models

    bucket = Bucket.of(*size, *([config.guidance.lr_side] if config.guidance else []))
    torch.manual_seed(0)
    of = torch.float32 if name == "a" else dtype

    def values(*shape: int) -> Any:
        return torch.randn(*shape, device=device, dtype=of)

    with torch.device(device):
        if name == "clip":
            c = config.clip_text
            model = torch_models.clip(c).to(of)
            ids = torch.randint(0, c.vocab_size - 1, (2, c.positions))
            ids[:, -1] = c.vocab_size - 1
            return model, lambda m: m(input_ids=ids).text_embeds
        if name == "a":
            model = torch_models.paella(config.stage_a).to(of)
            z = values(1, config.stage_a.c_latent, *bucket.stage_b)
            return model, lambda m: m.decode(z).sample
        c = config.stage_c if name == "c-plain" else config.stage_b
        model = torch_models.unet(c).to(of)
    r = torch.full((2,), 0.6, device=device, dtype=of)
    if name == "c-plain":
        x = values(2, c.c_latent, *bucket.hr)
        more = {
            "clip_text_pooled": values(2, 1, c.c_clip_text_pooled),
            "clip_text": values(2, config.clip_text.positions, c.c_clip_text),
            "clip_img": torch.zeros(2, 1, c.c_clip_img, device=device, dtype=of),
        }
    else:
        x = values(2, c.c_latent, *bucket.stage_b)
        more = {"clip_text_pooled": values(2, 1, c.c_clip), "effnet": values(2, c.c_effnet, *bucket.hr)}
    return model, lambda m: m(x, r, **more).sample


def measure(o: argparse.Namespace, name: str, size: tuple[int, int]) -> Row:
    """Times of one component in this process."""
    import torch

    from ultrapixel_jax.config import load_config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    row: Row = {
        "name": name, "size": f"{size[0]}x{size[1]}", "dtype": "float32" if name == "a" else o.dtype,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip
    torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does by default
    torch.backends.cudnn.allow_tf32 = True
    model, once = component(name, load_config(o.config), size, getattr(torch, o.dtype), device)

    def done() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def median(run: Callable[[], Any]) -> float:
        run()
        done()
        times = []
        for _ in range(o.repeat):
            began = time.perf_counter()
            run()
            done()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    with torch.inference_mode():
        row["eager_s"] = median(lambda: once(model))
        if device == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if o.compile:
            began = time.perf_counter()
            try:
                compiled = torch.compile(model.decode if name == "a" else model)
                run = (lambda: once(_Decoder(compiled))) if name == "a" else (lambda: once(compiled))
                run()
                done()
                row["compile_s"] = time.perf_counter() - began
                row["compiled_s"] = median(run)
            except Exception as error:  # whatever its compilers raise: the eager time stands
                row["failed"] = " ".join(str(error).split())[:200]
    return row


class _Decoder:
    """A compiled `decode` where a model is wanted."""

    def __init__(self, decode: Callable[..., Any]) -> None:
        self.decode = decode


def parser() -> commands.Parser:
    """The command line."""
    epilog = "\n".join(f"  {name:8} {what}" for name, what in COMPONENTS.items())
    p = commands.Parser("python -m benchmarks.torch_times", __doc__, epilog=epilog)
    p.argument("names", str, "see below; default: all", nargs="*", metavar="COMPONENT")
    p.option("--config", Path, "sizes of the networks", Path("configs/full.py"), metavar="FILE")
    p.option("--sizes", parse_size, "of pictures", [(4096, 4096)], shown="4096x4096", nargs="+",
             metavar="HEIGHTxWIDTH")  # fmt: skip
    p.option("--dtype", DTYPE, "of computing, but for stage A", "bfloat16")
    p.option("--repeat", whole(1, 10_000), "runs that are timed, after one more", 5)
    p.flag("--no-compile", "eager alone")
    p.option("--json", Path, "write what was measured", metavar="FILE")
    p.flag("--here", argparse.SUPPRESS)  # in this process, as JSON
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        o = parser().read(argv)
        check_names("component", o.names, COMPONENTS)
        o.compile = not o.no_compile
        if o.here:
            print(json.dumps(measure(o, o.names[0], o.sizes[0])))
            return
        try:
            import diffusers  # noqa: F401
        except ImportError as error:
            raise UserError(f"{error.name} is not installed; it is what is timed here") from error
        rows = []
        for name in o.names or COMPONENTS:
            for height, width in o.sizes:
                given = [name, "--here", "--config", str(o.config), "--sizes", f"{height}x{width}",
                         "--dtype", o.dtype, "--repeat", str(o.repeat)]  # fmt: skip
                given += ["--no-compile"] if o.no_compile else []
                row = in_own_process("benchmarks.torch_times", f"{name} {height}x{width}", given)
                rows += [row] if row else []
                keep(o.json, rows)
        print(table(COLUMNS, rows))

    return commands.run(run, interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
