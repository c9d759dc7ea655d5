"""Memory of the full-size sampler on each device, by the compiler's reckoning: nothing runs.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python -m benchmarks.memory --sizes 4096x4096 6144x6144 --mesh rows=8

One picture: stage C's two passes with guidance as one program, and stage B's steps as another. Works for
meshes of N devices on any machine, by that flag. The weights are arguments; `mesh.rows` divides the maps
alone, `fsdp` and `tensor` divide these. On GPUs and TPUs, whose attention is another, temporaries differ.
--int8 and --cfg-in-turn are those of sample.py; what --offload needs is the larger of the two stages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.commands import MESH, one_of
from ultrapixel_jax.sizes import Bucket, parse_size


def programs(
    config: Any, bucket: Bucket, mesh: Any, *, int8: bool = False, cfg_in_turn: bool = False
) -> dict[str, Any]:
    """Lowered programs by stage, of abstract weights and inputs in bfloat16."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from ultrapixel_jax.diffusion import two_branch
    from ultrapixel_jax.diffusion.sampler import begin, in_turn, make_table, run_steps
    from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
    from ultrapixel_jax.models import components
    from ultrapixel_jax.models.guidance import Guidance
    from ultrapixel_jax.models.int8 import NETWORKS, quantised
    from ultrapixel_jax.models.stage_b import StageB
    from ultrapixel_jax.models.stage_c import StageC
    from ultrapixel_jax.training.state import variables_shardings

    half = jnp.bfloat16
    whole = NamedSharding(mesh, PartitionSpec())

    def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    def weights(part: str) -> Any:
        abstract = components.abstract(part, getattr(config, part), half)
        if int8 and part in NETWORKS:
            small = jax.eval_shape(quantised, abstract)
            return jax.tree.map(lambda x: spec(*x.shape, dtype=x.dtype), small)
        places = variables_shardings(abstract, mesh)
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract, places
        )

    c, b = config.stage_c, config.stage_b
    prompts = Prompts(
        spec(2, config.clip_text.positions, c.c_clip_text, dtype=half),
        spec(2, c.c_clip_text_pooled, dtype=half),
        spec(2, c.c_clip_img, dtype=half),
    )
    stage_c, guidance, stage_b = StageC(c, half), Guidance(config.guidance, half), StageB(b, half)

    def sample(vc, vg, prompts, x_lr, x_hr, scale, table, steps, capture):
        model = StageCModel(stage_c, vc, guidance, vg, half, cfg_in_turn)
        return two_branch.sample(
            model, prompts, x_lr, x_hr, scale, table, steps, capture, lambda i: x_lr, lambda i: x_hr
        )

    def refine(v, x, pooled, effnet, table, steps):
        conditioning = stage_b.apply(v, pooled, effnet, bucket.stage_b, method="condition")

        def network(x: Any, r: Any, conditioning: Any) -> Any:
            return stage_b.apply(v, x.astype(half), r, conditioning)

        def denoise(x: Any, r: Any, i: Any, carry: Any) -> tuple[Any, Any]:
            del i
            given = (x, r, conditioning)
            return in_turn(network, *given) if cfg_in_turn else network(*given), carry

        return run_steps(denoise, begin(x), (), table, 0, steps, lambda i: x)[0]

    def table(settings: Any) -> Any:
        return jax.tree.map(lambda v: spec(*v.shape), make_table(settings))

    number = spec(dtype=jnp.int32)
    with jax.set_mesh(mesh):
        return {
            "C": jax.jit(sample).lower(
                weights("stage_c"), weights("guidance"), prompts,
                spec(1, *bucket.lr, c.c_latent), spec(1, *bucket.hr, c.c_latent),
                ScaleInputs(spec(), spec()), table(config.sampling_c), number, number,
            ),
            "B": jax.jit(refine).lower(
                weights("stage_b"), spec(1, *bucket.stage_b, b.c_latent), prompts.pooled,
                spec(2, *bucket.hr, b.c_effnet, dtype=half), table(config.sampling_b), number,
            ),
        }  # fmt: skip


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m benchmarks.memory", __doc__)
    p.option("--config", Path, "sizes of the networks", Path("configs/stage_b_lite.py"), metavar="FILE")
    p.option("--sizes", parse_size, "of pictures", [(4096, 4096)], shown="4096x4096", nargs="+",
             metavar="HEIGHTxWIDTH")  # fmt: skip
    p.option("--mesh", MESH, "devices", shown="one")
    p.option("--stage", one_of("CB"), "one alone", shown="both")
    p.flag("--int8", "kernels in eight bits; for one device")
    p.flag("--cfg-in-turn", "the halves of guidance one after the other")
    return p


def run(argv: list[str]) -> None:
    """Do what the command line says."""
    o = parser().read(argv)
    import jax

    from ultrapixel_jax.compilation.options import compiler_options
    from ultrapixel_jax.config import load_config
    from ultrapixel_jax.sharding import make_mesh

    config = load_config(o.config)
    mesh = make_mesh(o.mesh or {}, None if o.mesh else jax.devices()[:1])
    print("| picture | mesh | stage | weights, GB | temporaries, GB |\n|---|---|---|---|---|")
    name = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1) or "one device"
    for size in o.sizes:
        for stage, lowered in programs(
            config, Bucket.of(*size), mesh, int8=o.int8, cfg_in_turn=o.cfg_in_turn
        ).items():
            if o.stage in (None, stage):
                options = compiler_options("bfloat16", wide_maps=stage == "B")
                compiled = lowered.compile(options)
                memory: Any = compiled.memory_analysis()
                cells = (memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9)
                print(
                    f"| {size[0]}x{size[1]} | {name} | {stage} | {cells[0]:.2f} | {cells[1]:.2f} |",
                    flush=True,
                )


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return commands.run(lambda: run(sys.argv[1:] if argv is None else argv), interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
