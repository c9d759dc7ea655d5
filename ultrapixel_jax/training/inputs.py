"""Batches onto the mesh: captions to token ids, and each process's rows to global arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Shaped

from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.data.buckets import lr_size
from ultrapixel_jax.data.config import MULTIPLE
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import batch_multiple, batch_sharding
from ultrapixel_jax.training.tasks.base import Task

CACHED = ("latent", "latent_lr", "text_states", "text_pooled", "image_vector")


class Inputs:
    """Turns the loader's batches into the device arrays that a task takes."""

    def __init__(self, task: Task, tokenizer: Path, mesh: Mesh) -> None:
        config = task.config
        self._sharding = batch_sharding(mesh)
        self._batch_size = config.data.batch_size
        self._rows = rows_of_batch(mesh, self._batch_size, config.optimizer.accumulate)
        self._path, self._lr_latent = config.data.path, config.lr_latent
        stage_c = config.model.stage_c
        self._widths = {
            "latent": stage_c.c_latent,
            "latent_lr": stage_c.c_latent,
            "text_states": stage_c.c_clip_text,
            "text_pooled": stage_c.c_clip_text_pooled,
            "image_vector": stage_c.c_clip_img,
        }
        """Of what is cached."""
        networks = (*task.trained, *task.frozen)
        names = ["latent"] if config.data.cached else ["image"]
        if "guidance" in networks:
            names += ["latent_lr"] if config.data.cached else ["image_lr"]
        if "controlnet" in networks:
            small = config.model.controlnet.kind == "super_resolution"
            names += [name for name in ["image" if small else "control"] if name not in names]
        if config.data.cached and "stage_c" in networks:
            names += ["image_vector"]
            if "clip_text" not in networks:
                names += ["text_states", "text_pooled"]
        if "clip_vision" in networks:
            names += ["image_clip", "use_image"]
        self._names = names
        self._tokenizer = None
        self._starts: np.ndarray | None = None
        if "clip_text" in networks:
            self._tokenizer = Tokenizer(tokenizer, config.model.clip_text.positions)
            if "lora" in task.trained and config.model.lora.tokens:
                self._tokenizer, self._starts = with_words(self._tokenizer, config.model)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Global arrays of this process's rows.

        Raises:
            UserError: the data were cached for networks of other widths.
        """
        arrays = {name: np.asarray(batch[name]) for name in self._names}
        for name in self._widths.keys() & arrays.keys():
            if (width := arrays[name].shape[-1]) != self._widths[name]:
                a = "an" if name[0] == "i" else "a"
                raise UserError(
                    f"data {self._path!r} has {a} {name} of width {width}, but the configuration's stage C "
                    f"takes {self._widths[name]}; cache the images with the encoders that belong to it"
                )
        if "latent_lr" in arrays:
            self._check_lr(batch["bucket"], arrays["latent_lr"].shape[1:3])
        if self._tokenizer is not None:
            arrays["ids"], arrays["mask"] = self._tokenizer(batch["caption"])
        if self._starts is not None:
            arrays["starts"] = np.repeat(self._starts[None], len(batch["caption"]), axis=0)
        return {name: self.place(x) for name, x in arrays.items()}

    def _check_lr(self, bucket: tuple[int, int], size: tuple[int, ...]) -> None:
        """Raise `UserError` where cached LR latents have not the size that the model samples with."""
        wanted = tuple(side // MULTIPLE for side in lr_size(*bucket, self._lr_latent))
        if size != wanted:
            raise UserError(
                f"data {self._path!r} has low-resolution latents of {size[0]}x{size[1]} for pictures of "
                f"{bucket[0]}x{bucket[1]}, and model.guidance.lr_side makes {wanted[0]}x{wanted[1]}; cache "
                f"the images again with --lr-latent {self._lr_latent}"
            )

    def place(self, x: Shaped[np.ndarray, "n ..."]) -> Array:
        """The array of a whole batch, of the rows that the loader gave this process."""
        return global_array(x, self._rows, self._batch_size, self._sharding)


def with_words(tokenizer: Tokenizer, model: CascadeConfig) -> tuple[Tokenizer, Int[np.ndarray, "n k"]]:
    """A tokenizer with the words of `model.lora.tokens`, and the ids of what each starts from; -1 fills up.

    Raises:
        UserError: a word that there is, or a pattern that is found in no token.
    """
    if tokenizer.vocab_size != model.clip_text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the text encoder "
            f"{model.clip_text.vocab_size}: give the one that belongs to it, before new words are added"
        )
    words = [token.partition("=") for token in model.lora.tokens]
    known = tokenizer.with_tokens({name.strip(): 1 for name, _, _ in words})
    found = [tokenizer.found_by(pattern.strip()) if pattern.strip() else [] for _, _, pattern in words]
    starts = np.full((len(found), max(1, *map(len, found))), -1, np.int32)
    for row, ids in zip(starts, found, strict=True):
        row[: len(ids)] = ids
    return known, starts


def rows_of_processes(mesh: Mesh, batch_size: int, parts: int = 1) -> dict[int, Int[np.ndarray, " n"]]:
    """Which rows of a batch each process holds, ascending: a function of the mesh, the same in all of them.

    Rows may be scattered, since a mesh follows the network and not the processes. Processes that hold parts
    of the same samples have the same rows, and one may have more than another. `parts` is
    `optimizer.accumulate`.

    Raises:
        UserError: the batch does not divide over the mesh.
    """
    multiple = batch_multiple(mesh)
    if batch_size % multiple:
        raise UserError(
            f"data.batch_size {batch_size} does not divide over the mesh's data·fsdp = {multiple} devices; "
            f"take a multiple of {multiple}"
        )
    if batch_size % (multiple * parts):
        raise UserError(
            f"optimizer.accumulate {parts} makes parts of {batch_size // parts} examples, which do "
            f"not divide over the mesh's data·fsdp = {multiple} devices; take fewer parts"
        )
    rows: dict[int, set[int]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        held = range(*index[0].indices(batch_size)) if index else range(batch_size)
        rows.setdefault(device.process_index, set()).update(held)
    return {process: np.array(sorted(held)) for process, held in sorted(rows.items())}


def rows_of_batch(mesh: Mesh, batch_size: int, parts: int = 1) -> Int[np.ndarray, " n"]:
    """`rows_of_processes` of this process."""
    return rows_of_processes(mesh, batch_size, parts)[jax.process_index()]


def global_array(
    x: Shaped[np.ndarray, "n ..."], rows: Int[np.ndarray, " n"], batch_size: int, sharding: NamedSharding
) -> Array:
    """The array of all processes' rows, of those that this process has.

    `x[i]` is row number `rows[i]` of `batch_size`.
    """

    def part(index: Any) -> np.ndarray:
        return x[held(rows, index[0], batch_size)]

    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)


def held(rows: Int[np.ndarray, " n"], device: slice, batch_size: int) -> slice:
    """Where among `rows`, those of a process, the rows of one of its devices are."""
    first, last, _ = device.indices(batch_size)
    start = int(np.searchsorted(rows, first))
    return slice(start, start + last - first)  # they follow one another in the batch, and so there
