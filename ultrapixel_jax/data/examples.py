"""One example of a dataset as the loader gives it: decoded, cropped, with its random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultrapixel_jax import controls
from ultrapixel_jax.controls import masks
from ultrapixel_jax.data import images
from ultrapixel_jax.data.buckets import HW, lr_size
from ultrapixel_jax.data.config import LR_LATENT, DataConfig
from ultrapixel_jax.data.plan import EXAMPLE, uniforms
from ultrapixel_jax.data.records import Dataset
from ultrapixel_jax.errors import UserError

EMPTY_PROMPT = "empty_prompt.npz"
"""In a cached dataset: float32 `text_states` and `text_pooled` of the empty prompt."""
NUMBERS = 4 + masks.NUMBERS
"""Random numbers of an example."""


class BrokenExample(Exception):  # noqa: N818  (it names a thing in the data, not a fault of ours)
    """An example that cannot be used."""

    def __init__(self, id_: str, message: str) -> None:
        super().__init__(message)
        self.id = id_


class Read:
    """What reading images and latents have in common."""

    def __init__(self, dataset: Dataset, config: DataConfig, sizes: list[HW]) -> None:
        self._source, self.config, self._sizes = dataset.source, config, sizes

    def __call__(self, bucket: int, index: int, drawn: list[float]) -> dict[str, Any]:
        """Example `index`, with random numbers in [0, 1): of its crop, its caption, its vector, its mask."""
        y, x, drop, vector, *mask = drawn
        size = self._sizes[bucket]
        try:
            record = self._source[index]
            id_, caption = record["id"].decode(), record["caption"].decode()
        except Exception as error:  # the record reader and its parser name no types
            raise BrokenExample(f"record {index}", " ".join(str(error).split())) from error
        dropped, use = drop < self.config.caption_dropout, vector < self.config.image_vector_probability
        return {
            "ids": id_,
            "caption": "" if dropped else caption,
            "bucket": size,
            "use_image": np.bool_(use),
            **self._controlled(self._content(record, id_, size, (y, x), dropped, use), np.array(mask)),
        }

    def _controlled(self, content: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
        """`content` with the map that a ControlNet is trained on, if one is."""
        if self.config.control in ("canny", "inpainting"):
            content["control"] = controls.map_of_picture(self.config.control, content["image"], numbers)
            if self.config.cached:
                del content["image"]  # which the map was made of
        return content

    def _content(
        self, record: dict[str, Any], id_: str, size: HW, place: tuple[float, float], dropped: bool, use: bool
    ) -> dict[str, Any]:
        raise NotImplementedError


class ReadImage(Read):
    """Reads images."""

    def _content(
        self, record: dict[str, Any], id_: str, size: HW, place: tuple[float, float], dropped: bool, use: bool
    ) -> dict[str, Any]:
        try:
            image = images.decode(record["image"], self.config.max_megapixels)
        except images.BrokenImage as error:
            raise BrokenExample(id_, str(error)) from error
        image, low = crop_pair(image, size, place, self.config)
        out = {"image": images.pixels(image), "image_lr": images.pixels(low)}
        if s := self.config.clip_image_size:
            out["image_clip"] = np.zeros((s, s, 3), np.float32)
            if use:
                from ultrapixel_jax.models.clip_vision import preprocess

                out["image_clip"] = preprocess([image], s)[0]
        return out


class ReadCached(Read):
    """Reads what was cached of them."""

    def __init__(self, dataset: Dataset, config: DataConfig, sizes: list[HW]) -> None:
        super().__init__(dataset, config, sizes)
        try:
            with np.load(dataset.directory / EMPTY_PROMPT, allow_pickle=False) as arrays:
                self._empty = {name: arrays[name] for name in ("text_states", "text_pooled")}
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"data {config.path!r} has no usable {EMPTY_PROMPT}; cache it again") from error
        if config.control and "picture" not in dataset.features:
            raise UserError(
                f"data {config.path!r} has latents without the pictures that {config.control} is made of; "
                "cache it again with --pictures, or train on images: --data.no-cached"
            )

    def _content(
        self, record: dict[str, Any], id_: str, size: HW, place: tuple[float, float], dropped: bool, use: bool
    ) -> dict[str, Any]:
        names = ("latent", "latent_lr", "text_states", "text_pooled", "image_vector")
        out = {name: record[name] for name in names}
        if dropped:
            out |= {name: array.astype(out[name].dtype) for name, array in self._empty.items()}
        if not use:
            out["image_vector"] = np.zeros_like(out["image_vector"])
        if self.config.control:
            try:
                out["image"] = images.pixels(images.decode(record["picture"]))
            except images.BrokenImage as error:
                raise BrokenExample(id_, str(error)) from error
        return out


def drawn(config: DataConfig, epoch: int, index: int) -> list[float]:
    """Random numbers in [0, 1) of example `index` in `epoch`: y and x of its crop, those that decide on its
    caption and on its image vector, and those of a mask.
    """
    return uniforms(NUMBERS, (config.seed, EXAMPLE, epoch, index)).tolist()


def place_of(config: DataConfig, epoch: int, index: int) -> tuple[float, float]:
    """Where example `index` is cropped in `epoch`: y and x in [0, 1)."""
    y, x = drawn(config, epoch, index)[:2]
    return y, x


def crop_pair(image: Any, size: HW, place: tuple[float, float], config: DataConfig) -> tuple[Any, Any]:
    """An image brought to its bucket's size, and the low-resolution copy; Pillow images."""
    image = images.crop(images.cover(image, size), size, *place)
    return image, images.low_resolution(
        image, lr_size(*size, config.lr_latent or LR_LATENT), config.lr_resize
    )
