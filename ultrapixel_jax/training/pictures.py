"""Pictures made while training, of a fixed set with fixed noise: what the figures do not show."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import Weights, from_sources
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.data.paths import write_whole
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import lora
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.scan import unstack
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.report import Report
from ultrapixel_jax.sampling.pipeline import Cascade, fetch
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.tiling import to_uint8
from ultrapixel_jax.sharding import batch_multiple
from ultrapixel_jax.sizes import (
    STAGE_C_FACTOR,
    Bucket,
    padded_pixels,
    stage_b_latent,
    stage_c_latent,
)
from ultrapixel_jax.training import config as cfg
from ultrapixel_jax.training.checkpoints import disk_errors
from ultrapixel_jax.training.log import Log
from ultrapixel_jax.training.state import TrainState
from ultrapixel_jax.training.tasks.base import SCANNABLE, Task

Pictures = Callable[[TrainState, Mapping[str, Any], Mapping[str, Any]], UInt8[np.ndarray, "n h w 3"]]
"""(state, frozen variables, a batch of the loader) to pictures."""
SAMPLES = "samples"
SHOWN = 8
"""Most images of a batch that are shown beside their reconstruction."""


def make_pictures(task: Task, sources: Sources, mesh: Mesh) -> Pictures:
    """The function that draws what `task` can show.

    Stage C's tasks draw the configured prompts; the others show images of a batch above what they make
    of them.

    Raises:
        UserError: a network is missing that it takes to decode, or the task has nothing to show.
    """
    kind = type(task.config.task)
    if kind is cfg.TextTask:
        raise UserError("pictures.every is set, but the text encoder alone draws nothing; leave it at 0")
    if kind is cfg.StageATask:
        return _stage_a(task)
    if kind is cfg.PreviewerTask:
        return _previewer(task)
    if kind is cfg.StageBTask:
        return _Decoding(task, sources, mesh)
    return _Sampling(task, sources, mesh)


def trained_variables(task: Task, state: TrainState) -> dict[str, Any]:
    """Variables of the trained networks as sampling takes them: the average, blocks unstacked."""
    params = state.ema or state.params
    out = {name: {"params": params[name], **state.collections[name]} for name in task.trained}
    return unstacked(task, out)


def unstacked(task: Task, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` by component without stacked blocks."""
    config = task.config
    stacked = config.scanned and type(config.task) is not cfg.LoraTask
    return {
        name: unstack(v, getattr(config.model, name)) if stacked and name in SCANNABLE else dict(v)
        for name, v in variables.items()
    }


