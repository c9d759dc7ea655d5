"""The networks that measure, on the devices: from converted checkpoints, or with random weights of a seed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from ultrapixel_jax.checkpoints.directory import read_manifest, restore
from ultrapixel_jax.checkpoints.tokenizer import Tokenizer
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.config import ClipConfig, InceptionConfig, from_dict
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate import resizing
from ultrapixel_jax.files import fingerprint, place
from ultrapixel_jax.models import measuring
from ultrapixel_jax.models.clip_vision import preprocess
from ultrapixel_jax.report import Report
from ultrapixel_jax.sharding import batch_multiple, fetch, parameter_sharding

RANDOM = re.compile(r"random:([0-9]{1,9})")
Arrays = dict[str, Float32[np.ndarray, "_n ..."]]
"""What a network makes of pictures, by name; the first axis is the picture or crop."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """One view of every picture, and what a network makes of it."""

    name: str
    """Of its files."""
    identity: str
    """Weights and all settings that its numbers depend on."""
    views: Callable[[Image.Image, str], list[np.ndarray]]
    """A picture and its name to what the network is given, views of one shape; for crops any number."""
    run: Callable[[np.ndarray], Arrays]
    """Views to numbers; always of `batch_size`, the last batch filled up."""
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a network's weights come from, as reports tell it."""

    name: str
    source: str
    """The file or the seed."""
    sha256: str
    """Of the weights as converted."""


