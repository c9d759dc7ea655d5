"""What sampling costs on this machine, by component and size: time, TFLOP/s, utilisation, memory.

    python -m benchmarks.sampling [COMPONENT ...] [--config configs/lite.py] [--sizes 1024x1024 2048x2048]
        [--dtype bfloat16] [--repeat 5] [--no-torch] [--json FILE]

Without COMPONENT, all of `COMPONENTS` are measured. Weights and inputs are random: their values do not change
the time. Every component at every size runs in a process of its own, and gives the median of the runs after
the first. Operations are counted from shapes (`ultrapixel_jax.flops`); the utilisation is relative to the
rate of a square matrix product, measured in the same process. A step is what classifier-free guidance takes:
two passes, as one batch of two.

Where torch, diffusers and transformers are installed, their implementation runs on the same weights and
inputs, alternating with this one, with as many threads, in whichever of torch's two memory layouts is faster
there; the last columns give its time, the ratio (below 1: this project is faster), and the largest difference
of the outputs relative to the largest value. On other devices than CPUs torch is left out. A guided step
alternates with one without guidance, and its ratio is to that. In bfloat16 torch rounds the time before it
embeds it, so that the outputs of a step differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, build
from benchmarks.tables import check_names, in_own_process, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, whole
from ultrapixel_jax.sizes import Bucket, parse_size

COMPONENTS = {
    "clip": "text encoder, prompt and negative prompt",
    "c-low": "step of stage C's low-resolution pass",
    "c-high": "step of stage C at full size, guided",
    "c-plain": "step of stage C at full size, without guidance",
    "prepare": "guidance upsampled to full size, once per picture",
    "b": "step of stage B",
    "a": "stage A's decoder, whole",
    "a-tiled": "stage A's decoder, tile by tile",
    "image": "a whole picture of 20 + 20 + 10 steps",
}
SIZELESS = ("clip", "c-low")
"""The same at every square size."""
COLUMNS = (
    ("name", "component"), ("size", "picture"), ("latent", "latent"), ("batch", "batch"), ("dtype", "dtype"),
    ("seconds", "time, s"), ("tflops", "TFLOP/s"), ("matmul_tflops", "matrix product, TFLOP/s"),
    ("utilisation", "utilisation"), ("peak_gb", "peak, GB"), ("temporaries_gb", "temporaries, GB"),
    ("compile_s", "compile, s"), ("cached_s", "from cache, s"),
    ("torch_s", "PyTorch, s"), ("plain_s", "unguided, s"), ("ratio", "ratio"), ("difference", "difference"),
)  # fmt: skip


def measure(o: argparse.Namespace, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Compile and run one component in this process."""
    import jax
    import numpy as np

    from ultrapixel_jax import report
    from ultrapixel_jax.compilation.options import compiler_options
    from ultrapixel_jax.config import load_config

    config = load_config(o.config)
    jax.config.update("jax_enable_compilation_cache", False)
    row: dict[str, Any] = {
        "name": name, "size": f"{size[0]}x{size[1]}", "dtype": o.dtype, "jax": jax.__version__,
        "device": jax.devices()[0].device_kind, "config": str(o.config),
    }  # fmt: skip
    if name == "image":
        return row | whole_picture(config, size, o)
    use_torch = o.torch and jax.default_backend() == "cpu"
    case = build("a" if name == "a-tiled" else name, config, size, o.dtype, torch=use_torch)
    if name.startswith("a"):
        row["dtype"] = "float32"
    row |= {"latent": f"{case.latent[0]}x{case.latent[1]}", "batch": case.batch}
    options = compiler_options(row["dtype"], wide_maps=name in ("a", "a-tiled", "b"))
    if name == "a-tiled":
        from ultrapixel_jax.sampling.tiling import decode_tiled, halo_for, tile_for_budget

        halo = halo_for(config.stage_a)
        decode = jax.jit(case.function, compiler_options=options)
        tile = tile_for_budget(4 * 10**9, config.stage_a, "float32")

        def run() -> Any:
            return decode_tiled(lambda z: decode(case.variables, z), case.inputs[0], tile, halo)

        run()
    else:
        lowered = jax.jit(case.function).lower(case.variables, *case.inputs)
        began = time.perf_counter()
        compiled = lowered.compile(options)
        row["compile_s"] = time.perf_counter() - began
        if o.cached:
            row["cached_s"] = from_cache(case, options)
        memory: Any = compiled.memory_analysis()
        row["temporaries_gb"] = memory.temp_size_in_bytes / 1e9

        def run() -> Any:
            return jax.block_until_ready(compiled(case.variables, *case.inputs))

    result = run()
    row["peak_gb"] = (report.peak_bytes() or 0) / 1e9
    reference = None if case.torch is None else faster_layout(case.torch)
    if case.plain is not None:
        plain = jax.jit(case.plain).lower(case.variables, *case.inputs).compile(options)
        reference = lambda: jax.block_until_ready(plain(case.variables, *case.inputs))  # noqa: E731
        reference()
    times, theirs = [], []
    expected: Any = None
    for _ in range(o.repeat):
        times.append(timed(run)[0])
        if reference is not None:
            seconds, expected = timed(reference)
            theirs.append(seconds)
    seconds = float(np.median(times))
    rate = report.matmul_rate(row["dtype"])
    row |= {
        "seconds": seconds, "tflops": case.operations / seconds / 1e12, "matmul_tflops": rate / 1e12,
        "utilisation": case.operations / seconds / rate,
    }  # fmt: skip
    if theirs:
        other = float(np.median(theirs))
        row |= {"torch_s" if case.plain is None else "plain_s": other, "ratio": seconds / other}
    if case.torch is not None:
        found = np.asarray(result, np.float32)
        row["difference"] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return row


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave)."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def faster_layout(reference: Callable[[bool], Any]) -> Callable[[], Any]:
    """`reference` in torch's faster memory layout here, with a thread for every core."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)

    def run(channels_last: bool) -> Any:
        with torch.inference_mode():
            return reference(channels_last)

    run(False)  # the first run of all is slower
    seconds = {}
    for channels_last in (False, True):
        seconds[channels_last] = timed(lambda last=channels_last: run(last))[0]
    return lambda: run(seconds[True] < seconds[False])


def from_cache(case: Case, options: Any) -> float:
    """Seconds until the program is ready where the compilation cache has it."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    from ultrapixel_jax.compilation import cache as compilation_cache

    with tempfile.TemporaryDirectory() as directory:
        compilation_cache.use(Path(directory))
        jax.config.update("jax_enable_compilation_cache", True)
        reset_cache()  # which remembers that it was off
        try:
            for _ in range(2):
                jax.clear_caches()  # those in memory; without, nothing would be compiled again
                lowered = jax.jit(case.function).lower(case.variables, *case.inputs)
                seconds = timed(lambda lowered=lowered: lowered.compile(options))[0]
            return seconds
        finally:
            jax.config.update("jax_enable_compilation_cache", False)


