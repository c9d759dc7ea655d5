"""Batches onto the mesh: captions to token ids, and each process's rows to global arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped

from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import batch_multiple, batch_sharding
from ultrapixel_jax.training.tasks.base import Task

CACHED = ("latent", "latent_lr", "text_states", "text_pooled", "image_vector")


class Inputs:
    """Turns the loader's batches into the device arrays that a task takes."""

    def __init__(self, task: Task, tokenizer: Path, mesh: Mesh) -> None:
        config = task.config
        self._sharding = batch_sharding(mesh)
        self._path = config.data.path
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
        if config.data.cached and "stage_c" in networks:
            names += ["image_vector"]
            if "clip_text" not in networks:
                names += ["text_states", "text_pooled"]
        if "clip_vision" in networks:
            names += ["image_clip", "use_image"]
        self._names = names
        self._tokenizer = None
        if "clip_text" in networks:
            self._tokenizer = Tokenizer(tokenizer, config.model.clip_text.positions)

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
        if self._tokenizer is not None:
            arrays["ids"], arrays["mask"] = self._tokenizer(batch["caption"])
        return {name: self.place(x) for name, x in arrays.items()}

    def place(self, rows: Shaped[np.ndarray, "n ..."]) -> Array:
        """The global array of a batch, of the rows that the loader gave this process."""
        return jax.make_array_from_process_local_data(self._sharding, rows)


def share_of_batch(mesh: Mesh, batch_size: int, parts: int = 1) -> tuple[int, int]:
    """(index, count): which of `count` equal slices of a batch this process reads.

    Processes that hold parts of the same samples read the same slice. `parts` is `optimizer.accumulate`.

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
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = sorted(
        {row for index in places.values() for s in index or () for row in range(*s.indices(batch_size))}
    )
    first, count = rows[0], len(rows)
    if rows != list(range(first, first + count)) or batch_size % count or first % count:
        raise UserError(
            "the devices of one process hold scattered parts of the batch; let the product of mesh.tensor "
            "and mesh.rows divide the devices of a process, or be a multiple of them"
        )
    return first // count, batch_size // count
