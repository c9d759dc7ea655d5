"""The recorded outputs of the released implementation beside what this machine's device computes.

    python -m benchmarks.parity [--json FILE]

Small networks with weights made from names, in float32 with products of the highest precision and in
bfloat16: the largest difference from the recording, relative to its largest value. Tests hold the CPU to
these recordings; this is for the device that a machine has beside it. Ends with code 2 where float32 is off
by more than `LIMIT`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, keep, table
from ultrapixel_jax import commands
from ultrapixel_jax.errors import UserError

LIMIT = 1e-4
COLUMNS = (
    ("recording", "recording"), ("dtype", "dtype"), ("error", "relative difference"), ("seconds", "seconds"),
)  # fmt: skip


def cases(dtype: Any) -> Iterator[tuple[str, Callable[[], tuple[Any, Any]]]]:
    """(name, what gives (found, expected), channels last) of each recording, with networks in `dtype`."""
    import jax
    import jax.numpy as jnp

    from tests import recorded_models
    from tests.recordings import load, nhwc
    from ultrapixel_jax.config import (
        DiffusionConfig,
        EffnetEncoderConfig,
        PreviewerConfig,
        StageAConfig,
    )
    from ultrapixel_jax.diffusion import two_branch
    from ultrapixel_jax.diffusion.sampler import begin, make_table
    from ultrapixel_jax.diffusion.two_branch import Prompts
    from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
    from ultrapixel_jax.models.guidance import Guidance
    from ultrapixel_jax.models.previewer import Previewer
    from ultrapixel_jax.models.stage_a import StageA
    from ultrapixel_jax.models.stage_b import StageB
    from ultrapixel_jax.models.stage_c import StageC

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)

    def stage_c() -> tuple[Any, Any]:
        recorded = recorded_models.stage_c("stage_c")
        t, module = recorded.tensors, StageC(recorded.model.stage_c.config, dtype)
        variables = cast(recorded.model.variables)

        @jax.jit
        def run(x: Any, r: Any, *prompt: Any) -> Any:
            c = module.apply(variables, *(p.astype(dtype) for p in prompt), method="condition")
            return module.apply(variables, x.astype(dtype), r, c).epsilon  # pyright: ignore

        prompt = (t["in.clip_text"], t["in.clip_text_pooled"][:, 0], t["in.clip_img"][:, 0])
        return run(recorded.nhwc("in.x_lr"), t["in.r"], *prompt), recorded.nhwc("out.plain")

    def sampling() -> tuple[Any, Any]:
        recorded = recorded_models.stage_c("sample_two_branch")
        t, given = recorded.tensors, recorded.model
        assert given.guidance is not None
        model = two_branch.StageCModel(
            StageC(given.stage_c.config, dtype), cast(given.variables),
            Guidance(given.guidance.config, dtype), cast(given.guidance_variables), dtype,
        )  # fmt: skip
        steps = int(recorded.meta["steps"])
        made = make_table(DiffusionConfig(steps=steps))
        r = made.r.copy()  # the recorded times: one unit in the last place shows
        r[:steps] = load("diffusion")[0]["out.noise_cond.shift1"][[40, 30, 20, 10]]
        table_ = jax.tree.map(jnp.asarray, made._replace(r=r))
        both = (
            jnp.concatenate([t[f"in.cond.{k}"], t[f"in.uncond.{k}"]])
            for k in ("clip_text", "clip_text_pooled", "clip_img")
        )
        prompts = Prompts(*both)
        prompts = prompts._replace(pooled=prompts.pooled[:, 0], image=prompts.image[:, 0])
        fresh = {
            k: jnp.stack([jnp.asarray(nhwc(t[f"in.noise_{k}.{i}"])) for i in range(steps)])
            for k in ("lr", "hr")
        }

        @jax.jit
        def run(lr: Any, hr: Any) -> Any:
            c, size = model.condition(prompts), (hr.shape[1], hr.shape[2])
            empty = two_branch.Carried(two_branch.empty_features(model, lr))
            _, carried = two_branch.lr_steps(
                model, begin(lr), empty, c, table_, steps - 1, 0, steps, lambda i: fresh["lr"][i]
            )
            prepared, scale = model.prepare(carried.features, size), recorded_models.scale_inputs(size)
            state, _ = two_branch.hr_steps(
                model, begin(hr), c, prepared, scale, table_, 0, steps, lambda i: fresh["hr"][i]
            )
            return state.x

        found = run(recorded.nhwc("in.init_lr"), recorded.nhwc("in.init_hr"))
        return found, recorded.nhwc(f"out.x.{steps - 1}")

    def stage_b() -> tuple[Any, Any]:
        t, meta = load("stage_b")
        config = recorded_models.stage_b_config(meta)
        module, variables = StageB(config, dtype), cast(recorded_models.named("stage_b", config))

        @jax.jit
        def run(x: Any, r: Any, clip: Any, effnet: Any) -> Any:
            inputs, size = (clip.astype(dtype), effnet.astype(dtype)), (x.shape[1], x.shape[2])
            c = module.apply(variables, *inputs, size, None, method="condition")
            return module.apply(variables, x.astype(dtype), r, c)

        found = run(nhwc(t["in.x.2"]), t["in.r"], t["in.clip"][:, 0], nhwc(t["in.effnet"]))
        return found, nhwc(t["out.2"])

    def single(recording: str, name: str, config: Any, module: Any, given: str, out: str, method: Any) -> Any:
        def run() -> tuple[Any, Any]:
            t, _ = load(recording)
            variables = recorded_models.named(name, config)
            found = jax.jit(lambda v, x: module.apply(v, x, method=method))(variables, nhwc(t[given]))
            return found, nhwc(t[out])

        return run

    yield "stage C", stage_c
    yield "sampling, both passes", sampling
    yield "stage B", stage_b
    if dtype == jnp.float32:  # as these networks are always run
        fields = {k: v for k, v in load("stage_a")[1]["stage_a"].items() if k != "levels"}
        a, p, e = StageAConfig(**fields), PreviewerConfig(), EffnetEncoderConfig()
        yield (
            "stage A",
            single("stage_a", "stage_a", a, StageA(a), "in.latent", "out.decoded_latent", "decode"),
        )
        yield "previewer", single("previewer", "previewer", p, Previewer(p), "in.latent", "out.image", None)
        encoder = EffnetEncoder(e)
        yield (
            "EffNet encoder",
            single("effnet_encoder", "effnet_encoder", e, encoder, "in.image", "out.latent", None),
        )


def compare() -> Iterator[Row]:
    """A row for each recording and dtype, on the default device."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tests.recordings import relative_error

    device = jax.devices()[0].device_kind
    for dtype in (jnp.float32, jnp.bfloat16):
        precision = "highest" if dtype == jnp.float32 else "default"
        with jax.default_matmul_precision(precision):
            for name, run in cases(dtype):
                began = time.perf_counter()
                found, expected = run()
                error = relative_error(np.asarray(found, np.float32), np.asarray(expected))
                seconds = time.perf_counter() - began
                yield {"recording": name, "dtype": jnp.dtype(dtype).name, "error": error, "seconds": seconds,
                       "device": device}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        p = commands.Parser("python -m benchmarks.parity", __doc__)
        p.option("--json", Path, "write what was found", metavar="FILE")
        o = p.read(argv)
        rows: list[Row] = []
        for row in compare():
            rows.append(row)
            keep(o.json, rows)
        print(table(COLUMNS, [row | {"error": f"{row['error']:.1e}"} for row in rows]))
        for row in rows:
            if row["dtype"] == "float32" and not row["error"] <= LIMIT:
                raise UserError(f"{row['recording']} is off by {row['error']:.1e}, more than {LIMIT:g}")

    return commands.run(run, interrupted="repeat the command")


if __name__ == "__main__":
    sys.exit(main())
