"""Pictures made while training, of a fixed set with fixed noise: what the figures do not show."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped, UInt8

from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.checkpoints.weights import Weights, from_sources
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.data.sheet import sheet
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole
from ultrapixel_jax.models import lora
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.previewer import Previewer
from ultrapixel_jax.models.resize import resize_antialiased
from ultrapixel_jax.models.scan import SCANNABLE, unstack
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.report import Report
from ultrapixel_jax.sampling.conditions import Canny, Conditions, Control, Inpainting, SuperResolution
from ultrapixel_jax.sampling.pipeline import Cascade
from ultrapixel_jax.sampling.requests import DECODE_BYTES, Request
from ultrapixel_jax.sampling.tiling import decode_tiled, halo_for, tile_for_budget, to_uint8
from ultrapixel_jax.sharding import batch_multiple, batch_sharding, fetch
from ultrapixel_jax.sizes import (
    MIN_SIDE,
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
from ultrapixel_jax.training.tasks.base import Task

Pictures = Callable[[TrainState, Mapping[str, Any], Mapping[str, Any]], UInt8[np.ndarray, "n h w 3"]]
"""(state, frozen variables, a batch of the loader) to pictures, the same in every process."""
Place = Callable[[np.ndarray], jax.Array]
"""The global array of a batch, of the rows that this process has read (`Inputs.place`)."""
SAMPLES = "samples"
SHOWN = 8
"""Most images of a batch that are shown beside their reconstruction."""


def make_pictures(task: Task, sources: Sources, mesh: Mesh, place: Place) -> Pictures:
    """The function that draws what `task` can show.

    Stage C's tasks draw the configured prompts; the others show images of a batch above what they make
    of them. All processes have to call it, as they all hold parts of the networks.

    Raises:
        UserError: a network is missing that it takes to decode, or the task has nothing to show.
    """
    kind = type(task.config.task)
    if kind is cfg.TextTask:
        raise UserError("pictures.every is set, but the text encoder alone draws nothing; leave it at 0")
    if kind is cfg.ControlNetTask:
        return Controlled(task, sources, mesh, place)
    if kind is cfg.StageATask:
        return _stage_a(task, mesh, place)
    if kind is cfg.PreviewerTask:
        return _previewer(task, mesh, place)
    if kind is cfg.StageBTask:
        return _Decoding(task, sources, mesh, place)
    shown = task.config.pictures
    draw = Sampling(task, sources, mesh, preview=shown.preview, what="pictures.every")

    def drawn(state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any]) -> np.ndarray:
        del batch
        return draw(state, frozen, shown.prompts, shown.size)

    return drawn


def trained_variables(task: Task, state: TrainState) -> dict[str, Any]:
    """Variables of the trained networks as sampling takes them: the average, blocks unstacked."""
    params = state.ema or state.params
    out = {name: {"params": params[name], **state.collections[name]} for name in task.trained}
    return unstacked(task, out)


def unstacked(task: Task, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` by component without stacked blocks."""
    config = task.config
    return {
        name: unstack(v, getattr(config.model, name)) if config.scanned and name in SCANNABLE else dict(v)
        for name, v in variables.items()
    }


