"""Memory that it takes to start a run from its sources' weights, by device: nothing runs.

    XLA_FLAGS=--xla_force_host_platform_device_count=16 python -m benchmarks.starting --devices 1 4 8 16
    python -m benchmarks.starting --measure CHECKPOINT

Of the program that makes the state of what the sources give (its arguments are donated), by the compiler's
reckoning; and of the frozen networks beside it, by their shapes and the rules of `ultrapixel_jax.sharding`.
The mesh is `fsdp=N`. Works for meshes of N devices on any machine, by that flag.

`--measure` starts for real, from a checkpoint with stage C and the guidance networks, on CPU devices, whose
memory is the host's: the largest that the process takes, less what it took before and what stays, is what the
host needs for passing the weights on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands


def reckoned(config: Any, count: int) -> dict[str, float]:
    """GB per device: of the state, of the peak of making it, of frozen networks, of their largest array."""
    import jax
    import jax.numpy as jnp

    from ultrapixel_jax.sharding import device_bytes, make_mesh
    from ultrapixel_jax.training import state as states
    from ultrapixel_jax.training.optimizer import make_optimizer
    from ultrapixel_jax.training.tasks import make_task

    mesh = make_mesh({"fsdp": count}, jax.devices()[:count])
    task, optimizer = make_task(config), make_optimizer(config.optimizer)

    with jax.set_mesh(mesh):
        make = states.creator(task, optimizer)
        given = {name: states.abstract(task, name, mesh, jnp.float32) for name in task.trained}
        shardings = states.state_shardings(jax.eval_shape(make, given), optimizer, mesh)
        made = jax.jit(make, donate_argnums=0, out_shardings=shardings).lower(given).compile()
        memory: Any = made.memory_analysis()
        frozen = [
            device_bytes(x)
            for name in task.frozen
            for x in jax.tree.leaves(states.abstract(task, name, mesh, states.frozen_dtype(task, name)))
        ]
    output = memory.output_size_in_bytes
    added = output - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    sizes = {
        "weights": device_bytes(given),
        "state": output,
        "peak": memory.argument_size_in_bytes + added,
        "frozen": sum(frozen),
        "largest": max(frozen, default=0),
    }
    return {name: size / 1e9 for name, size in sizes.items()}


def measured(config: Any, checkpoint: Path, count: int) -> dict[str, float]:
    """GB of this process: before, what stays on `count` CPU devices, and the most that it took meanwhile."""
    import resource

    import jax

    from ultrapixel_jax.checkpoints.sources import Sources
    from ultrapixel_jax.sharding import make_mesh
    from ultrapixel_jax.training import state as states
    from ultrapixel_jax.training.optimizer import make_optimizer
    from ultrapixel_jax.training.tasks import make_task

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    mesh = make_mesh({"fsdp": count}, jax.devices()[:count])
    with jax.set_mesh(mesh):
        task, optimizer = make_task(config), make_optimizer(config.optimizer)
        sources = Sources([checkpoint])
        shardings = states.state_shardings(
            jax.eval_shape(states.creator(task, optimizer), {}), optimizer, mesh
        )
        before = peak()
        state = states.fresh(task, optimizer, sources, mesh, shardings)
        frozen = states.frozen(task, sources, mesh)
        held = sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready((state, frozen))))
    return {"before": before, "held": held / 1e9, "peak": peak()}


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    p = commands.Parser("python -m benchmarks.starting", __doc__)
    p.option("--config", Path, "a preset of train.py", Path("configs/train/guidance.py"), metavar="FILE")
    p.option("--devices", commands.whole(1, 4096), "how many", [1], shown="1", nargs="+", metavar="N")
    p.option("--measure", Path, "start for real from this checkpoint", metavar="CHECKPOINT")
    o = p.read(argv)

    import dataclasses

    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.training.config import TrainConfig

    config = load_config(o.config, TrainConfig)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cached=True))
    if o.measure is not None:
        config = dataclasses.replace(config, start_from_sources=True, sources=(str(o.measure),))
        for count in o.devices:
            gb = measured(config, o.measure, count)
            above = gb["peak"] - gb["before"] - gb["held"]
            found = ", ".join(f"{what} {size:.2f} GB" for what, size in gb.items())
            print(f"{count} device(s): {found}; above: {above:.2f} GB", flush=True)
        return
    print("GB on each device, from cached latents\n")
    print("| devices | trained weights | state | peak of making it | frozen | peak of starting |")
    print("|---|---|---|---|---|---|")
    for count in o.devices:
        gb = reckoned(config, count)
        # The state is made first; then the frozen networks come, of which one array may be there twice.
        peak = max(gb["peak"], gb["state"] + gb["frozen"] + gb["largest"])
        cells = (gb["weights"], gb["state"], gb["peak"], gb["frozen"], peak)
        print(f"| {count} | " + " | ".join(f"{x:.2f}" for x in cells) + " |", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
