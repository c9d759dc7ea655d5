"""LoRA files, whoever wrote them, as changes of our layers and new tokens; recognised by content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.describe import look
from ultrapixel_jax.layouts.files import TensorFile, check_finite, find_files
from ultrapixel_jax.layouts.lora.names import DEPTHWISE, Target, look_up, numbered
from ultrapixel_jax.models.lora import (
    Change,
    Lora,
    NewToken,
    misfit,
    problem,
    stage_c_layers,
    stored_tokens,
    thirds,
)

OTHERS: Mapping[str, str] = {
    r"hada_\w+": "a LoHa (LyCORIS)",
    r"lokr_\w+": "a LoKr (LyCORIS)",
    r"oft_[\w.]+|boft_\w+": "an OFT or BOFT",
    r"diff|diff_b|w_norm|b_norm": "a file of full differences (LyCORIS)",
    r"lora_mid(\.weight)?": "a LoCon in Tucker's form (lora_mid)",
    r"reshape_weight": "a LoRA that gives weights other shapes (reshape_weight)",
    r"on_input": "an (IA)³",
}
"""Leaves of kinds of changes that are not read, with what they are."""
_WAYS = {"lora_down": "down", "lora_A": "down", "lora.down": "down", "lora.A": "down"}
_WAYS |= {name.replace("down", "up").replace("A", "B"): "up" for name in _WAYS}
_FACTOR = re.compile(rf"(?P<module>.+?)[._](?P<way>{'|'.join(map(re.escape, _WAYS))})(\.default)?(\.weight)?")
_BESIDE = re.compile(
    r"(?P<module>.+)\.(?P<leaf>alpha|dora_scale|lora_magnitude_vector)(\.default)?(\.weight)?"
)
_OTHER = {re.compile(rf"(?P<module>.+)\.(?P<leaf>{leaf})"): kind for leaf, kind in OTHERS.items()}
_NUMBERED = re.compile(r"(?:(?:module|weights)\.)*(\d+)\.lora_(down|up)")
_TOKENS = re.compile(r"(?:(?:module|embeddings)\.)*(?:\d+\.)?(embeddings|indices)")
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+)\.(?P<which>clip_\w+)")
KEPT_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
"""In which factors are kept as they are; others become float32."""
INVERSION = "clip_g"
"""The one key of a textual inversion for CLIP bigG."""
CASCADE = "Stable Cascade"


def is_lora(keys: Any) -> bool:
    """Whether a file with these keys holds low-rank changes or new tokens, in whatever layout."""
    keys = list(keys)
    return any(
        _FACTOR.fullmatch(key) or _NUMBERED.fullmatch(key) or _BUNDLED.fullmatch(key) for key in keys
    ) or keys == [INVERSION]


def read_file(path: Path, config: CascadeConfig) -> Lora:
    """The LoRA in the file `path`, for a model of `config`.

    Raises:
        UserError: it is none, of another model or variant, of a kind that is not read, or damaged.
    """
    files = find_files([path])
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} files with weights; name the LoRA itself")
    return read(files[0], config)


def read(file: TensorFile, config: CascadeConfig) -> Lora:
    """The LoRA in an opened `file`; raises as `read_file`."""
    where = str(file.path)
    for key in file.specs:
        for pattern, kind in _OTHER.items():
            if found := pattern.fullmatch(key):
                raise UserError(
                    f"{where} is {kind}: it has {found['leaf']}; LoRA and DoRA are read, so train or "
                    "convert it as one of these"
                )
    seen = look(file.specs)
    if not is_lora(file.specs) or (seen.startswith("it looks like a LoRA for ") and CASCADE not in seen):
        raise UserError(f"{where} is no LoRA of this model: {seen}")
    reading = _Reading(file, config)
    reading.read()
    lora = reading.result()
    if why := misfit(lora, config.stage_c, config.clip_text):
        raise UserError(f"{where} does not fit the model: {why}")
    return lora


class _Reading:
    """What has been read of a file."""

    def __init__(self, file: TensorFile, config: CascadeConfig) -> None:
        self.file, self.config, self.where = file, config, str(file.path)
        self.changes: dict[str, dict[str, Change]] = {"stage_c": {}, "clip_text": {}}
        self.tokens: list[NewToken] = []
        self.offsets: dict[int, np.ndarray] = {}

    def result(self) -> Lora:
        changes = {network: own for network, own in self.changes.items() if own}
        return Lora(self.where, changes, tuple(self.tokens), self.offsets)

    def read(self) -> None:
        """Sort the file's tensors, and read them."""
        modules: dict[str, dict[str, str]] = {}
        """By the file's name of a layer: what it has, `down`, `up`, `alpha`, …, to the key."""
        stored: dict[str, str] = {}
        strange = []
        for key in self.file.specs:
            if found := _NUMBERED.fullmatch(key):
                modules.setdefault(found[1], {})[found[2]] = key
            elif found := _FACTOR.fullmatch(key):
                modules.setdefault(found["module"], {})[_WAYS[found["way"]]] = key
            elif found := _BESIDE.fullmatch(key):
                modules.setdefault(found["module"], {})[found["leaf"]] = key
            elif found := _TOKENS.fullmatch(key):
                stored[found[1]] = key
            elif found := _BUNDLED.fullmatch(key):
                self._bundled(key, found["name"], found["which"])
            elif key == INVERSION:
                self.tokens.append(NewToken(None, self._vectors(key), absolute=True))
            else:
                strange.append(key)
        if strange:
            raise UserError(f"{self.where}: {strange[0]:.80} is no part of a LoRA that is known here")
        self._layers(modules)
        if stored:
            self._stored(stored)

    def _layers(self, modules: Mapping[str, Mapping[str, str]]) -> None:
        order = numbered(self.config.stage_c)
        by_number = [name for name in modules if name.isdigit()]
        if by_number and len(by_number) != len(order):
            raise UserError(
                f"{self.where} has changes of {len(by_number)} layers, and the model's stage C has "
                f"{len(order)} with attention: it is of another variant, lite or full"
            )
        unknown = []
        for name, keys in modules.items():
            if name.isdigit():
                target = Target("stage_c", order[int(name)]) if int(name) < len(order) else None
            else:
                target = look_up(name, self.config)
            if target is None:
                unknown.append(name)
            elif target.path.endswith(DEPTHWISE):
                raise UserError(
                    f"{self.where} changes the depthwise convolution {name:.80}, whose factors are no "
                    "product of matrices; train it without"
                )
            else:
                own = self.changes[target.network]
                if target.path in own:
                    raise UserError(f"{self.where} changes {name:.80} twice, by two names")
                own[target.path] = self._change(name, keys, released=name.isdigit())
        if modules and len(unknown) == len(modules):
            raise UserError(f"{self.where} is no LoRA of this model: {look(self.file.specs)}")
        if unknown and self._fits():  # what does not is told by its sizes
            raise UserError(
                f"{self.where} changes {unknown[0]:.80}, which this model does not have: it is of another "
                "variant, lite or full, or of another model"
            )

    def _fits(self) -> bool:
        """Whether what was found of stage C is of its widths."""
        return not problem(self.changes["stage_c"], thirds(stage_c_layers(self.config.stage_c)))

    def _change(self, name: str, keys: Mapping[str, str], *, released: bool) -> Change:
        if missing := {"down", "up"} - keys.keys():
            raise UserError(f"{self.where}: {name:.80} has no lora_{missing.pop()}; the file is incomplete")
        down, up = (_matrix(self._tensor(keys[way])) for way in ("down", "up"))
        if down is None or up is None:
            shape = self.file.specs[keys["down" if down is None else "up"]][0]
            raise UserError(f"{self.where}: the factor of {name:.80} has shape {shape}, and no matrix's")
        rank = down.shape[0]
        if rank == 0 or rank != up.shape[1]:
            raise UserError(
                f"{self.where}: {name:.80} has factors of ranks {rank} and {up.shape[1]}; it is damaged"
            )
        alpha = float(self._tensor(keys["alpha"]).reshape(-1)[0]) if "alpha" in keys else 0.0
        alpha = alpha or (1.0 if released else float(rank))
        magnitude = next(
            (keys[leaf] for leaf in ("dora_scale", "lora_magnitude_vector") if leaf in keys), None
        )
        size = (down.shape[1], up.shape[0])
        return Change(
            down,
            up,
            np.float32(alpha / rank),
            None if magnitude is None else self._magnitude(magnitude, size),
        )

    def _magnitude(self, key: str, size: tuple[int, int]) -> np.ndarray:
        """A DoRA's norms by our axes, (in, 1) or (1, out), as the shape says; torch's are (out, in, …)."""
        x, (inputs, outputs) = np.asarray(self._tensor(key), np.float32), size
        shape = x.shape
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        peft = "lora_magnitude_vector" in key and len(x.shape) != 2  # of convolutions (1, out, 1, 1)
        if len(shape) == 1 and inputs == outputs and not peft:
            raise UserError(
                f"{self.where}: {key:.80} has one axis, which does not say whether the norm is that of "
                "inputs or of outputs; convert it to (out, 1) or (1, in)"
            )
        flat = x.reshape(-1)
        by_output = peft or shape == (outputs, 1) or (len(shape) == 1 and flat.size == outputs)
        if by_output and flat.size == outputs:
            return flat[None]
        if shape in ((1, inputs), (inputs,)):
            return flat[:, None]
        raise UserError(f"{self.where}: {key:.80} has shape {x.shape}, for a layer of {inputs}→{outputs}")

    def _stored(self, keys: Mapping[str, str]) -> None:
        """Tokens of Stability's and UltraPixel's files: offsets, with the rows that they belong to."""
        if missing := {"embeddings", "indices"} - keys.keys():
            raise UserError(f"{self.where} has no {missing.pop()} of its tokens; the file is incomplete")
        vectors, indices = self._vectors(keys["embeddings"]), self.file.read(keys["indices"]).reshape(-1)
        if len(indices) != len(vectors):
            raise UserError(f"{self.where} has {len(vectors)} embeddings for {len(indices)} tokens")
        tokens, self.offsets = stored_tokens(vectors, indices, self.config.clip_text.vocab_size)
        self.tokens += tokens

    def _bundled(self, key: str, name: str, which: str) -> None:
        """Tokens in OneTrainer's files, which say their names."""
        if which != INVERSION:
            if which == f"{INVERSION}_out" and not np.any(self._tensor(key)):
                return
            raise UserError(
                f"{self.where} has an embedding {key:.80} for another place than CLIP bigG's input, which is "
                "not read; train it without output embeddings"
            )
        self.tokens.append(NewToken(name, self._vectors(key), absolute=True))

    def _vectors(self, key: str) -> np.ndarray:
        x = np.asarray(self._tensor(key), np.float32)
        x = x.reshape(-1, x.shape[-1])
        if x.shape[1] != self.config.clip_text.width:
            raise UserError(
                f"{self.where}: its new tokens are {x.shape[1]} wide, the text encoder's "
                f"{self.config.clip_text.width}: it is of another model"
            )
        return x

    def _tensor(self, key: str) -> np.ndarray:
        x = self.file.read(key)
        check_finite(f"{key} of {self.where}", x)
        return x if x.dtype in KEPT_DTYPES else np.asarray(x, np.float32)


def _matrix(x: np.ndarray) -> np.ndarray | None:
    """A factor without the trailing axes of a 1×1 convolution; None for another shape."""
    if x.ndim < 2 or any(n != 1 for n in x.shape[2:]):
        return None
    return x.reshape(x.shape[:2])