class Networks:
    """Finds, loads and runs them; each is loaded when it is first asked for."""

    def __init__(
        self,
        weights: Sequence[str],
        *,
        batch_size: int = 32,
        dtype: str = "float32",
        mesh: jax.sharding.Mesh | None = None,
        inception: InceptionConfig | None = None,
    ) -> None:
        """Look into the checkpoints.

        Args:
            weights: converted checkpoints, and `random:SEED` for an Inception with random weights.
            batch_size: pictures or crops at once, rounded up to what the mesh divides.
            dtype: of computing.
            mesh: devices to spread over.
            inception: sizes of a random one; None is the real network's.

        Raises:
            UserError: a directory is no checkpoint, or holds none of these networks.
        """
        multiple = batch_multiple(mesh)
        self.batch_size = -(-batch_size // multiple) * multiple
        self.dtype, self._mesh = dtype, mesh
        self._random = inception or InceptionConfig()
        self._found: dict[str, str] = {}
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._programs: dict[tuple[str, str], Program] = {}
        for where in weights:
            if RANDOM.fullmatch(where):
                self._found["inception"] = where
                continue
            if where.startswith("random"):
                raise UserError(f"--weights {where!r:.80} needs a seed, as random:0")
            known = [name for name in read_manifest(place(where)).components if measuring.kind_of(name)]
            if not known:
                raise UserError(
                    f"{where} holds no network that measures pictures ({', '.join(measuring.NETWORKS)}); "
                    "convert Inception or a CLIP, the latter with --component NAME"
                )
            self._found |= dict.fromkeys(known, where)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    @property
    def names(self) -> list[str]:
        """Those that are there."""
        return [name for name in measuring.NETWORKS if name in self._found]

    def require(self, name: str, what: str) -> None:
        """Raise `UserError` where `name` is missing; `what` needs it."""
        if name not in self._found:
            there = ", ".join(self.names) or "none"
            command = f"python -m convert FILE WEIGHTS --component {name}"
            raise UserError(f"{what} needs {name}, and --weights have {there}; convert it: {command}")

    def origin(self, name: str) -> Origin:
        """Where its weights come from."""
        where = self._found[name]
        if RANDOM.fullmatch(where):
            return Origin(name, where, fingerprint([where, dataclasses.asdict(self._random)]))
        info = read_manifest(place(where)).components[name]
        return Origin(name, info.source or where, info.sha256)

    @property
    def features(self) -> int:
        """Values of a picture that FID compares."""
        return self._config("inception").features

    # ------------------------------------------------------------------------ channels

    def inception(self, convention: resizing.Convention) -> Channel:
        """Whole pictures, resized by a convention, to `features` and `logits`."""
        config, run = self._inception(convention)

        def views(image: Image.Image, name: str) -> list[np.ndarray]:
            del name
            return [resizing.CONVENTIONS[convention](np.asarray(image), config.image_size)]

        identity = fingerprint([self.origin("inception").sha256, convention, self._settings])
        return Channel("inception", identity, views, run, self.batch_size)

    def crops(self, convention: resizing.Convention, how: resizing.Crops, seed: int) -> Channel:
        """Crops at the picture's own size, to `features` and `logits`; the convention only scales."""
        config, run = self._inception(convention)

        def views(image: Image.Image, name: str) -> list[np.ndarray]:
            return list(resizing.crops(np.asarray(image), config.image_size, how, name, seed))

        parts = [self.origin("inception").sha256, convention, how, seed, self._settings]
        return Channel("crops", fingerprint(parts), views, run, self.batch_size)

    def clip(self, name: str) -> Channel:
        """Whole pictures to vectors of length 1, `image`."""
        config, run, _ = self._clip(name)
        side = config.vision.image_size

        def views(image: Image.Image, _: str) -> list[np.ndarray]:
            return [preprocess([image], side)[0]]

        identity = fingerprint([self.origin(name).sha256, self._settings])
        return Channel(name, identity, views, lambda x: {"image": run(x)}, self.batch_size)

    def texts(self, name: str, prompts: Sequence[str]) -> dict[str, Float[np.ndarray, " p"]]:
        """Vectors of length 1 of prompts."""
        config, _, encode = self._clip(name)
        tokenizer = Tokenizer(place(self._found[name]) / "tokenizer", config.text.positions)
        if tokenizer.vocab_size != config.text.vocab_size:
            raise UserError(
                f"the tokenizer in {self._found[name]} has {tokenizer.vocab_size} tokens, and {name} "
                f"{config.text.vocab_size}; convert it with its own"
            )
        unique, out = list(dict.fromkeys(prompts)), {}
        for start in range(0, len(unique), self.batch_size):
            part = unique[start : start + self.batch_size]
            filled = [*part, *[part[-1]] * (self.batch_size - len(part))]
            vectors = encode(*tokenizer(filled))
            out |= dict(zip(part, vectors))
        return out

    def scale(self, name: str) -> float:
        """What a CLIP multiplies cosines by."""
        self._clip(name)
        return float(np.exp(np.float64(fetch(self._loaded[name][1]["params"]["logit_scale"]))))

    # ------------------------------------------------------------------------ inside

    @property
    def _settings(self) -> list[Any]:
        return [self.dtype, self.batch_size]

    def _config(self, name: str) -> Any:
        where = self._found[name]
        if RANDOM.fullmatch(where):
            return self._random
        kind = measuring.kind_of(name)
        assert kind is not None
        return from_dict(measuring.KINDS[kind], read_manifest(place(where)).components[name].config)

    def _load(self, name: str) -> tuple[Any, Any]:
        """(configuration, variables) of a network."""
        if name in self._loaded:
            return self._loaded[name]
        where, dtype, mesh = self._found[name], jnp.dtype(self.dtype), self._mesh

        def placed(path: str, struct: Any) -> Any:
            if mesh is None:
                return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            return parameter_sharding(path, struct.shape, mesh)

        if found := RANDOM.fullmatch(where):
            config: Any = self._random

            def put(path: str, x: np.ndarray) -> Any:
                kept = dtype if path.startswith("params/") else x.dtype
                return jax.device_put(x.astype(kept), placed(path, x))

            variables = measuring.random_inception(self._random, int(found[1]), put)
            self._loaded[name] = self._random, variables
            return self._loaded[name]
        config = self._config(name)
        # What does not fit is noticed when the network is traced (`layers.parameter`).
        variables = restore(where, name, dtype=dtype, shardings=placed)
        self._loaded[name] = config, variables
        return self._loaded[name]

    def _program(self, function: Callable[..., Any], batched: Sequence[int]) -> Program:
        def exact(*args: Any) -> Any:
            # TPUs, and GPUs with TF32, multiply float32 with fewer digits unless told.
            precise = "highest" if self.dtype == "float32" else None
            with jax.default_matmul_precision(precise):  # pyright: ignore[reportArgumentType]
                return function(*args)

        return Program(exact, batched=batched, mesh=self._mesh, report=Report(), dtype=jnp.dtype(self.dtype))

    def _inception(
        self, convention: resizing.Convention
    ) -> tuple[InceptionConfig, Callable[[np.ndarray], Arrays]]:
        config, variables = self._load("inception")
        if ("inception", "run") not in self._programs:
            module = measuring.build(config, jnp.dtype(self.dtype))
            self._programs["inception", "run"] = self._program(module.apply, (1,))
        program = self._programs["inception", "run"]

        def run(views: np.ndarray) -> Arrays:
            features, logits = program(variables, resizing.scaled(views, convention))
            return {"features": _whole(features), "logits": _whole(logits)}

        return config, run

    def _clip(
        self, name: str
    ) -> tuple[ClipConfig, Callable[[np.ndarray], np.ndarray], Callable[..., np.ndarray]]:
        config, variables = self._load(name)
        if (name, "image") not in self._programs:
            module: Any = measuring.build(config, jnp.dtype(self.dtype))

            def image(v: Any, x: Any) -> Any:
                return module.apply(v, x, method="encode_image")

            def text(v: Any, ids: Any, mask: Any) -> Any:
                return module.apply(v, ids, mask, method="encode_text")

            self._programs[name, "image"] = self._program(image, (1,))
            self._programs[name, "text"] = self._program(text, (1, 2))
        pictures, texts = self._programs[name, "image"], self._programs[name, "text"]
        return (
            config,
            lambda x: _whole(pictures(variables, x)),
            lambda ids, mask: _whole(texts(variables, ids, mask)),
        )


def _whole(x: Any) -> Float32[np.ndarray, "..."]:
    return np.asarray(fetch(x), np.float32)


def described(networks: Networks, names: Sequence[str]) -> list[Mapping[str, str]]:
    """Origins of networks, JSON-able."""
    return [dataclasses.asdict(networks.origin(name)) for name in names]