class _Drawing:
    """A cascade that takes its trained networks from the state, the others from frozen ones or sources."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh, wanted: Sequence[str]) -> None:
        self._task, self._sources, self._mesh = task, sources, mesh
        self._wanted = list(wanted)
        missing = [name for name in wanted if name not in task.trained]
        sources.require(missing, "pictures.every")
        self._cascade: Cascade | None = None

    def _ready(self, state: TrainState, frozen: Mapping[str, Any]) -> Cascade:
        task, config = self._task, self._task.config
        dtype = jnp.dtype(config.dtype)
        known = {**unstacked(task, frozen), **trained_variables(task, state)}
        if "lora" in known:
            known["stage_c"] = lora.merge(known["stage_c"], known.pop("lora"))
        variables = {}
        for name in self._wanted:
            exact = name in ("stage_a", "previewer")
            if name in known:
                variables[name] = jax.tree.map(
                    lambda x, exact=exact: x.astype(jnp.float32 if exact else dtype), known[name]
                )
            else:
                loaded = from_sources(
                    self._sources, config.model, [name], what="pictures.every", dtype=config.dtype,
                    mesh=self._mesh,
                )  # fmt: skip
                variables[name] = loaded.variables[name]
        if self._cascade is None:
            model = config.model
            if "guidance" not in variables:
                model = dataclasses.replace(model, guidance=None)
            weights = Weights(model, "training", self._sources.tokenizer, variables)
            tokenizer = Tokenizer(weights.tokenizer, model.clip_text.positions)
            self._cascade = Cascade(weights, tokenizer, dtype=config.dtype, mesh=self._mesh, report=Report())
        self._cascade.replace_variables(variables)
        return self._cascade


class _Sampling(_Drawing):
    """Prompts to pictures."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh) -> None:
        pictures = task.config.pictures
        guided = type(task.config.task) is cfg.GuidanceTask
        decoders = ["previewer"] if pictures.preview else ["stage_b", "stage_a"]
        super().__init__(
            task, sources, mesh, ["clip_text", "stage_c", *(["guidance"] if guided else []), *decoders]
        )

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        del batch
        cascade, pictures, model = (
            self._ready(state, frozen),
            self._task.config.pictures,
            self._task.config.model,
        )
        requests = [
            Request(prompt, "", i, *pictures.size, stage_c=model.sampling_c, stage_b=model.sampling_b)
            for i, prompt in enumerate(pictures.prompts)
        ]  # fmt: skip
        multiple = batch_multiple(self._mesh)
        results = cascade.generate(requests, batch_size=-(-len(requests) // multiple) * multiple)
        cascade.drop_variables()
        return np.stack([result.image for result in results])


class _Decoding(_Drawing):
    """Images of a batch, encoded to stage C's latent and decoded by stages B and A."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh) -> None:
        super().__init__(task, sources, mesh, ["clip_text", "stage_b", "stage_a"])
        encoder = EffnetEncoder(task.config.model.effnet_encoder)
        self._encode = jax.jit(encoder.apply)

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        cascade = self._ready(state, frozen)
        known = {**frozen, **trained_variables(self._task, state)}
        images = _shown(batch, batch_multiple(self._mesh))
        n, height, width, _ = images.shape
        hr, pixels = stage_c_latent(height, width), padded_pixels(height, width)
        bucket = Bucket(hr, hr, stage_b_latent(height, width), pixels)  # of any size, crops too
        # Stage C's latent has 42.67 pixels a side, the encoder 32: it sees a smaller image.
        sides = tuple(32 * round(side / STAGE_C_FACTOR) for side in (height, width))
        small = jax.image.resize(images.astype(np.float32) / 255, (n, *sides, 3), "linear")
        latent = fetch(self._encode(known["effnet_encoder"], small))
        captions = batch["caption"][:n]
        settings = DiffusionConfig(steps=10, cfg=1.1)
        requests = [
            Request(c, "", i, height, width, stage_c=settings, stage_b=settings)
            for i, c in enumerate(captions)
        ]
        made = cascade.decode(requests, bucket, latent)[:, :height, :width]
        cascade.drop_variables()
        return np.concatenate([images, made])


def _stage_a(task: Task) -> Pictures:
    module = StageA(task.config.model.stage_a)
    run = jax.jit(lambda v, x: module.apply(v, module.apply(v, x, method="encode"), method="decode"))

    def draw(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> np.ndarray:
        del frozen
        images = _shown(batch, 1)
        made = run(trained_variables(task, state)["stage_a"], images.astype(np.float32) / 255)
        return np.concatenate([images, np.asarray(to_uint8(jnp.asarray(fetch(made))))])

    return draw


def _previewer(task: Task) -> Pictures:
    encoder, module = EffnetEncoder(task.config.model.effnet_encoder), Previewer(task.config.model.previewer)
    run = jax.jit(lambda v, e, x: module.apply(v, encoder.apply(e, x.astype(task.dtype))))

    def draw(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> np.ndarray:
        images = _shown(batch, 1).astype(np.float32) / 255
        variables = trained_variables(task, state)["previewer"]
        made = fetch(run(variables, frozen["effnet_encoder"], images))
        small = jax.image.resize(images, made.shape, "linear")
        return np.asarray(to_uint8(jnp.concatenate([small, made.astype(jnp.float32)])))

    return draw


def _shown(batch: Mapping[str, Any], multiple: int) -> UInt8[np.ndarray, "n h w 3"]:
    """The first images of a batch, a number that divides over the mesh."""
    images = batch["image"]
    n = max(min(SHOWN, len(images)) // multiple, 1) * multiple
    return images[:n]


def save_pictures(log: Log, directory: epath.Path, step: int, pictures: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Write the sheet of `pictures` to `samples/` in the run's directory, and to TensorBoard."""
    if jax.process_index() != 0:
        return
    from PIL import Image

    image = sheet(pictures)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    folder = directory / SAMPLES
    with disk_errors(str(directory)):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"step-{step:07d}.png", data.getvalue())
    log.pictures(step, "samples", image)


def sheet(pictures: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "hs ws 3"]:
    """All pictures in one, about as wide as high, in rows."""
    n, h, w, _ = pictures.shape
    columns = min(n, max(1, round((n * h / w) ** 0.5)))
    if n % 2 == 0 and n > 4:
        columns = n // 2
    rows = -(-n // columns)
    out = np.full((rows * h, columns * w, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        out[y * h : (y + 1) * h, x * w : (x + 1) * w] = picture
    return out
