"""What a full-size program takes on a GPU that is not there: its kernels, and the least time that each needs.

    pip install "jax[cuda13]"      # in an environment of its own, 4.6 GB; nothing else here needs it
    python -m benchmarks.ahead block.c block.a --gpu h100 --size 4096x4096 --json FILE
    python -m benchmarks.ahead block.c --against FILE        # beside another commit's figures

XLA compiles for the GPU from its description alone. Every kernel must read its operands and write its results
once, at the memory's bandwidth, and multiply at the matrix rate: the larger of the two times is its lower
bound, and the sum of them the program's. cuDNN cannot be asked without a GPU, so that attention runs in a
Pallas kernel here, and every program that has one says so. A block takes half a minute of a core, a whole
step of the sampler many.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpus import GPUS
from benchmarks.tables import Row, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import DTYPE, Parser, one_of, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import Bucket, parse_size

BLOCKS = ("block.c", "block.t", "block.a", "block.b0", "block.b1", "block.b2")
"""One layer C, T or A of stage C's inner level; a C of each of stage B's first levels."""
STEPS = ("low", "prepare", "high", "b", "a")
"""Programs of the sampler: LR pass, the guidance's constant part, HR pass, stages B and A."""
MB = 10**6
COLUMNS = (
    ("program", "program"), ("size", "size"), ("batch", "batch"), ("dtype", "dtype"), ("moved", "moved, MB"),
    ("operations", "products, GFLOP"), ("bound", "lower bound, ms"), ("products", "products alone, ms"),
    ("share", "their share"), ("peak", "peak memory, GB"), ("compile_s", "compiled in, s of a core"),
    ("moved_before", "moved before, MB"), ("bound_before", "bound before, ms"),
)  # fmt: skip
OF_KERNELS = (
    ("name", "kernel"), ("times", "runs"), ("moved", "moved, MB"), ("operations", "GFLOP"),
    ("bound", "bound, ms"), ("where", "from"),
)  # fmt: skip


def compiled(function: Callable[..., Any], arguments: Any, device: Any) -> tuple[Any, float]:
    """(program for the absent `device`, seconds of a core for it) of `function` of abstract `arguments`."""
    import jax

    from ultrapixel_jax.target import traced_for

    at = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), arguments)
    with traced_for("cuda"):
        lowered = jax.jit(function).trace(*placed).lower(lowering_platforms=("cuda",))
    began = time.process_time()
    return lowered.compile(), time.process_time() - began


def figures(program: Any, gpu: str, dtype: str) -> Row:
    """What the compiled `program` moves and multiplies, and the bounds of its kernels, largest first."""
    from benchmarks.kernels import kernels

    bandwidth, rate = GPUS[gpu].bandwidth, GPUS[gpu].rate(dtype)
    found = sorted(kernels(program.as_text()), key=lambda k: -k.bound(bandwidth, rate))
    memory = program.memory_analysis()
    operations = sum(k.times * k.operations for k in found)
    bound = sum(k.bound(bandwidth, rate) for k in found)
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "moved": sum(k.times * k.moved for k in found) / MB,
        "operations": operations / 1e9,
        "bound": 1e3 * bound,
        "products": 1e3 * operations / rate,
        "share": operations / rate / bound if bound else 0.0,
        "peak": (own + memory.temp_size_in_bytes) / 1e9,
        "kernels": [
            {
                "name": k.name, "times": k.times, "moved": k.moved / MB, "operations": k.operations / 1e9,
                "bound": 1e3 * k.bound(bandwidth, rate), "where": k.where,
            }
            for k in found
        ],
    }  # fmt: skip


