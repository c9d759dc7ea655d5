"""The whole cascade: prompts to pictures, one compiled program per stage and bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ultrapixel_jax import sizes
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import Weights, load_weights
from ultrapixel_jax.compilation.executables import Executables
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion import two_branch
from ultrapixel_jax.diffusion.sampler import (
    guidance_step,
    image_keys,
    initial_noise,
    make_table,
    noise,
    run_steps,
)
from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.report import Report
from ultrapixel_jax.sampling.pictures import config_identity
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.tiling import decode_tiled, halo_for, tile_for_budget, to_uint8
from ultrapixel_jax.sharding import fetch
from ultrapixel_jax.sizes import Bucket

LR, HR, STAGE_B = range(3)
"""Streams of an image's random numbers: one for each pass."""

UNTILED_PIXELS = 2048 * 2048
"""Largest picture that stage A decodes in one piece by default."""

CHUNK_SECONDS = 0.5
"""How much work is dispatched between two updates of the progress bar."""

ReportSteps = Callable[[str, int, int], None]


@dataclasses.dataclass
class Result:
    """One picture."""

    image: np.ndarray
    """RGB, uint8 (height, width, 3)."""
    latents: dict[str, np.ndarray]
    """`stage_c_low`, `stage_c` and, unless previewed, `stage_b`; float32, channels last."""


class Passes(NamedTuple):
    """Run-time inputs of a sampling loop, on the device."""

    keys: Any
    table: Any


