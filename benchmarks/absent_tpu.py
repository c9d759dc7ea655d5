"""What the full-size training step and sampler take on TPUs that are not there: nothing runs.

    pip install libtpu==0.0.42     # for jax 0.10.2
    python -m benchmarks.absent_tpu --slice v6e-16 --mesh data=4,fsdp=4 --batch 16 64
    python -m benchmarks.absent_tpu --slice v5e-16 --mesh rows=16 --program high b --size 6144x6144

The TPU's own compiler, which is in libtpu, compiles each program for the devices of the slice in the order
that the project's mesh has. Printed are, for each chip, the memory, the collectives of one update or one
sampling step. Weights, state and inputs are abstract.
A full-size step takes more than nine minutes of one core, and 5 GB.

Names of slices are Google's: v5e-16 and v6e-16 are 16 chips (4x4), but v5p-8 is 4 chips (2x2x1): v5p's
number counts two cores for each chip, which are one device. `v5p:2x2x2` names chips by their coordinates.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import MESH, Parser, one_of, whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import Bucket, parse_size

FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Shape of a v5e or v6e slice, by its number of chips."""
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
"""Shape of a v5p slice, by its number of chips; its name has twice that."""
PROGRAMS = ("train", "low", "prepare", "high", "b", "a")
"""The training step; of the sampler: LR pass, the guidance's constant part, HR pass, stages B and A."""
GIB = 2**30
COLUMNS = (
    ("program", "program"), ("size", "size"), ("batch", "batch"), ("mesh", "mesh"),
    ("arguments", "arguments"), ("temporaries", "temporaries"), ("code", "code"), ("peak", "peak"),
    ("beside", "other networks"), ("total", "in all"), ("tflop", "TFLOP"), ("collectives", "collectives"),
    ("compile_s", "compile, s"),
)  # fmt: skip
"""Memory in GiB per chip; operations of a training step, counted from shapes, per chip too."""


def shape_of(name: str) -> str:
    """The compiler's name of a slice: `v6e:4x4` of `v6e-16`; that with a colon is taken as it is.

    Raises:
        UserError: no such slice.
    """
    if ":" in name:
        return name
    kind, _, count = name.replace("v5litepod", "v5e").partition("-")
    chips = int(count) if count.isdecimal() and len(count) < 5 else 0
    known = {"v5e": FLAT, "v6e": FLAT, "v5p": {2 * n: shape for n, shape in CUBES.items()}}.get(kind, {})
    if chips not in known:
        raise UserError(f"slice {name!r:.80} is not known; give one such as v5e-16, v5p-8 or v6e-16")
    return f"{kind}:{known[chips]}"


def devices_of(name: str) -> list[Any]:
    """Devices of a slice that is not there.

    Raises:
        UserError: no libtpu, or it knows no such slice.
    """
    from jax.experimental import topologies

    shape = shape_of(name)
    alone = {"chips_per_host_bounds": (1, 1, 1)} if shape.endswith(":1x1") else {}
    try:
        return list(topologies.get_topology_desc(shape, platform="tpu", **alone).devices)
    except Exception as error:  # whatever the plugin raises
        raise UserError(
            f"slice {name!r:.80} could not be described ({' '.join(str(error).split()):.200}); "
            "is libtpu installed, and is the slice's shape right, such as v6e:4x4?"
        ) from error


def gib(bytes_: float) -> float:
    """Bytes in GiB."""
    return bytes_ / GIB


def describe(found: Any) -> str:
    """Collectives in one cell: kind, runs and GB."""
    from benchmarks.hlo import totals

    return "; ".join(f"{k} {t.count}: {t.received / 1e9:.2f} GB" for k, t in totals(found).items()) or "none"


def measure(lower: Any, mesh: Any, save: Path | None) -> Row:
    """Lower and compile a program under `mesh`; its figures, also where it does not fit."""
    import jax

    from benchmarks.hlo import collectives

    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = lower()
        kernels = lowered.as_text().count("tpu_custom_call")
        began = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return {"error": refusal(str(error)), "kernels": kernels}
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if save is not None:
        save.write_text(text)
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = collectives(text)
    return {
        "arguments": gib(memory.argument_size_in_bytes),
        "temporaries": gib(memory.temp_size_in_bytes),
        "code": gib(memory.generated_code_size_in_bytes),
        "peak": gib(own + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes),
        "collectives": describe(found),
        "largest": [vars(c) for c in sorted(found, key=lambda c: -c.times * c.received)[:12]],
        "compile_s": seconds,
        "kernels": kernels,
    }  # fmt: skip


