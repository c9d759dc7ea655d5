"""The Python API: `UltraPixel.load(...)`, then `model("a prompt", height=…, width=…)`.

All that ``sample.py`` does goes through it: `requests`, then `draw`, which yields what is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Unpack

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ultrapixel_jax.checkpoints.weights import load_network
from ultrapixel_jax.commands import surroundings
from ultrapixel_jax.compilation import cache as compilation_cache
from ultrapixel_jax.config import (
    CascadeConfig,
    DiffusionConfig,
    check_dtype,
    load_config,
)
from ultrapixel_jax.errors import UserError, one_line
from ultrapixel_jax.files import place
from ultrapixel_jax.sampling import arguments, effects, pictures
from ultrapixel_jax.sampling.arguments import Options, Sampling, check_names, checked_number
from ultrapixel_jax.sampling.picture import Picture
from ultrapixel_jax.sampling.pipeline import Cascade, Memory, Progress, programs
from ultrapixel_jax.sampling.requests import (
    DECODE_BYTES,
    Entry,
    Request,
    make_requests,
    plan,
    with_settings,
)
from ultrapixel_jax.sharding import batch_multiple, make_mesh
from ultrapixel_jax.sizes import outside_training

Latents = Mapping[str, Float[np.ndarray, "_h _w _c"]]
"""Of one picture: `stage_c_low`, `stage_c`, `stage_b`, as `Picture.latents`."""
Callback = Callable[[str, int, int, Callable[[], list[Image.Image]]], Any]
"""Called with (stage, steps done, steps in all, preview); `preview()` makes a small picture of each one in
the batch as it is so far. Stages are `C low`, `C high` and `B`."""
GIVEN_LATENTS = ("stage_b", "stage_c")
"""Latents that a picture can go on from, the latest first."""


class NotUsed(UserWarning):
    """Something that was given changes no picture."""


class UltraPixel:
    """A loaded model."""

    def __init__(self, cascade: Cascade, load_previewer: Callable[[], dict[str, Any]]) -> None:
        self.cascade = cascade
        self._load_previewer = load_previewer

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        config: CascadeConfig | str | Path | None = None,
        dtype: str | None = None,
        mesh: Mapping[str, int] | jax.sharding.Mesh | None = None,
        preview: bool = False,
        ema: bool = True,
        cache: Literal[True, False] | str | Path = True,
        controlnets: Sequence[str | os.PathLike[str]] = (),
        int8: bool = False,
        offload: bool = False,
        cfg_in_turn: bool = False,
        scanned: bool = False,
    ) -> UltraPixel:
        """Load a model onto the devices.

        Args:
            checkpoint: directory that `ultrapixel_jax.convert` wrote, or that of a training run; None is the
                demo that comes with the package.
            config: replaces the checkpoint's configuration where its weights allow; a `CascadeConfig` or a
                Python file that defines one. Without a checkpoint the weights are untrained.
            dtype: float32 or bfloat16, of weights and computing; None goes by the model's size. The decoders
                compute in float32.
            mesh: devices to spread weights and pictures over, like `{"data": 4}`; None is one device.
            preview: draw with the small previewer in place of stages B and A.
            ema: of a training run, the moving average of its weights.
            cache: where compiled programs are kept: True is the user's cache directory (jax's own cache is
                turned on there too), False keeps none.
            controlnets: further checkpoints and runs, whose ControlNets count before the checkpoint's own.
            int8: the kernels of stages C and B in eight bits, half the memory of bfloat16.
            offload: each stage's weights wait in the host's memory but for while it is at work.
            cfg_in_turn: the halves of classifier-free guidance one after the other.
            scanned: the blocks of a level of stages C and B as a loop: those of full size compile sooner for
                GPUs, and run a little slower; on CPUs nothing is gained.

        Raises:
            UserError: no such checkpoint, one that lacks a network, another variant than `config`, a mesh
                that does not fit the devices, a cache that cannot be written.
        """
        if isinstance(config, (str, Path)):
            config = load_config(config)
        assert config is None or isinstance(config, CascadeConfig)
        dtype = None if dtype is None else check_dtype(dtype)
        directory = None if checkpoint is None else place(checkpoint)
        kept = None
        if cache is not False:
            kept = compilation_cache.use(None if cache is True else Path(cache))
        with surroundings.explaining():
            devices = make_mesh(mesh) if isinstance(mesh, Mapping) else mesh
            cascade = Cascade.load(
                directory, config=config, dtype=dtype, mesh=devices, preview=preview, ema=ema,
                executables=compilation_cache.executables(kept), controlnets=[place(d) for d in controlnets],
                memory=Memory(int8, offload, cfg_in_turn), scanned=scanned,
            )  # fmt: skip
        for line in cascade.unused:
            warnings.warn(line, NotUsed, stacklevel=2)
        previewer = functools.partial(load_network, "previewer", directory, config, mesh=devices, ema=ema)
        return cls(cascade, previewer)

    @property
    def config(self) -> CascadeConfig:
        """Sizes of the networks, and how the model is sampled unless told otherwise."""
        return self.cascade.config

    # ------------------------------------------------------------------------ pictures

    def __call__(self, prompt: str | Sequence[str], **options: Any) -> list[Picture]:
        """Pictures of prompts, in the order asked for; options are those of `stream`.

        Raises:
            UserError: as `stream`.
        """
        made = list(self.stream(prompt, **options))
        return [picture for _, picture in sorted(made, key=lambda pair: pair[0])]

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int | Sequence[int] = 1024,
        width: int | Sequence[int] = 1024,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        batch_size: int = 1,
        tile: int | None = None,
        decode_memory: float = DECODE_BYTES / 1e9,
        latents: Latents | Sequence[Latents] | None = None,
        return_latents: bool = False,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, Picture]]:
        """Pictures as they are finished, each with its place in the order asked for.

        Pictures of equal shapes run together, whatever their order; each new shape compiles once.

        Args:
            prompt: one, or a list of them.
            negative_prompt: what to keep away from; one, or as many as prompts, as the next three.
            height: pixels, 256 to 8192.
            width: pixels.
            seed: 0 to 2³² − 1; the same seed makes the same picture.
            num_images: of each prompt, with seeds seed, seed + 1, …
            batch_size: pictures at once, rounded up to what the mesh divides.
            tile: side of stage A's tiles in latents of 4×4 pixels; None is the largest that fits.
            decode_memory: GB (10⁹ bytes) that decoding may take.
            latents: of each picture, to go on from: `stage_b` is only decoded, `stage_c` by stages B and A.
            return_latents: whether the pictures' `latents` are filled in.
            callback: told of every stage's steps.
            options: fields of `Sampling`, like ``steps=20, cfg=4.0``, one or as many as prompts; and of
                `Steering`.

        Raises:
            UserError: a value out of range, lists of different lengths, an unknown option, or too little
                memory.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        entries, of_all = arguments.entries(
            prompts, negative_prompt=negative_prompt, seed=seed, height=height, width=width, options=options
        )
        requests = self.requests(entries, num_images=num_images, **of_all)
        for line in self.doubts(requests):
            warnings.warn(line, stacklevel=3)
        own_b = {
            "tile": tile,
            "decode_memory": None if decode_memory == DECODE_BYTES / 1e9 else decode_memory,
        }
        situation = effects.Situation(
            {*options, *(name for name, value in own_b.items() if value is not None)}, (), requests,
            preview=self.cascade.preview, guided=self.config.guidance is not None,
        )  # fmt: skip
        for line in effects.without_effect(situation):
            warnings.warn(line, NotUsed, stacklevel=3)
        if isinstance(latents, Mapping):
            latents = [latents]
        yield from self.draw(
            requests, batch_size=batch_size, tile=tile, decode_memory=decode_memory, latents=latents,
            return_latents=return_latents, callback=callback,
        )  # fmt: skip

    def preview(self, latent: Float[np.ndarray, "*b h w c"]) -> list[Image.Image]:
        """Small pictures of stage C latents, one or several, eight pixels for each position on a side."""
        latent = latent[None] if latent.ndim == 3 else latent
        return [Image.fromarray(image) for image in self._previewed(lambda: latent)]

    # ------------------------------------------------------------------------ the same, step by step

    def requests(
        self,
        entries: Sequence[Entry],
        *,
        height: int = 1024,
        width: int = 1024,
        seed: int = 0,
        negative_prompt: str = "",
        num_images: int = 1,
        conditions: Mapping[str, Any] = MappingProxyType({}),
        **sampling: Unpack[Sampling],
    ) -> list[Request]:
        """What to draw, checked: `num_images` of each entry; the arguments are for what entries leave out.

        `conditions` are plain values by the names in `condition_keys.KEYS`.

        Raises:
            UserError: a value out of range, an unknown option, or a file that cannot be used.
        """
        stage_c, stage_b = self.settings(**sampling)
        made = make_requests(
            entries, height=height, width=width, stage_c=stage_c, stage_b=stage_b, seed=seed,
            negative_prompt=negative_prompt, num_images=num_images, conditions=conditions,
        )  # fmt: skip
        return [self._with_networks(request) for request in made]

    def doubts(self, requests: Sequence[Request]) -> list[str]:
        """What is likely to disappoint in pictures of `requests`, a line each: prompts that are cut off, and
        sizes that the model was not trained on.
        """
        tokens = self.config.clip_text.positions
        cuts = self.cascade.cut_off(requests)
        lines = [f"prompt over {tokens} tokens, cut off is: {one_line(cut)!r}" for cut in cuts]
        if (guidance := self.config.guidance) is not None:
            known = guidance.trained_sides, guidance.trained_ratio
            sizes = dict.fromkeys((r.height, r.width) for r in requests)
            lines += [line for size in sizes if (line := outside_training(*size, *known))]
        return lines

    def settings(self, **sampling: Unpack[Sampling]) -> tuple[DiffusionConfig, DiffusionConfig]:
        """Sampling of stages C and B: the model's own but for `sampling`."""
        check_names(sampling, Sampling)
        values = {name: checked_number(name, value) for name, value in sampling.items()}
        return with_settings(self.config.sampling_c, self.config.sampling_b, values)

    def draw(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = 1,
        tile: int | None = None,
        decode_memory: float = DECODE_BYTES / 1e9,
        latents: Sequence[Latents] | None = None,
        return_latents: bool = False,
        callback: Callback | None = None,
    ) -> Iterator[tuple[int, Picture]]:
        """Each request's place in `requests` and its picture, as they are finished.

        Arguments and errors are those of `stream`.
        """
        batch_size = self.device_batch(batch_size)
        run = self.run(batch_size=batch_size, tile=tile, decode_memory=decode_memory)
        given = self._checked(requests, latents)
        for conditions in dict.fromkeys(request.conditions for request in requests):
            self.cascade.personal.check(conditions)
        places: dict[Request, list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault(request, []).append(i)
        for batch in plan(requests, batch_size, self.cascade.lr_side):
            at = [places[request].pop(0) for request in batch.requests]
            start = [given[i] for i in at] if given else None
            with _memory_errors(batch.bucket.pixels, batch_size):
                results = self.cascade.generate(
                    batch.requests, batch_size=batch_size, tile=tile, decode_bytes=int(decode_memory * 1e9),
                    progress=self._progress(callback, len(at)), latents=start,
                )  # fmt: skip
            for n, (i, request, result) in enumerate(zip(at, batch.requests, results, strict=True)):
                metadata = pictures.describe(request, run, _digest(start[n]) if start else None)
                yield (
                    i,
                    Picture.of(
                        result.image, metadata, result.latents if return_latents else None, result.controls
                    ),
                )

    def compile(self, requests: Sequence[Request], *, batch_size: int = 1) -> int:
        """Compile what `requests` need, and return the number of their buckets."""
        batch_size = self.device_batch(batch_size)
        batches = plan(requests, batch_size, self.cascade.lr_side)
        needed = {}
        for batch in batches:
            first = batch.requests[0]
            needed[batch.bucket, programs(first), first.conditions.group] = first
        for request in needed.values():
            self.cascade.compile(request, batch_size=batch_size)
        return len({batch.bucket for batch in batches})

    def device_batch(self, batch_size: int) -> int:
        """`batch_size` rounded up to a multiple of the mesh's axes that split the batch."""
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} must be at least 1")
        multiple = batch_multiple(self.cascade.mesh)
        return -(-batch_size // multiple) * multiple

    def run(self, *, batch_size: int, tile: int | None, decode_memory: float) -> pictures.Run:
        """What pictures note of the model and of how they were made."""
        mesh = self.cascade.mesh
        return pictures.Run(
            checkpoint=self.cascade.identity,
            config=pictures.config_identity(self.config),
            dtype=self.cascade.dtype,
            batch_size=batch_size,
            mesh={} if mesh is None else {axis: n for axis, n in mesh.shape.items() if n > 1},
            lr_side=self.cascade.lr_side,
            preview=self.cascade.preview,
            tile=tile,
            decode_memory=decode_memory,
            weights="int8" if self.cascade.memory.int8 else None,
        )

    def check_same_networks(self, request: Request) -> None:
        """Refuse to draw a recorded picture with other ControlNets.

        Raises:
            UserError: they are others.
        """
        for was, now in zip(request.conditions.controls, self._with_networks(request).conditions.controls):
            if was != now:
                said = [
                    f"ControlNet {c.network}" if c.network else "the checkpoint's own" for c in (was, now)
                ]
                raise UserError(
                    f"the picture was made with {said[0]} for {was.kind}, and this is {said[1]}; give "
                    "the same with --controlnet"
                )

    # ------------------------------------------------------------------------ inside

    def _with_networks(self, request: Request) -> Request:
        """`request` with the identities of the ControlNets that are not of the model's own checkpoint."""
        own = request.conditions
        if not own.controls:
            return request
        beside = self.cascade.conditioner.on_demand
        controls = tuple(
            dataclasses.replace(c, network=beside.control_identity(c.kind)) for c in own.controls
        )
        return dataclasses.replace(request, conditions=dataclasses.replace(own, controls=controls))

    def _previewed(self, latent: Callable[[], Any]) -> UInt8[np.ndarray, "b h w 3"]:
        if not self.cascade.previewer.variables:
            self.cascade.replace_variables(self._load_previewer())
        return self.cascade.previewed(latent())

    def _progress(self, callback: Callback | None, count: int) -> Progress | None:
        """What calls `callback`, with the pictures of a batch that are no filling."""
        if callback is None:
            return None

        def tell(stage: str, done: int, steps: int, latent: Callable[[], Any]) -> None:
            def preview() -> list[Image.Image]:
                return [Image.fromarray(image) for image in self._previewed(latent)[:count]]

            callback(stage, done, steps, preview)

        return tell

    def _checked(
        self, requests: Sequence[Request], latents: Sequence[Latents] | None
    ) -> list[dict[str, np.ndarray]]:
        """Latents to go on from, of each request the same ones; empty without any."""
        if latents is None:
            return []
        if len(latents) != len(requests):
            raise UserError(f"{len(latents)} latents for {len(requests)} pictures; give one for each")
        known = GIVEN_LATENTS[1:] if self.cascade.preview else GIVEN_LATENTS
        name = next((n for n in known if all(n in one for one in latents)), None)
        if name is None:
            raise UserError(f"latents need {' or '.join(reversed(known))} of every picture")
        channels = getattr(self.config, name).c_latent
        for request, one in zip(requests, latents, strict=True):
            bucket = self.cascade.bucket(request)
            shape = (*(bucket.hr if name == "stage_c" else bucket.stage_b), channels)
            if one[name].shape != shape:
                size = f"{request.height}x{request.width}"
                raise UserError(f"latent {name} has shape {one[name].shape}; {size} pixels need {shape}")
        return [{name: np.asarray(one[name], np.float32)} for one in latents]


def _digest(latents: Mapping[str, np.ndarray]) -> str:
    data = b"".join(name.encode() + latents[name].tobytes() for name in sorted(latents))
    return hashlib.sha256(data).hexdigest()[:16]


class _memory_errors:  # noqa: N801, a context manager
    """Says in words that memory was too small for pictures of this size."""

    def __init__(self, size: tuple[int, int], batch_size: int) -> None:
        self._what = f"{size[0]}x{size[1]} at batch size {batch_size}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(
                f"out of memory for {self._what}; use a smaller batch size or decoding memory, the dtype "
                "bfloat16, or more devices with a mesh"
            ) from error
