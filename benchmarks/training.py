"""Training steps on this machine: time, images/s, TFLOP/s, utilisation and memory.

    python -m benchmarks.training [NAME ...] [--steps 5] [--mesh rows=4] [--compile-only] [--json FILE]

NAMEs are of `CONFIGURATIONS`; without, those that fit a CPU, and on other devices all. Weights, latents and
texts are random: their values do not change the time. Each configuration runs in a process of its own.
Operations are counted from shapes (`ultrapixel_jax.flops`); the utilisation is relative to the rate of a
square matrix product that is measured in the same process.

With --compile-only nothing runs: the compiler alone says what memory a step takes on each device. With
`XLA_FLAGS=--xla_force_host_platform_device_count=N` that works for meshes of N devices on any machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import check_names, in_own_process, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.commands import MESH, whole

HW = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A preset, at one size of latents."""

    preset: str
    """File of the preset."""
    hr: HW
    """Size of the latent that is trained on."""
    lr: HW
    """Size of the low-resolution one."""
    batch: int
    """Examples."""
    on_cpu: bool = True
    """Whether a CPU is measured on it unless it is named."""


CONFIGURATIONS = {
    "tiny": Configuration("configs/train/tiny.py", (24, 24), (12, 12), 4),
    "demo-stage-c": Configuration("configs/demo/stage_c.py", (9, 9), (9, 9), 32),
    "lite-24": Configuration("configs/train/guidance_lite.py", (24, 24), (24, 24), 1),
    "full-24": Configuration("configs/train/guidance.py", (24, 24), (24, 24), 4, on_cpu=False),
    "full-48": Configuration("configs/train/guidance.py", (48, 48), (24, 24), 4, on_cpu=False),
    "full-96": Configuration("configs/train/guidance.py", (96, 96), (24, 24), 2, on_cpu=False),
    "full-128": Configuration("configs/train/guidance.py", (128, 128), (24, 24), 1, on_cpu=False),
    "full-192": Configuration("configs/train/guidance.py", (192, 192), (24, 24), 1, on_cpu=False),
}
"""By name; the number is the side of the HR latent (128 is an image of 4096², 192 one of 6144²)."""
COLUMNS = (
    ("name", "configuration"), ("latent", "latent"), ("batch", "batch"), ("dtype", "dtype"),
    ("compile_s", "compile, s"), ("step_s", "step, s"), ("images_per_s", "images/s"),
    ("tflops", "TFLOP/s"), ("matmul_tflops", "matrix product, TFLOP/s"), ("utilisation", "utilisation"),
    ("arguments_gb", "weights and state, GB"), ("temporaries_gb", "temporaries, GB"), ("peak_gb", "peak, GB"),
)  # fmt: skip


def measure(name: str, steps: int, mesh_sizes: dict[str, int] | None, compile_only: bool) -> dict[str, Any]:
    """Compile and, unless `compile_only`, run the step of one configuration in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import programs
    from ultrapixel_jax import report
    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.sharding import make_mesh
    from ultrapixel_jax.training.config import TrainConfig

    case = CONFIGURATIONS[name]
    config = load_config(case.preset, TrainConfig)
    mesh = make_mesh(mesh_sizes or {"data": 1}, None if mesh_sizes else jax.devices()[:1])
    of = programs.training(config, case.hr, case.lr, case.batch, mesh)

    def places(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.sharding, tree)

    with jax.set_mesh(mesh):
        began = time.perf_counter()
        run = of.step.lower(of.state, of.frozen, of.rate, of.batch).compile()
        compiled = time.perf_counter() - began
        memory: Any = run.memory_analysis()
        row = {
            "name": name, "latent": f"{case.hr[0]}x{case.hr[1]}", "batch": case.batch, "dtype": config.dtype,
            "device": jax.devices()[0].device_kind, "devices": mesh.size, "jax": jax.__version__,
            "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1}, "compile_s": compiled,
            "arguments_gb": memory.argument_size_in_bytes / 1e9,
            "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        }  # fmt: skip
        if compile_only:
            return row
        now = jax.jit(of.create, out_shardings=places(of.state))()
        held = jax.jit(of.weights, out_shardings=places(of.frozen))(jax.random.key(0))
        random = np.random.default_rng(0)
        values = {
            k: np.ones(shape, dtype) if dtype == jnp.int32 else random.standard_normal(shape).astype(dtype)
            for k, (shape, dtype) in of.shapes.items()
        }
        data = jax.device_put(values, places(of.batch))
        rate = report.matmul_rate(config.dtype, mesh.size)
        times = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            now, metrics = run(now, held, np.float32(1e-4), data)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - began)
        seconds = float(np.median(times[1:]))
        operations = of.task.flops({k: v[0] for k, v in of.shapes.items()})
        return row | {
            "step_s": seconds, "images_per_s": case.batch / seconds, "tflops": operations / seconds / 1e12,
            "utilisation": operations / seconds / rate, "matmul_tflops": rate / 1e12,
            "peak_gb": (report.peak_bytes() or 0) / 1e9,
        }  # fmt: skip


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m benchmarks.training", __doc__)
    p.argument("names", str, ", ".join(CONFIGURATIONS), nargs="*", metavar="NAME")
    p.option("--steps", whole(1, 10_000), "steps that are timed, after one more", 5)
    p.option("--mesh", MESH, "devices", shown="one")
    p.flag("--compile-only", "memory by the compiler's reckoning alone")
    p.option("--json", Path, "write what was measured", metavar="FILE")
    p.flag("--here", argparse.SUPPRESS)  # in this process, as JSON
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    check_names("configuration", o.names, CONFIGURATIONS)
    if o.here:
        print(json.dumps(measure(o.names[0], o.steps, o.mesh, o.compile_only)))
        return
    names = o.names
    if not names:
        import jax

        cpu = jax.default_backend() == "cpu"
        names = [name for name, case in CONFIGURATIONS.items() if case.on_cpu or not cpu]
    options = [a for a in argv if a not in o.names]
    if o.json:
        at = next(i for i, a in enumerate(options) if a.startswith("--json"))
        del options[at : at + (1 if "=" in options[at] else 2)]
    rows = []
    for name in names:
        if row := in_own_process("benchmarks.training", name, [name, "--here", *options]):
            rows.append(row)
        keep(o.json, rows)
    text = table(COLUMNS, rows)
    first = rows[0]
    mesh = ", ".join(f"{axis}={n}" for axis, n in first["mesh"].items()) or "one device"
    print(f"{first['devices']} x {first['device']} ({mesh}), jax {first['jax']}\n\n{text}")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