def refusal(message: str) -> str:
    """One line of what the compiler says where it refuses a program."""
    for pattern in (r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", r"Used ([\d.]+)G of ([\d.]+)G hbm"):
        if m := re.search(pattern, message):
            return f"needs {m[1]} GiB per chip, and there are {m[2]}"
    return f"does not compile: {' '.join(message.split()):.300}"


def parser() -> Parser:
    """The command line."""
    p = Parser("python -m benchmarks.absent_tpu", __doc__)
    p.option("--slice", str, "such as v5e-16, v5p-8 or v6e:4x4", "v6e-16")
    p.option("--mesh", MESH, "of all its chips", required=True)
    p.option("--program", one_of(PROGRAMS), "what is compiled", ["train"], nargs="+")
    p.option("--preset", Path, "of training", Path("configs/train/guidance.py"), metavar="FILE")
    p.option("--config", Path, "of sampling", Path("configs/full.py"), metavar="FILE")
    p.option("--size", parse_size, "of pictures; stage C's latents are a 42.67th", [(4096, 4096)],
             shown="4096x4096", nargs="+", metavar="HEIGHTxWIDTH")  # fmt: skip
    count = whole(1, 1 << 20)
    p.option("--batch", count, "examples or pictures of all chips", shown="one per data·fsdp", nargs="+")
    p.option("--accumulate", count, "parts of a training batch, one after the other", 1)
    p.option("--tile", whole(8, 4096), "side of stage A's tiles in latent pixels", 256)
    p.option("--json", Path, "write what was found", metavar="FILE")
    p.option("--hlo", Path, "write the last program's optimised text", metavar="FILE")
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    # The process itself computes on the CPU; libtpu is asked for its compiler alone, not for a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # beside another such process

    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.sharding import batch_multiple, make_mesh
    from ultrapixel_jax.training.config import TrainConfig

    config, preset = load_config(o.config), load_config(o.preset, TrainConfig)
    devices = devices_of(o.slice)
    mesh = make_mesh(o.mesh, devices)
    rows: list[Row] = []
    for size in o.size:
        for batch in o.batch or [batch_multiple(mesh)]:
            if batch % (batch_multiple(mesh) * o.accumulate):
                raise UserError(
                    f"--batch {batch} does not divide over data·fsdp·accumulate = "
                    f"{batch_multiple(mesh) * o.accumulate}; give a multiple"
                )
            for program in o.program:
                row = {
                    "program": program, "size": f"{size[0]}x{size[1]}", "batch": batch, "slice": o.slice,
                    "mesh": ",".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1),
                    "accumulate": o.accumulate, "device": devices[0].device_kind,
                }  # fmt: skip
                lower, beside, operations = program_of(program, config, preset, size, batch, mesh, o)
                row |= {"beside": gib(beside)} | measure(lower, mesh, o.hlo)
                if operations:
                    row["tflop"] = operations / len(devices) / 1e12
                if "peak" in row:
                    row["total"] = row["peak"] + row["beside"]
                rows.append(row)
                print(
                    json.dumps({k: v for k, v in row.items() if k != "largest"}), file=sys.stderr, flush=True
                )
                keep(o.json, rows)
    good = [row for row in rows if "error" not in row]
    if good:
        print(
            f"{len(devices)} x {devices[0].device_kind} ({o.slice}), GiB per chip\n\n{table(COLUMNS, good)}"
        )
    if bad := [row for row in rows if "error" in row]:
        raise UserError(
            "; ".join(f"{r['program']} at {r['size']}, batch {r['batch']}: {r['error']}" for r in bad)
        )


def program_of(
    name: str, config: Any, preset: Any, size: tuple[int, int], batch: int, mesh: Any, o: Any
) -> tuple[Any, int, int]:
    """(what lowers the program, bytes per chip of weights that lie beside it, operations where counted)."""
    from benchmarks import programs
    from ultrapixel_jax.sharding import device_bytes

    if name == "train":
        bucket = Bucket.of(*size, preset.model.guidance.lr_side if preset.model.guidance else 32)
        of = programs.training(preset, bucket.hr, bucket.lr, batch, mesh, o.accumulate)
        operations = of.task.flops({part: shape for part, (shape, _) in of.shapes.items()})
        return lambda: of.step.lower(of.state, of.frozen, of.rate, of.batch), 0, operations
    bucket = Bucket.of(*size, config.guidance.lr_side)
    weights = programs.sampler_weights(config, mesh)
    used = programs.STAGES[name]
    of_all = programs.sampling(config, bucket, batch, mesh, tile=o.tile)
    return of_all[name], device_bytes({part: w for part, w in weights.items() if part not in used}), 0


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 2 where a program does not fit."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
