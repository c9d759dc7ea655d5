"""The layers with several ways to be computed, side by side: attention, depthwise convolution, channel MLP.

    python -m benchmarks.layers [attention depthwise mlp] [--tokens 576 2304] [--dtype bfloat16] [--json FILE]

Widths are those of the 3.6B stage C: 32 heads of 64, with 85 tokens of conditioning beside the map's own, and
2048 channels. Each way runs in a process of its own; `growth` is how much the process (on accelerators: the
device's peak) grew in the forward pass, and `temporaries` what the compiler reckons with. The gradient is in
all inputs, forward pass included. torch's own is measured beside them where it is installed, on CPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import check_names, in_own_process, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, whole

WAYS = {
    "attention": ("heads", "queries", "xla", "cudnn", "torch"),
    "depthwise": ("shifts", "convolution", "pallas", "torch"),
    "mlp": ("xla", "pallas", "mosaic"),
}
"""`heads`: one head after the other; `queries`: one chunk of queries after the other; `xla`: all logits at
once; `cudnn`: its flash kernel. `shifts`: nine shifted products; `convolution`: XLA's grouped one. `mlp` is a
whole ResBlock. `pallas`: kernels for NVIDIA GPUs (Triton); `mosaic`: for Hopper ones (Mosaic GPU)."""
COLUMNS = (
    ("layer", "layer"), ("tokens", "tokens"), ("way", "way"), ("dtype", "dtype"),
    ("forward_s", "forward, s"), ("gradient_s", "gradient, s"),
    ("temporaries_gb", "temporaries, GB"), ("growth_gb", "growth, GB"), ("difference", "difference to XLA's"),
)  # fmt: skip
HEADS, WIDTH, CONDITIONING, CHANNELS = 32, 64, 85, 2048
LOGITS = 4 * 10**9
"""Bytes of logits up to which all at once are tried."""


def jax_way(layer: str, way: str, tokens: int, dtype: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(function, inputs)."""
    import jax
    import jax.numpy as jnp

    from ultrapixel_jax.models import attention, convolutions

    def normal(i: int, *shape: int) -> Any:
        return jax.random.normal(jax.random.key(i), shape, jnp.dtype(dtype))

    if layer == "attention":
        q = normal(0, 1, tokens, HEADS, WIDTH)
        k, v = (normal(i, 1, tokens + CONDITIONING, HEADS, WIDTH) for i in (1, 2))
        functions = {
            "heads": attention._by_heads,
            "queries": attention._by_queries,
            "xla": lambda *x: jax.nn.dot_product_attention(*x, implementation="xla"),
            "cudnn": lambda *x: jax.nn.dot_product_attention(*x, implementation="cudnn"),
        }
        return functions[way], (q, k, v)
    side = math.isqrt(tokens)
    x, kernel = normal(0, 2, side, side, CHANNELS), normal(1, 3, 3, CHANNELS)
    if layer == "mlp":
        from ultrapixel_jax.models.blocks import ResBlock

        os.environ["ULTRAPIXEL_JAX_MLP"] = way  # in a process of its own
        block: Any = ResBlock(CHANNELS, param_dtype=x.dtype)
        variables = jax.jit(block.init)(jax.random.key(2), x)
        moved = jax.tree.map(lambda v: v + 0.1 if v.ndim == 1 else v, variables)  # no norm or bias of zeros
        return block.apply, (moved, x)

    def convolution(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, kernel[:, :, None], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=CHANNELS,
        )  # fmt: skip

    if way == "pallas":
        from benchmarks.pallas_depthwise import depthwise

        return depthwise, (x, kernel)
    return (
        convolution if way == "convolution" else lambda x, kernel: convolutions.depthwise(x, kernel, None)
    ), (x, kernel)