class _Drawing:
    """A cascade that takes its trained networks from the state, the others from frozen ones or sources."""

    def __init__(
        self, task: Task, sources: Sources, mesh: Mesh, wanted: Sequence[str], what: str = "pictures.every"
    ) -> None:
        self._task, self._sources, self._mesh = task, sources, mesh
        self._wanted, self._what = list(wanted), what
        missing = [name for name in wanted if name not in task.trained]
        sources.require(missing, what)
        self._cascade: Cascade | None = None

    def _ready(self, state: TrainState, frozen: Mapping[str, Any]) -> Cascade:
        task, config = self._task, self._task.config
        dtype = jnp.dtype(config.dtype)
        known = {**unstacked(task, frozen), **trained_variables(task, state)}
        words = ()
        if "lora" in known:
            params = known.pop("lora")["params"]
            for name, part in (("stage_c", params), ("clip_text", params.get("clip_text", {}))):
                if own := lora.changes(part, config.model.lora.alpha):
                    known[name] = lora.merge(known[name], [(own, 1.0)])
            if config.model.lora.tokens:
                words = lora.named_tokens(config.model.lora, fetch(params["embeddings"]))
        variables = {}
        for name in self._wanted:
            exact = name in ("stage_a", "previewer")
            if name in known:
                variables[name] = jax.tree.map(
                    lambda x, exact=exact: x.astype(jnp.float32 if exact else dtype), known[name]
                )
            else:
                loaded = from_sources(
                    self._sources, config.model, [name], what=self._what, dtype=config.dtype,
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
        self._cascade.personal.bring(words)
        if "controlnet" in known:
            own = jax.tree.map(lambda x: x.astype(dtype), known["controlnet"])
            self._cascade.conditioner.control.bring(config.model.controlnet, own)
        return self._cascade


class Sampling(_Drawing):
    """Prompts to pictures, always with the same noise; for tasks of stage C."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh, *, preview: bool, what: str) -> None:
        guided = isinstance(task.config.task, cfg.GUIDED) and task.config.model.guidance is not None
        decoders = ["previewer"] if preview else ["stage_b", "stage_a"]
        wanted = ["clip_text", "stage_c", *(["guidance"] if guided else []), *decoders]
        super().__init__(task, sources, mesh, wanted, what)

    def __call__(
        self,
        state: TrainState,
        frozen: Mapping[str, Any],
        prompts: Sequence[str],
        size: tuple[int, int],
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """All pictures, made at once."""
        return np.concatenate(list(self.batches(state, frozen, prompts, size, len(prompts))))

    def batches(
        self,
        state: TrainState,
        frozen: Mapping[str, Any],
        prompts: Sequence[str],
        size: tuple[int, int],
        batch_size: int,
    ) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        """The same, one batch after the other."""
        cascade, model = self._ready(state, frozen), self._task.config.model
        requests = [
            Request(prompt, "", i, *size, stage_c=model.sampling_c, stage_b=model.sampling_b)
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        multiple = batch_multiple(self._mesh)
        padded = -(-batch_size // multiple) * multiple
        try:
            for start in range(0, len(requests), padded):
                results = cascade.generate(requests[start : start + padded], batch_size=padded)
                yield np.stack([_at_size(result.image, size) for result in results])
        finally:
            cascade.drop_variables()


def _at_size(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture as large as it was asked for, as the previewer's are not."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


class Controlled(_Drawing):
    """What a ControlNet sees of a batch's pictures, each beside what is drawn with that and its caption."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh, place: Place) -> None:
        self._kind, self._place = task.config.model.controlnet.kind, place
        decoders = ["previewer"] if task.config.pictures.preview else ["stage_b", "stage_a"]
        encoder = ["effnet_encoder"] if self._kind == "super_resolution" else []
        super().__init__(task, sources, mesh, ["clip_text", "stage_c", *encoder, *decoders])
        self.labels: list[str] = []
        """Of the last pictures."""

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Pictures of both halves: to the left what it sees, to the right what is drawn."""
        cascade, model = self._ready(state, frozen), self._task.config.model
        name = "image" if self._kind == "super_resolution" else "control"
        seen, captions = _first_rows(self._place(np.asarray(batch[name]))), shown_captions(batch, self._place)
        cascade.conditioner.control_side = min(batch["bucket"])
        # The encoder has 32 pixels for a position of the latent, the picture 42.67, and 256 at least.
        scale = max(STAGE_C_FACTOR / 32, MIN_SIDE / min(batch["bucket"]))
        height, width = (round(side * scale) for side in batch["bucket"])
        requests = [
            Request(
                caption, "", i, height, width, stage_c=model.sampling_c, stage_b=model.sampling_b,
                conditions=Conditions((control_of(self._kind, rows),)),
            )
            for i, (caption, rows) in enumerate(zip(captions, seen, strict=True))
        ]  # fmt: skip
        multiple = batch_multiple(self._mesh)
        results = cascade.generate(requests, batch_size=-(-len(requests) // multiple) * multiple)
        cascade.drop_variables()
        self.labels = [f"{self._kind}: {caption}" for caption in captions]
        halves = [
            [_at_size(_rgb(image), (height, width)) for image in (result.controls[self._kind], result.image)]
            for result in results
        ]
        return np.stack([np.concatenate(pair, axis=1) for pair in halves])


def control_of(kind: str, seen: Shaped[np.ndarray, "h w c"]) -> Control:
    """The control of a training picture, of what the loader has of it: its map, or the picture itself."""
    if kind == "canny":
        return Canny(np.round(255 * seen[..., 0]).astype(np.uint8), strength=1.0, ready=True)
    if kind == "inpainting":
        return Inpainting(seen[..., :3], seen[..., 3], strength=1.0)
    return SuperResolution(seen, strength=1.0)


def _rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


class _Decoding(_Drawing):
    """Images of a batch, encoded to stage C's latent and decoded by stages B and A."""

    def __init__(self, task: Task, sources: Sources, mesh: Mesh, place: Place) -> None:
        super().__init__(task, sources, mesh, ["clip_text", "stage_b", "stage_a"])
        self._place = place
        encoder = EffnetEncoder(task.config.model.effnet_encoder)

        @jax.jit
        def encode(variables: Any, images: Array) -> Any:
            # Stage C's latent has 42.67 pixels a side, the encoder 32: it sees a smaller image.
            height, width = (32 * round(side / STAGE_C_FACTOR) for side in images.shape[1:3])
            return encoder.apply(variables, resize_antialiased(images, (height, width)))

        self._encode = encode

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        cascade = self._ready(state, frozen)
        images, captions = shown(batch, self._place), shown_captions(batch, self._place)
        n, height, width, _ = images.shape
        hr, pixels = stage_c_latent(height, width), padded_pixels(height, width)
        bucket = Bucket(hr, hr, stage_b_latent(height, width), pixels)  # of any size, crops too
        encoder = {**frozen, **trained_variables(self._task, state)}["effnet_encoder"]
        latent = fetch(self._encode(encoder, spread(images, self._mesh)))
        settings = DiffusionConfig(steps=10, cfg=1.1)
        filled = [*captions, *[captions[-1]] * (len(latent) - n)]
        requests = [
            Request(c, "", i, height, width, stage_c=settings, stage_b=settings) for i, c in enumerate(filled)
        ]
        made = cascade.decode(requests, bucket, latent)[:n, :height, :width]
        cascade.drop_variables()
        return np.concatenate([images, made])


def _stage_a(task: Task, mesh: Mesh, place: Place) -> Pictures:
    config = task.config.model.stage_a
    module = StageA(config)
    encode = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
    decode = jax.jit(lambda v, z: module.apply(v, z, method="decode"))

    def draw(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> np.ndarray:
        del frozen
        images, variables = shown(batch, place), trained_variables(task, state)["stage_a"]
        n, height, width, _ = images.shape
        latent = encode(variables, spread(images, mesh))
        tile = tile_for_budget(DECODE_BYTES, config, jnp.float32, len(latent))
        made = decode_tiled(
            lambda z: decode(variables, z), latent, tile, halo_for(config), size=(height, width),
            as_uint8=True,
        )  # fmt: skip
        return np.concatenate([images, made[:n]])

    return draw


def _previewer(task: Task, mesh: Mesh, place: Place) -> Pictures:
    encoder, module = EffnetEncoder(task.config.model.effnet_encoder), Previewer(task.config.model.previewer)
    run = jax.jit(lambda v, e, x: module.apply(v, encoder.apply(e, x.astype(task.dtype))))

    def draw(state: TrainState, frozen: Any, batch: Mapping[str, Any]) -> np.ndarray:
        images = shown(batch, place)
        networks = {**frozen, **trained_variables(task, state)}
        made = fetch(run(networks["previewer"], networks["effnet_encoder"], spread(images, mesh)))
        made = made[: len(images)].astype(np.float32)
        small = resize_antialiased(jnp.asarray(images, jnp.float32) / 255, made.shape[1:3])
        return np.asarray(to_uint8(jnp.concatenate([small, made])))

    return draw


def shown(batch: Mapping[str, Any], place: Place) -> UInt8[np.ndarray, "n h w 3"]:
    """The first images of the whole batch, in every process, whichever rows each of them has read."""
    return _first_rows(place(np.asarray(batch["image"])))


def shown_captions(batch: Mapping[str, Any], place: Place) -> list[str]:
    """Their captions."""
    encoded = [caption.encode() for caption in batch["caption"]]
    longest = np.max(multihost_utils.process_allgather(np.asarray(max(map(len, encoded)))))
    rows = np.zeros((len(encoded), int(longest) + 1), np.uint8)
    for row, caption in zip(rows, encoded, strict=True):
        row[: len(caption)] = np.frombuffer(caption, np.uint8)
    return [row.tobytes().rstrip(b"\0").decode() for row in _first_rows(place(rows))]


def _first_rows(x: Array) -> np.ndarray:
    sharding: Any = x.sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x[:SHOWN], out_shardings=whole)(x))


