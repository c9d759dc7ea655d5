"""The whole cascade: the stages in their order, and the arrays between them, for one batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ultrapixel_jax.checkpoints.on_demand import OnDemand
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import Weights, load_weights
from ultrapixel_jax.compilation.executables import Executables
from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.diffusion.sampler import halves
from ultrapixel_jax.diffusion.two_branch import Prompts
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import AnyPath
from ultrapixel_jax.models.scan import SCANNABLE, stack_where_they_lie
from ultrapixel_jax.report import Report
from ultrapixel_jax.sampling import canvas
from ultrapixel_jax.sampling.conditioner import Conditioner, Pass
from ultrapixel_jax.sampling.personal import Personal
from ultrapixel_jax.sampling.pictures import config_identity
from ultrapixel_jax.sampling.requests import DECODE_BYTES, Request
from ultrapixel_jax.sampling.stages.base import Estimate, Setup, Stage, Watch
from ultrapixel_jax.sampling.stages.pixels import PreviewDecoder, TiledDecoder
from ultrapixel_jax.sampling.stages.stage_b import StageBSampler
from ultrapixel_jax.sampling.stages.stage_c import StageCLatents, TwoBranchSampler
from ultrapixel_jax.sampling.stages.text import TextEncoder
from ultrapixel_jax.sharding import batch_multiple, fetch
from ultrapixel_jax.sizes import LR_SIDE, Bucket

Progress = Callable[[str, int, int, Estimate], None]
"""Told (stage, steps done, steps in all, stage C's latent so far, computed when called)."""


@dataclasses.dataclass
class Result:
    """One picture."""

    image: UInt8[np.ndarray, "h w 3"]
    """RGB."""
    latents: dict[str, np.ndarray]
    """`stage_c_low`, `stage_c` and, unless previewed, `stage_b`; float32, channels last."""
    controls: dict[str, UInt8[np.ndarray, "h2 w2 c"]] = dataclasses.field(default_factory=dict)
    """What each ControlNet was shown, by its kind."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """How to do with less memory on the device."""

    int8: bool = False
    """The kernels of stages C and B in eight bits (`models.int8`)."""
    offload: bool = False
    """Each stage's weights wait in the host's memory but for while it is at work."""
    cfg_in_turn: bool = False
    """The halves of classifier-free guidance one after the other."""


AMPLE = Memory()
"""Nothing of it."""


def programs(request: Request) -> tuple[tuple[frozenset[bool], int], ...]:
    """What tells the programs of a bucket apart, of both passes of stage C and of stage B.

    Whether steps have the unconditional half, and 2 where inner levels are reused, else 1.
    """
    passes = (request.stage_c, request.stage_c.of_hr, request.stage_b)
    return tuple((halves(settings), min(settings.reuse, 2)) for settings in passes)


class Cascade:
    """A loaded model that turns requests into pictures."""

    memory: Memory = AMPLE
    """How it does with less of the device's."""

    def __init__(
        self,
        weights: Weights,
        tokenizer: Tokenizer,
        *,
        mesh: jax.sharding.Mesh | None,
        dtype: str | None = None,
        report: Report,
        executables: Path | None = None,
        on_demand: OnDemand | None = None,
        memory: Memory = AMPLE,
        scanned: bool = False,
    ) -> None:
        dtype = dtype or weights.dtype
        self.config: CascadeConfig = weights.config
        self.dtype: str = dtype
        self.identity: str = weights.identity
        self.unused: tuple[str, ...] = weights.unused
        """What the checkpoint holds and sampling does not use, a line each."""
        self.preview: bool = "stage_b" not in weights.variables
        """Whether it has the previewer in place of stages B and A."""
        self.report = report
        self.mesh = mesh
        config, variables, compute = weights.config, weights.variables, jnp.dtype(dtype)
        ways = " in turn" * memory.cfg_in_turn + " scanned" * scanned
        kept = executables and Executables(executables, f"{config_identity(config)} {compute.name}{ways}")
        self.memory = memory
        if scanned:
            variables = variables | {
                name: stack_where_they_lie(variables[name], getattr(config, name))
                for name in SCANNABLE
                if name in variables
            }
        setup = Setup(compute, mesh, report, kept, memory.cfg_in_turn, scanned)
        self.text = TextEncoder(setup, config, variables, tokenizer)
        self.stage_c = TwoBranchSampler(setup, config, variables)
        self.stage_b = StageBSampler(setup, config, variables)
        self.stage_a = TiledDecoder(setup, config, variables)
        self.previewer = PreviewDecoder(setup, config, variables)
        self.personal = Personal(config, (self.text, self.stage_c), self.text, weights.tokens)
        """LoRAs and new words."""
        on_demand = on_demand or OnDemand(None, config, dtype=dtype, mesh=mesh)
        self.conditioner = Conditioner(setup, config, variables, on_demand)
        for stage in self.stages:
            stage.offloaded = memory.offload

    @classmethod
    def load(
        cls,
        checkpoint: AnyPath | None,
        *,
        config: CascadeConfig | None = None,
        dtype: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        preview: bool = False,
        ema: bool = True,
        executables: Path | None = None,
        controlnets: Sequence[AnyPath] = (),
        memory: Memory = AMPLE,
        scanned: bool = False,
    ) -> Cascade:
        """Restore what sampling needs from `checkpoint`, straight onto the devices.

        Args:
            checkpoint: directory written by `python -m convert`, or that of a training run; None for the
                demo, or with a `config` for weights made from the names of its parameters.
            config: replaces the checkpoint's configuration where the weights allow it.
            dtype: of weights and computation; the decoders stay in float32. None goes by the size.
            mesh: devices to spread weights and batch over.
            preview: load the previewer in place of stages B and A.
            ema: of a training run, the moving average of its parameters.
            executables: directory of compiled programs, read and written, so that a later process
                compiles and traces nothing; None keeps none.
            controlnets: further checkpoints and runs, whose ControlNets count before the checkpoint's.
            memory: how to do with less.
            scanned: the blocks of a level are a loop over stacked weights, so that one of them is compiled,
                and a step reads its weights once more. The bits are others.

        Raises:
            UserError: not a checkpoint, a component that is missing or does not fit; a mesh where weights are
                to be on one device.
        """
        if mesh is not None and (memory.int8 or memory.offload):
            raise UserError(
                "weights in int8 and stages that wait on the host are for one device; leave out the mesh"
            )
        report = Report()
        with report.stage("load"), _on(mesh):
            weights = load_weights(
                checkpoint, config, dtype=dtype, mesh=mesh, preview=preview, ema=ema, int8=memory.int8,
                on_host=memory.offload,
            )  # fmt: skip
            tokenizer = Tokenizer(weights.tokenizer, weights.config.clip_text.positions)
            beside = OnDemand(
                checkpoint, config, controlnets=controlnets, dtype=weights.dtype, mesh=mesh, ema=ema
            )
        return cls(
            weights,
            tokenizer,
            mesh=mesh,
            report=report,
            executables=executables,
            on_demand=beside,
            memory=memory,
            scanned=scanned,
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order a picture runs through them."""
        return self.text, *self.conditioner.stages, self.stage_c, self.stage_b, self.stage_a, self.previewer

    @property
    def compilations(self) -> int:
        """How many programs were compiled, or read from disk."""
        return sum(stage.compilations for stage in self.stages)

    @property
    def repeated(self) -> bool:
        """Whether a level of stage C or of the stage B that it has, has several blocks."""
        levels = (*self.config.stage_c.levels, *(() if self.preview else self.config.stage_b.levels))
        return any(max(level.down_blocks, level.up_blocks) > 1 for level in levels)

    @property
    def controlnets(self) -> dict[str, str]:
        """The kinds of ControlNet that it can draw with, and where each lies."""
        return self.conditioner.on_demand.controlnets

    @property
    def lr_side(self) -> int:
        """The model's side of the square low-resolution picture, in units of 32 pixels."""
        return LR_SIDE if self.config.guidance is None else self.config.guidance.lr_side

    def bucket(self, request: Request) -> Bucket:
        """The shapes that `request` runs through in this model."""
        return Bucket.of(request.height, request.width, self.lr_side)

    def cut_off(self, requests: Iterable[Request]) -> list[str]:
        """What is beyond the encoder's tokens, of each prompt and negative prompt that does not fit.

        A new word counts as the tokens that its LoRA has for it.
        """
        cuts = (
            self.personal.tokenizer(r.conditions).truncated(text)
            for r in requests
            for text in (r.prompt, r.negative_prompt)
        )
        return list(dict.fromkeys(cut for cut in cuts if cut))

    def replace_variables(self, variables: Mapping[str, Any]) -> None:
        """Sample with other variables of the same shapes from now on, of the networks in `variables`.

        They are stacked where the cascade is `scanned`.

        Compiles nothing anew, and leaves the other networks as they are.
        """
        for stage in self.stages:
            stage.replace_variables(variables)
        self.personal.forget(variables)

    def drop_variables(self) -> None:
        """Forget all variables, so that their memory is free until `replace_variables` brings others."""
        self.personal.forget({name: None for stage in self.stages for name in stage.variables})
        for stage in self.stages:
            stage.variables.clear()

    def compile(self, request: Request, *, batch_size: int) -> None:
        """Compile every program that pictures of the size, settings and conditions of `request` need.

        By a step of each stage, and by another where some steps of a pass have classifier-free guidance and
        others none. Of the settings, that counts and whether inner levels are reused.
        """
        height, width = self.bucket(request).pixels
        needs = programs(request)
        # One picture runs a step of one kind in each pass; where a pass has both, a second runs the others.
        kinds = [sorted(of, reverse=True) for of, _ in needs]
        for turn in range(max(map(len, kinds))):
            low, high, b = (
                DiffusionConfig(steps=1, cfg=2.0 if of[min(turn, len(of) - 1)] else 1.0, reuse=reuse)
                for of, (_, reuse) in zip(kinds, needs, strict=True)
            )
            stage_c = dataclasses.replace(low, cfg_hr=high.cfg, reuse_hr=high.reuse)
            own = request.conditions
            one = Request("", "", 0, height, width, stage_c=stage_c, stage_b=b, conditions=own)
            self.generate([one], batch_size=batch_size)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int,
        progress: Progress | None = None,
        tile: int | None = None,
        decode_bytes: int = DECODE_BYTES,
        latents: Sequence[Mapping[str, np.ndarray]] | None = None,
    ) -> list[Result]:
        """Pictures of `requests`, which share their bucket and sampling settings.

        Args:
            requests: at most `batch_size` of them; the batch is filled up and the filling dropped.
            batch_size: what the programs are compiled for.
            progress: told of every stage's steps.
            tile: side of stage A's tiles in latent pixels; None is the largest that `decode_bytes` allow.
            decode_bytes: memory that decoding may take.
            latents: of each request, those to go on from, by the names of `Result.latents`: `stage_b`, which
                stage A decodes, or else `stage_c`; all with the same names.

        Raises:
            UserError: not even the smallest tile decodes within `decode_bytes`.
        """
        if not 0 < len(requests) <= batch_size:
            raise ValueError(f"{len(requests)} requests for a batch of {batch_size}")
        if self.memory.int8 and requests[0].conditions.loras:
            raise UserError("a LoRA cannot be added to weights in int8; leave one of them out")
        self.conditioner.check(requests[0].conditions)
        tile = self._tile(batch_size, tile, decode_bytes)
        filled = [*requests, *[requests[-1]] * (batch_size - len(requests))]
        bucket = self.bucket(requests[0])
        given = _stacked(latents, batch_size)
        with _on(self.mesh):
            self.personal.use(requests[0].conditions)
            if "stage_b" in given and not self.preview:
                made, images = given, self._pixels(given["stage_b"], bucket, tile)
            else:
                prompts = self._encode(filled)
                c = given or self._draw(filled, bucket, prompts, progress)._asdict()
                stage_b, images = self._decode(filled, bucket, prompts, c["stage_c"], progress, tile)
                made = {**c, "stage_b": stage_b}
        arrays = {name: fetch(x).astype(np.float32) for name, x in made.items() if x is not None}
        return [
            Result(
                self._finished(images[i], request),
                {name: x[i] for name, x in arrays.items()},
                self.conditioner.shown(request, bucket),
            )
            for i, request in enumerate(requests)
        ]

    def decode(
        self,
        requests: Sequence[Request],
        bucket: Bucket,
        latent: Float[np.ndarray, "b h w c"],
        *,
        tile: int | None = None,
        decode_bytes: int = DECODE_BYTES,
    ) -> UInt8[np.ndarray, "b hp wp 3"]:
        """Pictures by stages B and A, or the previewer, of stage C latents that come from elsewhere.

        Args:
            requests: one for each latent.
            bucket: their shapes.
            latent: what to decode.
            tile: as in `generate`.
            decode_bytes: as in `generate`.
        """
        tile = self._tile(len(requests), tile, decode_bytes)
        with _on(self.mesh):
            prompts = self._encode(requests)
            return self._decode(requests, bucket, prompts, jnp.asarray(latent), None, tile)[1]

    def previewed(self, latent: Float[Any, "b h w c"]) -> UInt8[np.ndarray, "b h8 w8 3"]:
        """Small pictures of stage C latents, any number of them, by the previewer."""
        count = latent.shape[0]
        missing = -count % batch_multiple(self.mesh)
        with _on(self.mesh):
            filled = jnp.concatenate([jnp.asarray(latent), *[jnp.asarray(latent[:1])] * missing])
            with self.previewer.at_work():
                return fetch(self.previewer(filled))[:count]

    def _encode(self, requests: Sequence[Request]) -> Prompts:
        """The text of `requests`, and their image prompts."""
        with self.report.stage("clip"), self.text.at_work(), self.conditioner.at_work():
            prompts = self.text([r.prompt for r in requests], [r.negative_prompt for r in requests])
            return self.conditioner.with_images(prompts, requests)

    def _draw(
        self, requests: Sequence[Request], bucket: Bucket, prompts: Prompts, progress: Progress | None
    ) -> StageCLatents:
        """Stage C's latents."""
        settings, seeds = requests[0].stage_c, [r.seed for r in requests]
        with self.conditioner.at_work():
            low, high = (self.conditioner.given(requests, bucket, which) for which in (Pass.LR, Pass.HR))
        with self.stage_c.at_work():
            with self.report.stage("C low"):
                plan = self.stage_c.low(prompts, bucket, seeds, settings, _of("C low", progress), low)
            with self.report.stage("C high"):
                return self.stage_c.high(plan, bucket, seeds, settings, _of("C high", progress), high)

    def _decode(
        self,
        requests: Sequence[Request],
        bucket: Bucket,
        prompts: Prompts,
        latent: Any,
        progress: Progress | None,
        tile: int,
    ) -> tuple[Any, np.ndarray]:
        """Stage A's latent (None when previewed) and the pictures, uint8, of stage C's latent."""
        if self.preview:
            with self.report.stage("A"), self.previewer.at_work():
                return None, fetch(self.previewer(latent))
        settings, seeds = requests[0].stage_b, [r.seed for r in requests]
        with self.report.stage("B"), self.stage_b.at_work():
            stage_b = self.stage_b(
                prompts.pooled, latent, bucket.stage_b, seeds, settings, _of("B", progress)
            )
        return stage_b, self._pixels(stage_b, bucket, tile)

    def _pixels(self, stage_b: Any, bucket: Bucket, tile: int) -> np.ndarray:
        """Stage A's pictures, uint8."""
        with self.report.stage("A"), self.stage_a.at_work():
            return self.stage_a(stage_b, bucket.pixels, tile)

    def _tile(self, batch_size: int, tile: int | None, decode_bytes: int) -> int:
        """Side of stage A's tiles; found before any work, since it can fail."""
        if tile is not None or self.preview:
            return tile or 0
        return self.stage_a.tile(batch_size, decode_bytes)

    def _finished(self, image: UInt8[np.ndarray, "h w 3"], request: Request) -> UInt8[np.ndarray, "h2 w2 3"]:
        """A bucket holds sizes that differ by less than 8 pixels; each gets its own crop.

        What was not painted over is as it was.
        """
        image = image if self.preview else image[: request.height, : request.width]
        inpaint = request.conditions.inpaint
        return image if inpaint is None else canvas.pasted(np.asarray(image), inpaint)


def _stacked(latents: Sequence[Mapping[str, np.ndarray]] | None, batch_size: int) -> dict[str, Any]:
    """Latents of a batch by name, filled up to `batch_size` as requests are."""
    if not latents:
        return {}
    filled = [*latents, *[latents[-1]] * (batch_size - len(latents))]
    return {name: jnp.asarray(np.stack([one[name] for one in filled])) for name in latents[0]}


def _of(stage: str, progress: Progress | None) -> Watch | None:
    """What tells `progress` of the steps of `stage`."""
    return None if progress is None else functools.partial(progress, stage)


@contextlib.contextmanager
def _on(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
    """Make `mesh` the one that `constrain` places activations on."""
    if mesh is None:
        yield
    else:
        with jax.set_mesh(mesh):
            yield