def torch_way(layer: str, tokens: int, dtype: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(function, inputs)."""
    import torch
    from torch.nn import functional

    def normal(*shape: int) -> Any:
        return torch.randn(shape, dtype=getattr(torch, dtype), requires_grad=True)

    if layer == "attention":
        keys = (1, HEADS, tokens + CONDITIONING, WIDTH)
        inputs = (normal(1, HEADS, tokens, WIDTH), normal(*keys), normal(*keys))
        return functional.scaled_dot_product_attention, inputs
    side = math.isqrt(tokens)
    x = normal(2, CHANNELS, side, side).detach().to(memory_format=torch.channels_last).requires_grad_()
    kernel = normal(CHANNELS, 1, 3, 3)
    return (lambda x, w: functional.conv2d(x, w, padding=1, groups=CHANNELS)), (x, kernel)


def measure(layer: str, way: str, tokens: int, dtype: str, repeat: int) -> dict[str, Any]:
    """Time and memory of one way in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ultrapixel_jax import report

    row: dict[str, Any] = {"layer": layer, "tokens": tokens, "way": way, "dtype": dtype}
    if way == "torch":
        function, inputs = torch_way(layer, tokens, dtype)

        def forward() -> None:
            import torch

            with torch.inference_mode():
                function(*inputs)

        def backward() -> None:
            function(*inputs).float().square().sum().backward()
    else:
        function, inputs = jax_way(layer, way, tokens, dtype)
        jax.block_until_ready(inputs)

        def loss(*args: Any) -> Any:
            return jnp.square(function(*args).astype(jnp.float32)).sum()

        compiled = jax.jit(function).lower(*inputs).compile()
        every = tuple(range(len(inputs)))
        gradient = jax.jit(jax.grad(loss, every)).lower(*inputs).compile()
        memory: Any = compiled.memory_analysis()
        row["temporaries_gb"] = memory.temp_size_in_bytes / 1e9

        def forward() -> None:
            jax.block_until_ready(compiled(*inputs))

        def backward() -> None:
            jax.block_until_ready(gradient(*inputs))

    report._reset_peak()
    before = report.peak_bytes() or 0
    forward()
    row["growth_gb"] = ((report.peak_bytes() or 0) - before) / 1e9

    def median(run: Callable[[], None]) -> float:
        run()
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    if layer == "mlp" and way != "xla":
        found = jax.jit(function)(*inputs).astype(jnp.float32)
        os.environ["ULTRAPIXEL_JAX_MLP"] = "xla"

        def again(*args: Any) -> Any:  # which jax has not traced yet
            return function(*args)

        expected = jax.jit(again)(*inputs).astype(jnp.float32)
        row["difference"] = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
    return row | {"forward_s": median(forward), "gradient_s": median(backward)}


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m benchmarks.layers", __doc__)
    p.argument("names", str, f"{', '.join(WAYS)}; default: all", nargs="*", metavar="LAYER")
    p.option("--tokens", whole(1, 10**6), "of the map", [576, 2304, 9216], nargs="+")
    p.option("--dtype", DTYPE, "of computing", "float32")
    p.option("--repeat", whole(1, 10_000), "runs that are timed, after one more", 5)
    p.option("--json", Path, "write what was measured", metavar="FILE")
    p.option("--here", str, argparse.SUPPRESS)  # in this process, as JSON
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    check_names("layer", o.names, WAYS)
    if o.here:
        print(json.dumps(measure(o.names[0], o.here, o.tokens[0], o.dtype, o.repeat)))
        return
    import jax

    backend, rows = jax.default_backend(), []
    for layer in o.names or WAYS:
        for tokens in o.tokens:
            for way in WAYS[layer]:
                if way == "torch" and (backend != "cpu" or not importlib.util.find_spec("torch")):
                    continue
                if way in ("cudnn", "pallas", "mosaic") and backend != "gpu":
                    continue
                if (way == "cudnn" or (layer == "mlp" and way != "xla")) and o.dtype != "bfloat16":
                    continue
                if (layer, way) == ("attention", "xla") and 4 * HEADS * tokens**2 > LOGITS:
                    continue
                arguments = [layer, "--here", way, "--tokens", str(tokens), "--dtype", o.dtype]
                arguments += ["--repeat", str(o.repeat)]
                if row := in_own_process("benchmarks.layers", f"{layer} {way} {tokens}", arguments):
                    rows.append(row)
                keep(o.json, rows)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n\n{table(COLUMNS, rows)}")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