def spread(images: UInt8[np.ndarray, "n h w 3"], mesh: Mesh) -> Float[Array, "n2 h w 3"]:
    """Images that every process has, in [0, 1], divided over `mesh`; the last one fills up the batch."""
    multiple = batch_multiple(mesh)
    count = -(-len(images) // multiple) * multiple
    filled = images[np.minimum(np.arange(count), len(images) - 1)].astype(np.float32) / 255
    return jax.make_array_from_callback(filled.shape, batch_sharding(mesh), lambda index: filled[index])


def save_pictures(
    log: Log,
    directory: epath.Path,
    step: int,
    pictures: UInt8[np.ndarray, "n h w 3"],
    labels: Sequence[str] | None,
) -> None:
    """Write the sheet of `pictures` to `samples/` in the run's directory, and to TensorBoard.

    Each has its label below; without labels, the second half are what is made of the first, below them.
    """
    if jax.process_index() != 0:
        return
    from PIL import Image

    if labels is None:
        half = len(pictures) // 2
        image = sheet(list(pictures), [""] * half + ["made of the one above"] * half, columns=half)
    else:
        image = sheet(list(pictures), labels)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    folder = directory / SAMPLES
    with disk_errors(str(directory)):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"step-{step:07d}.png", data.getvalue())
    log.pictures(step, SAMPLES, image)


def labels_of(task: Task, draw: Pictures) -> Sequence[str] | None:
    """What `draw` has just drawn, by its prompts; None where images are shown above what is made of them."""
    if isinstance(draw, Controlled):
        return draw.labels
    reconstructs = type(task.config.task) in (cfg.StageATask, cfg.PreviewerTask, cfg.StageBTask)
    return None if reconstructs else task.config.pictures.prompts