def block(name: str, config: Any, bucket: Bucket, batch: int, dtype: Any) -> tuple[Callable[..., Any], Any]:
    """(function, its abstract arguments) of one layer at the size that it has in `bucket`."""
    import jax

    from ultrapixel_jax.models.blocks import AttnBlock, ResBlock, TimestepBlock

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    both = 2 * batch  # conditional and unconditional
    if name.startswith("block.b"):
        number, b = int(name[-1]), config.stage_b
        if number >= len(b.levels):
            raise UserError(f"{name}: stage B has {len(b.levels)} levels")
        channels = b.levels[number].channels
        h, w = (side // b.patch_size >> number for side in bucket.stage_b)
    else:
        channels = config.stage_c.levels[-1].channels
        h, w = (side // config.stage_c.patch_size for side in bucket.hr)
    x = array(both, h, w, channels)
    if name == "block.t":
        module: Any = TimestepBlock(channels, config.stage_c.timestep_conditions, param_dtype=dtype)
        time_of = {key: array(both, 64) for key in ("r", *config.stage_c.timestep_conditions)}
        arguments = (x, time_of)
    elif name == "block.a":
        heads = config.stage_c.levels[-1].heads
        module = AttnBlock(channels, heads, param_dtype=dtype)
        tokens = array(both, config.clip_text.positions + 8, heads, channels // heads)
        arguments = (x, (tokens, tokens))
    else:
        module, arguments = ResBlock(channels, param_dtype=dtype), (x,)
    variables = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a), *arguments)
    if name == "block.a":  # whose own call does not touch the mapper of the conditioning
        variables = {"params": {k: v for k, v in variables["params"].items() if k != "kv_mapper"}}
    return module.apply, (variables, *arguments)


def pallas_attention() -> None:
    """Let attention on GPUs be jax's Pallas kernel, since cuDNN needs a GPU to be asked."""
    from jax.experimental.pallas.ops.gpu import attention as kernel

    from ultrapixel_jax.models import attention

    def flash(q: Any, k: Any, v: Any) -> Any:
        import math

        import jax.numpy as jnp

        def padded(x: Any) -> Any:
            return jnp.pad(x, [(0, 0), (0, -x.shape[1] % 128), (0, 0), (0, 0)])

        n = q.shape[1]
        q, k, v = (padded(x) for x in (q, k, v))
        return kernel.mha(q, k, v, None, sm_scale=1 / math.sqrt(q.shape[-1]))[:, :n]

    attention._flash_gpu = flash


def step(name: str, config: Any, bucket: Bucket, dtype: Any, device: Any, o: Any) -> Any:
    """What lowers a whole step of the sampler, as the options `o` have it."""
    from benchmarks import programs
    from ultrapixel_jax.sharding import make_mesh

    mesh = make_mesh({}, [device])
    of = programs.sampling(config, bucket, o.batch, mesh, tile=o.tile, dtype=dtype, scanned=o.scanned)
    return mesh, of[name]


def measure(name: str, o: Any, config: Any, device: Any) -> Row:
    """Compile one program and say what it takes."""
    import jax
    import jax.numpy as jnp

    bucket = Bucket.of(*o.size, config.guidance.lr_side)
    dtype = jnp.dtype(o.dtype)
    if name in BLOCKS:
        program, seconds = compiled(*block(name, config, bucket, o.batch, dtype), device)
    else:
        mesh, lower = step(name, config, bucket, dtype, device, o)
        with jax.set_mesh(mesh):
            lowered = lower()
            began = time.process_time()
            program = lowered.compile()
            seconds = time.process_time() - began
    if o.hlo:
        o.hlo.write_text(program.as_text())
    height, width = o.size
    own = "float32" if name == "a" else o.dtype
    row = {
        "program": name, "size": f"{height}x{width}", "batch": o.batch, "dtype": own, "gpu": o.gpu,
        "scanned": o.scanned,
    }  # fmt: skip
    return row | figures(program, o.gpu, own) | {"compile_s": seconds}


def beside(rows: list[Row], before: list[Mapping[str, Any]]) -> None:
    """Add to `rows` what the same programs took in `before`."""
    keys = ("program", "size", "batch", "dtype", "gpu")
    known = {tuple(row.get(key) for key in keys): row for row in before}
    for row in rows:
        if (other := known.get(tuple(row[key] for key in keys))) is not None:
            row["moved_before"], row["bound_before"] = other["moved"], other["bound"]


def parser() -> Parser:
    """The command line."""
    p = Parser("python -m benchmarks.ahead", __doc__)
    p.argument("program", one_of((*BLOCKS, *STEPS)), "what is compiled", nargs="+", metavar="PROGRAM")
    p.option("--gpu", one_of(GPUS), "that is described", "h100")
    p.option("--config", Path, "of the networks", Path("configs/full.py"), metavar="FILE")
    p.option("--size", parse_size, "of pictures", (4096, 4096), shown="4096x4096", metavar="HEIGHTxWIDTH")
    p.option("--batch", whole(1, 1024), "pictures at once", 1)
    p.option("--dtype", DTYPE, "of computing, but for stage A", "bfloat16")
    p.option("--tile", whole(8, 4096), "side of stage A's tiles in latent pixels", 256)
    p.flag("--scanned", "blocks of a level in a loop, in whole steps")
    p.option("--kernels", whole(0, 1000), "kernels that are listed, the largest bounds first", 10)
    p.option("--json", Path, "write what was found", metavar="FILE")
    p.option("--against", Path, "such a file of another commit, to stand beside", metavar="FILE")
    p.option("--hlo", Path, "write the last program's optimised text", metavar="FILE")
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    before = []
    if o.against:
        try:
            before = json.loads(o.against.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--against {str(o.against)!r:.80} cannot be read: {error}") from error
    # The process itself computes on the CPU; CUDA's plugin is asked for its compiler alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

    from benchmarks.gpus import device_of
    from ultrapixel_jax.config import load_config

    config, device = load_config(o.config), device_of(o.gpu)
    pallas_attention()
    rows: list[Row] = []
    for name in o.program:
        row = measure(name, o, config, device)
        rows.append(row)
        keep(o.json, rows)
        if o.kernels:
            print(f"\n{name}\n\n{table(OF_KERNELS, row['kernels'][: o.kernels])}", flush=True)
    beside(rows, before)
    gpu = GPUS[o.gpu]
    print(
        f"\n{gpu.title}: {gpu.bandwidth / 1e12:g} TB/s, {gpu.rate(o.dtype) / 1e12:.0f} TFLOP/s; attention in "
        f"Pallas' kernel, not cuDNN's\n\n{table(COLUMNS, rows)}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