class Cascade:
    """A loaded model that turns requests into pictures."""

    def __init__(
        self,
        weights: Weights,
        tokenizer: Tokenizer,
        *,
        dtype: str,
        mesh: jax.sharding.Mesh | None,
        report: Report,
        executables: Path | None = None,
    ) -> None:
        self.config: CascadeConfig = weights.config
        self.identity: str = weights.identity
        self.report = report
        self._tokenizer = tokenizer
        self._variables = weights.variables
        self._mesh = mesh
        compute = jnp.dtype(dtype)
        config = self.config

        kept = executables and Executables(executables, f"{config_identity(config)} {compute.name}")

        def program(
            name: str,
            function: Callable[..., Any],
            batched: Sequence[int],
            dtype: Any = compute,
            **options: Any,
        ) -> Program:
            return Program(
                function, batched=batched, mesh=mesh, report=report, dtype=dtype, name=name,
                executables=kept, **options,
            )  # fmt: skip

        clip = ClipText(config.clip_text, dtype=compute, param_dtype=compute)
        guidance = None if config.guidance is None else Guidance(config.guidance, compute)

        def stage_c(variables: dict[str, Any]) -> StageCModel:
            return StageCModel(
                StageC(config.stage_c, compute), variables["stage_c"], guidance,
                variables.get("guidance"), compute,
            )  # fmt: skip

        def fresh(keys: Any, x: Any) -> Callable[[Any], Any]:
            return lambda i: noise(keys, i + 1, x.shape[1:])

        def start(keys: Any, shape: tuple[int, ...]) -> Any:
            return initial_noise(keys, shape)

        self._start = program("start", start, [0], static_argnums=(1,))
        self._encode = program("encode", lambda v, ids, mask: clip.apply(v["clip_text"], ids, mask), [1, 2])
        self._condition_c = program("condition_c", lambda v, p: stage_c(v).condition(p), [1])
        self._empty = program("empty", lambda v, x: two_branch.empty_features(stage_c(v), x), [1])
        self._lr = program(
            "lr",
            lambda v, x, features, conditioning, passes, capture, first, last: two_branch.lr_steps(
                stage_c(v), x, features, conditioning, passes.table, capture, first, last,
                fresh(passes.keys, x),
            ),
            [1, 2, 3],
        )  # fmt: skip
        self._prepare = program(
            "prepare", lambda v, features, size: stage_c(v).prepare(features, size), [1], static_argnums=(2,)
        )
        self._hr = program(
            "hr",
            lambda v, x, conditioning, prepared, scale, passes, first, last, unconditional: (
                two_branch.hr_steps(
                    stage_c(v), x, conditioning, prepared, scale, passes.table, first, last,
                    fresh(passes.keys, x), unconditional=unconditional,
                )
            ),
            [1, 2, 3],
            static_argnums=(8,),
        )  # fmt: skip
        self._both = program(
            "both",
            lambda v, lr, hr, conditioning, scale, keys_lr, passes, first, last: (
                two_branch.synchronized_steps(
                    stage_c(v), lr, hr, conditioning, scale, passes.table, first, last,
                    fresh(keys_lr, lr), fresh(passes.keys, hr),
                )
            ),
            [1, 2, 3],
        )  # fmt: skip

        stage_b = StageB(config.stage_b, compute)

        def condition_b(v: Any, pooled: Any, latent: Any, size: tuple[int, int]) -> Any:
            effnet = jnp.concatenate([latent, jnp.zeros_like(latent)]).astype(compute)
            pooled = pooled.astype(compute)
            return stage_b.apply(v["stage_b"], pooled, effnet, size, method="condition")

        def steps_b(v: Any, x: Any, conditioning: Any, passes: Passes, first: Any, last: Any) -> Any:
            def denoise(x: Any, r: Any, i: Any, carry: Any) -> tuple[Any, Any]:
                del i
                return stage_b.apply(v["stage_b"], x.astype(compute), r, conditioning), carry

            return run_steps(denoise, x, (), passes.table, first, last, fresh(passes.keys, x))[0]

        self._condition_b = program("condition_b", condition_b, [1, 2], static_argnums=(3,), wide_maps=True)
        self._b = program("b", steps_b, [1, 2], wide_maps=True)

        # The decoders run in float32 whatever the dtype: bfloat16 has fewer values than a byte in [0, 1].
        stage_a, previewer = StageA(config.stage_a), Previewer(config.previewer)
        self._decode = program(
            "decode",
            lambda v, z: stage_a.apply(v["stage_a"], z, method="decode"),
            [1],
            dtype=jnp.float32,
            wide_maps=True,
        )
        self._preview = program(
            "preview",
            lambda v, z: to_uint8(previewer.apply(v["previewer"], z)),  # pyright: ignore[reportArgumentType]
            [1],
            dtype=jnp.float32,
            wide_maps=True,
        )

    @classmethod
    def load(
        cls,
        checkpoint: Path | None,
        *,
        config: CascadeConfig | None = None,
        dtype: str = "float32",
        mesh: jax.sharding.Mesh | None = None,
        preview: bool = False,
        ema: bool = True,
        executables: Path | None = None,
    ) -> Cascade:
        """Restore what sampling needs from `checkpoint`, straight onto the devices.

        Args:
            checkpoint: directory written by `python -m convert`, or that of a training run; None for the
                demo, or with a `config` for weights made from the names of its parameters.
            config: replaces the checkpoint's configuration where the weights allow it.
            dtype: of weights and computation; the decoders stay in float32.
            mesh: devices to spread weights and batch over.
            preview: load the previewer in place of stages B and A.
            ema: of a training run, the moving average of its parameters.
            executables: directory of compiled programs, read and written, so that a later process
                compiles and traces nothing; None keeps none.

        Raises:
            UserError: not a checkpoint, a component that is missing or does not fit.
        """
        report = Report()
        with report.stage("load"), _on(mesh):
            weights = load_weights(checkpoint, config, dtype=dtype, mesh=mesh, preview=preview, ema=ema)
            tokenizer = Tokenizer(weights.tokenizer, weights.config.clip_text.positions)
        return cls(weights, tokenizer, dtype=dtype, mesh=mesh, report=report, executables=executables)

    def truncated(self, prompt: str) -> str | None:
        """The part of `prompt` beyond the encoder's 77 tokens; None if it fits."""
        return self._tokenizer.truncated(prompt)

    def compile(self, bucket: Bucket, batch_size: int, preview: bool, unconditional: bool = True) -> None:
        """Compile every program of `bucket` by a step of each stage; `unconditional` is as in `hr_steps`."""
        one = DiffusionConfig(steps=1)
        stage_c = one if unconditional else dataclasses.replace(one, cfg_hr=1.0)
        request = Request("", "", 0, *bucket.pixels, stage_c=stage_c, stage_b=one, preview=preview)
        self.generate([request], bucket=bucket, batch_size=batch_size, preview=preview)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        bucket: Bucket,
        batch_size: int,
        preview: bool,
        progress: ReportSteps | None = None,
        tile: int | None = None,
        decode_bytes: int = 4 * 10**9,
    ) -> list[Result]:
        """Pictures of `requests`, which share `bucket` and sampling settings.

        Args:
            requests: at most `batch_size` of them; the batch is filled up and the filling dropped.
            bucket: their shapes.
            batch_size: what the programs are compiled for.
            preview: decode with the previewer.
            progress: told (stage, steps done, steps in all).
            tile: side of stage A's tiles in latent pixels; None chooses: whole up to 2048², by
                `decode_bytes` above.
            decode_bytes: memory that decoding may take.
        """
        if not 0 < len(requests) <= batch_size:
            raise ValueError(f"{len(requests)} requests for a batch of {batch_size}")
        filled = [*requests, *[requests[-1]] * (batch_size - len(requests))]
        with _on(self._mesh):
            prompts = self._encode_text(filled)
            low, latent = self._stage_c(filled, bucket, prompts, progress)
            stage_b, images = self._decode_latent(
                filled, bucket, prompts, latent, preview, progress, tile, decode_bytes
            )
        latents = {"stage_c_low": low, "stage_c": latent, "stage_b": stage_b}
        arrays = {name: fetch(x).astype(np.float32) for name, x in latents.items() if x is not None}
        results = []
        for i, request in enumerate(requests):
            # A bucket holds sizes that differ by less than 8 pixels; each gets its own crop.
            image = images[i] if preview else images[i, : request.height, : request.width]
            results.append(Result(image, {name: x[i] for name, x in arrays.items()}))
        return results

    def decode(
        self,
        requests: Sequence[Request],
        bucket: Bucket,
        latent: Float[np.ndarray, "b h w c"],
        *,
        preview: bool = False,
    ) -> UInt8[np.ndarray, "b hp wp 3"]:
        """Pictures by stages B and A, or the previewer, of stage C latents that come from elsewhere.

        Args:
            requests: one for each latent.
            bucket: their shapes.
            latent: what to decode.
            preview: decode with the previewer.
        """
        with _on(self._mesh):
            prompts = self._encode_text(requests)
            args = (requests, bucket, prompts, jnp.asarray(latent), preview, None, None, 4 * 10**9)
            return self._decode_latent(*args)[1]

    def replace_variables(self, variables: dict[str, Any]) -> None:
        """Sample with other variables of the same shapes from now on; compiles nothing anew."""
        self._variables = variables

    def _decode_latent(
        self,
        requests: Sequence[Request],
        bucket: Bucket,
        prompts: Prompts,
        latent: Any,
        preview: bool,
        progress: ReportSteps | None,
        tile: int | None,
        decode_bytes: int,
    ) -> tuple[Any, np.ndarray]:
        """Stage B's latent (None when previewed) and the pictures, uint8, of stage C's latent."""
        if preview:
            with self.report.stage("A"):
                return None, fetch(self._preview(self._variables, latent))
        stage_b = self._stage_b(requests, bucket, prompts, latent, progress)
        with self.report.stage("A"):
            return stage_b, self._stage_a(stage_b, bucket.pixels, tile, decode_bytes)

    def _encode_text(self, requests: Sequence[Request]) -> Prompts:
        """Encode prompts and negative prompts, stacked."""
        with self.report.stage("clip"):
            texts = [r.prompt for r in requests] + [r.negative_prompt for r in requests]
            ids, mask = self._tokenizer(texts)
            states, pooled = self._encode(self._variables, ids, mask)
            image = np.zeros((len(texts), self.config.stage_c.c_clip_img), np.float32)
            jax.block_until_ready(states)
        return Prompts(states, pooled, jnp.asarray(image))

    def _stage_c(
        self, requests: Sequence[Request], bucket: Bucket, prompts: Prompts, progress: ReportSteps | None
    ) -> tuple[Any, Any]:
        """The LR and HR passes; without guidance there is no LR pass (None)."""
        settings = requests[0].stage_c
        seeds = [r.seed for r in requests]
        table, steps = make_table(settings), settings.steps
        channels = self.config.stage_c.c_latent
        guidance = self.config.guidance
        variables = self._variables

        def passes(stream: int) -> Passes:
            return Passes(image_keys(seeds, stream), table)

        low, prepared = None, {}
        scale = ScaleInputs(np.float32(1), np.float32(0))
        with self.report.stage("C low"):
            conditioning = self._condition_c(variables, prompts)
            if guidance is not None:
                weight = sizes.up_guide_weight(*bucket.hr, guidance.up_guide_weights)
                scale = ScaleInputs(sizes.scale(*bucket.hr), np.float32(weight))
                low = self._start(passes(LR).keys, (*bucket.lr, channels))
            if guidance is not None and guidance.timestep != "synchronized":
                capture = guidance_step(steps, float(guidance.timestep))
                state = (low, self._empty(variables, low))
                low, features = self._loop(
                    "C low", steps, progress, state,
                    lambda s, a, b: self._lr(variables, *s, conditioning, passes(LR), capture, a, b),
                )  # fmt: skip
                prepared = self._prepare(variables, features, bucket.hr)
        with self.report.stage("C high"):
            x = self._start(passes(HR).keys, (*bucket.hr, channels))
            if guidance is not None and guidance.timestep == "synchronized":
                low, x = self._loop(
                    "C high", steps, progress, (low, x),
                    lambda s, a, b: self._both(
                        variables, *s, conditioning, scale, passes(LR).keys, passes(HR), a, b
                    ),
                )  # fmt: skip
            else:
                unconditional = not (prepared and settings.effective_cfg_hr == 1)
                if not unconditional:
                    conditioning = jax.tree.map(lambda y: y[: len(requests)], conditioning)
                x = self._loop(
                    "C high", steps, progress, x,
                    lambda s, a, b: self._hr(
                        variables, s, conditioning, prepared, scale, passes(HR), a, b, unconditional
                    ),
                )  # fmt: skip
        return low, x

    def _stage_b(
        self,
        requests: Sequence[Request],
        bucket: Bucket,
        prompts: Prompts,
        latent: Any,
        progress: ReportSteps | None,
    ) -> Any:
        """Stage A's latent from stage C's."""
        settings = requests[0].stage_b
        passes = Passes(image_keys([r.seed for r in requests], STAGE_B), make_table(settings))
        with self.report.stage("B"):
            conditioning = self._condition_b(self._variables, prompts.pooled, latent, bucket.stage_b)
            x = self._start(passes.keys, (*bucket.stage_b, self.config.stage_b.c_latent))
            return self._loop(
                "B", settings.steps, progress, x,
                lambda s, a, b: self._b(self._variables, s, conditioning, passes, a, b),
            )  # fmt: skip

    def _stage_a(self, latent: Any, size: tuple[int, int], tile: int | None, decode_bytes: int) -> np.ndarray:
        """Pixels, uint8."""
        config = self.config.stage_a
        halo = halo_for(config)
        if tile is None:
            whole = size[0] * size[1] <= UNTILED_PIXELS
            tile = tile_for_budget(decode_bytes, config, jnp.float32, latent.shape[0])
            tile = max(tile, *latent.shape[1:3]) if whole else tile
        return decode_tiled(
            lambda z: self._decode(self._variables, z), latent, tile, halo, size=size, as_uint8=True
        )

    def _loop(
        self,
        stage: str,
        steps: int,
        progress: ReportSteps | None,
        state: Any,
        run: Callable[[Any, int, int], Any],
    ) -> Any:
        """All steps of a loop; with `progress` in pieces of about `CHUNK_SECONDS`.

        First and last step are run-time values, so the pieces compile nothing and change no bit.
        """
        if progress is None:
            return jax.block_until_ready(run(state, 0, steps))
        done, chunk = 0, 1
        progress(stage, 0, steps)
        while done < steps:
            began, last = time.perf_counter(), min(done + chunk, steps)
            state = jax.block_until_ready(run(state, done, last))
            per_step = (time.perf_counter() - began) / (last - done)
            done, chunk = last, max(1, min(steps, int(CHUNK_SECONDS / max(per_step, 1e-6))))
            progress(stage, done, steps)
        return state


@contextlib.contextmanager
def _on(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
    """Make `mesh` the one that `constrain` places activations on."""
    if mesh is None:
        yield
    else:
        with jax.set_mesh(mesh):
            yield