def whole_picture(config: Any, size: tuple[int, int], o: argparse.Namespace) -> dict[str, Any]:
    """A picture by the real pipeline, with random weights, as the options `o` have it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ultrapixel_jax import flops, report
    from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, Tokenizer
    from ultrapixel_jax.checkpoints.weights import Weights
    from ultrapixel_jax.models import components
    from ultrapixel_jax.report import Report
    from ultrapixel_jax.sampling.pipeline import Cascade
    from ultrapixel_jax.sampling.requests import Request

    dtype, repeat = o.dtype, o.repeat
    parts = ["clip_text", "stage_c", "stage_b", "stage_a"] + (["guidance"] if config.guidance else [])
    variables = {
        part: jax.jit(
            lambda key, part=part: components.initialise(
                part, getattr(config, part), key,
                jnp.float32 if part == "stage_a" else jnp.dtype(dtype),
            )
        )(jax.random.key(0))
        for part in parts
    }  # fmt: skip
    stages = Report()
    weights = Weights(config=config, variables=variables, tokenizer=BYTE_TOKENIZER, identity="random")
    tokenizer = Tokenizer(weights.tokenizer, config.clip_text.positions)
    cascade = Cascade(weights, tokenizer, dtype=dtype, mesh=None, report=stages, scanned=o.scanned)
    bucket = Bucket.of(*size, *([config.guidance.lr_side] if config.guidance else []))
    request = Request("a lighthouse", "", 0, *size, stage_c=config.sampling_c, stage_b=config.sampling_b)
    times, compiling = [], 0.0
    for i in range(repeat + 1):
        if i == 1:
            compiling = sum(spent for name, spent, _ in stages.rows() if name == "compile")
            cascade.report = stages = Report()  # without the compilations
        times.append(timed(lambda: cascade.generate([request], batch_size=1))[0])
    done = flops.sampling_flops(
        config.stage_c, config.guidance, config.stage_b, config.stage_a, config.clip_text,
        hr=bucket.hr, lr=bucket.lr, latent_b=bucket.stage_b,
    )  # fmt: skip
    seconds, rate = float(np.median(times[1:])), report.matmul_rate(dtype)
    operations = sum(done.values())
    return {
        "latent": f"{bucket.hr[0]}x{bucket.hr[1]}", "batch": 1, "compile_s": compiling,
        "scanned": o.scanned, "seconds": seconds, "tflops": operations / seconds / 1e12,
        "matmul_tflops": rate / 1e12, "utilisation": operations / seconds / rate,
        "peak_gb": (report.peak_bytes() or 0) / 1e9,
        "stages": {name: spent / repeat for name, spent, _ in stages.rows()},
    }  # fmt: skip


def parser() -> commands.Parser:
    """The command line."""
    epilog = "\n".join(f"  {name:8} {what}" for name, what in COMPONENTS.items())
    p = commands.Parser("python -m benchmarks.sampling", __doc__, epilog=epilog)
    p.argument("names", str, "see below; default: all", nargs="*", metavar="COMPONENT")
    p.option("--config", Path, "sizes of the networks", Path("configs/lite.py"), metavar="FILE")
    p.option("--sizes", parse_size, "of pictures", [(1024, 1024)], shown="1024x1024", nargs="+",
             metavar="HEIGHTxWIDTH")  # fmt: skip
    p.option("--dtype", DTYPE, "of computing", "bfloat16")
    p.option("--repeat", whole(1, 10_000), "runs that are timed, after one more", 5)
    p.flag("--no-torch", "leave PyTorch out")
    p.flag("--no-cached", "do not measure loading from the cache, which compiles twice more")
    p.flag("--scanned", "blocks of a level in a loop, in a whole picture")
    p.option("--json", Path, "write what was measured", metavar="FILE")
    p.flag("--here", argparse.SUPPRESS)  # in this process, as JSON
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    check_names("component", o.names, COMPONENTS)
    pairs, o.cached = o.sizes, not o.no_cached
    o.torch = not o.no_torch and all(
        importlib.util.find_spec(m) for m in ("torch", "diffusers", "transformers")
    )
    if o.here:
        print(json.dumps(measure(o, o.names[0], pairs[0])))
        return
    rows = []
    for name in o.names or COMPONENTS:
        for size in pairs[:1] if name in SIZELESS else pairs:
            text = f"{size[0]}x{size[1]}"
            arguments = [
                name, "--here", "--sizes", text, "--config", str(o.config), "--dtype", o.dtype,
                "--repeat", str(o.repeat), *([] if o.torch else ["--no-torch"]),
                *([] if o.cached else ["--no-cached"]), *(["--scanned"] if o.scanned else []),
            ]  # fmt: skip
            if row := in_own_process("benchmarks.sampling", f"{name} {text}", arguments):
                rows.append(row)
            keep(o.json, rows)
    text = table(COLUMNS, rows)
    print(f"{rows[0]['device']}, jax {rows[0]['jax']}, {o.config}\n\n{text}")
    for row in rows:
        if "stages" in row:
            spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in row["stages"].items())
            print(f"\nimage {row['size']}: {spent}")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
