"""Requests: what to draw, in batches and shares.

Nothing here imports jax: a bad list is refused before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from ultrapixel_jax.commands import Reader, number, one_of, whole
from ultrapixel_jax.config import HR_FIELDS, MAX_STEPS, DiffusionConfig, SamplerName, ScheduleName
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import condition_keys
from ultrapixel_jax.sampling.conditions import NONE, Conditions
from ultrapixel_jax.sizes import Bucket, check_size

MAX_SEED = 2**32 - 1
"""Largest seed; jax's random keys would fold a larger one onto a smaller without a word."""
DECODE_BYTES = 4 * 10**9
"""Memory that decoding may take unless told otherwise."""
MAX_NAME_BYTES = 200
"""Longest name in UTF-8, which leaves room for a number and an extension within 255."""
RESERVED_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))]
)
"""Names that are devices on Windows, whatever their extension."""
SETTINGS: Mapping[str, Reader] = {
    "steps": whole(1, MAX_STEPS),
    "cfg": number(),
    "cfg_hr": number(),
    "shift": number(above=0),
    "sampler": one_of(get_args(SamplerName)),
    "eta": number(low=0, high=1),
    "schedule": one_of(get_args(ScheduleName)),
    "cfg_rescale": number(),
    "steps_hr": whole(1, MAX_STEPS),
    "sampler_hr": one_of(get_args(SamplerName)),
    "cfg_from": number(low=0, high=1),
    "cfg_until": number(low=0, high=1),
    "cfg_from_hr": number(low=0, high=1),
    "cfg_until_hr": number(low=0, high=1),
    "reuse": whole(1, MAX_STEPS),
    "reuse_hr": whole(1, MAX_STEPS),
}
"""Fields of stage C's sampling, with how each is read."""
SETTINGS_B: Mapping[str, Reader] = {
    f"{name}_b": kind for name, kind in SETTINGS.items() if name not in HR_FIELDS
}
"""Those of stage B, as they are named beside stage C's."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a prompts file, or one ``--prompt``; None is what the command line says."""

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    name: str | None = None
    num_images: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of sampling, by the names in `SETTINGS` and `SETTINGS_B`."""
    conditions: Mapping[str, Any] | Conditions = dataclasses.field(default_factory=dict)
    """What steers it beside its prompts, by the names in `condition_keys.KEYS`, or read already."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One picture to make. It depends on these fields only, but for `name` and `index`."""

    prompt: str
    negative_prompt: str
    seed: int
    """0 to 2³² − 1."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    stage_c: DiffusionConfig
    """Sampling of both stage C passes."""
    stage_b: DiffusionConfig
    """Sampling of stage B."""
    name: str | None = None
    """Name of the file, without extension; None makes one from index, prompt and seed."""
    conditions: Conditions = NONE
    """What steers it beside its prompts."""
    index: int = 0
    """Place in the whole list, the same in every process."""

    @property
    def file_name(self) -> str:
        """Name of its file without extension, before any number is added."""
        return self.name or f"{self.index:05d}-{slug(self.prompt)}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that run together."""

    bucket: Bucket
    """The shapes that all of them run through."""
    requests: tuple[Request, ...]
    """At least one; all with the same sampling settings, and conditions of the same shapes."""
    padding: int
    """Entries that fill the device batch up and whose pictures are dropped."""


def slug(prompt: str, length: int = 40) -> str:
    """A readable part of a file name: words of `prompt` in lower case, joined by ``-``."""
    words = "-".join(re.findall(r"\w+", prompt[: 4 * length].lower()))[:length]
    if not _nameable(words):
        words = re.sub(r"[^a-z0-9_]+", "-", words).lstrip("-")
    return words.rstrip("-_") or "untitled"


def _nameable(text: str) -> bool:
    """Whether files can have this name where the locale says how names are written, such as ASCII alone."""
    try:
        return bool(os.fsencode(text)) or not text
    except UnicodeError:
        return False


# ---------------------------------------------------------------------------- checks of single values


def check_prompt(prompt: str) -> str:
    """Return `prompt` if it is text that can be tokenised and stored; raise `UserError` otherwise.

    A command line in a locale without its characters has it in bytes, which are taken as UTF-8.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        try:
            prompt = os.fsencode(prompt).decode("utf-8")
        except UnicodeError:
            raise UserError(f"prompt {prompt!r:.80} is not valid Unicode text; save it as UTF-8") from error
    if "\0" in prompt:
        raise UserError(f"prompt {prompt!r:.80} has a NUL character; remove it")
    return prompt


def check_seed(seed: int) -> int:
    """Return `seed` if it is 0 to 2³² − 1; raise `UserError` otherwise."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed} is outside 0 to {MAX_SEED}")
    return seed


def check_name(name: str) -> str:
    """Return `name` without ``.png`` if it names a file inside the output directory on any system.

    Raises:
        UserError: empty, too long, with a path separator or a character that some file systems
            refuse, hidden, or reserved.
    """
    stem = name[:-4] if name.lower().endswith(".png") else name
    problem = ""
    if not stem.strip():
        problem = "is empty"
    elif "/" in stem or "\\" in stem or stem in (".", "..") or ":" in stem:
        problem = "would leave the output directory"
    elif any(ord(c) < 32 or c in '<>"|?*\x7f' for c in stem):
        problem = 'has a control character or one of <>"|?*'
    elif stem.startswith(".") or stem != stem.strip() or stem.endswith("."):
        problem = "starts or ends with a dot or a space"
    elif stem.split(".")[0].lower() in RESERVED_NAMES:
        problem = "is reserved on Windows"
    elif len(stem.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    elif not _nameable(check_prompt(stem)):
        problem = "cannot be written in this locale (set PYTHONUTF8=1, or LANG=C.UTF-8)"
    if problem:
        raise UserError(f"name {name!r:.80} {problem}; use a plain file name without directory")
    return stem


# ---------------------------------------------------------------------------- entries to requests


def make_requests(
    entries: Sequence[Entry],
    *,
    height: int,
    width: int,
    stage_c: DiffusionConfig,
    stage_b: DiffusionConfig,
    seed: int = 0,
    negative_prompt: str = "",
    num_images: int = 1,
    conditions: Mapping[str, Any] = MappingProxyType({}),
) -> list[Request]:
    """Turn entries into requests: `num_images` of each, with seeds seed, seed + 1, …

    What an entry does not say comes from the arguments; `conditions` are plain values by the names in
    `condition_keys.KEYS`, whose files are opened here. A name of its own gets the seed appended
    where there are several pictures of it.

    Raises:
        UserError: a size, a seed (the last one too) or a number of images out of range; a file of the
            conditions that cannot be used.
    """
    requests: list[Request] = []
    for entry in entries:
        first = check_seed(seed if entry.seed is None else entry.seed)
        count = num_images if entry.num_images is None else entry.num_images
        if count < 1:
            raise UserError(f"number of images {count} must be at least 1")
        check_seed(first + count - 1)
        of_c, of_b = with_settings(stage_c, stage_b, entry.settings)
        high = height if entry.height is None else entry.height
        wide = width if entry.width is None else entry.width
        check_size(high, wide)
        own = entry.conditions
        if not isinstance(own, Conditions):
            own = condition_keys.conditions_of(condition_keys.merged(conditions, own))
        own.check(high, wide)
        for own_seed in range(first, first + count):
            name = entry.name if entry.name is None or count == 1 else f"{entry.name}-{own_seed}"
            requests.append(
                Request(
                    prompt=entry.prompt,
                    negative_prompt=negative_prompt
                    if entry.negative_prompt is None
                    else entry.negative_prompt,
                    seed=own_seed,
                    height=high,
                    width=wide,
                    stage_c=of_c,
                    stage_b=of_b,
                    name=name,
                    conditions=own,
                    index=len(requests),
                )
            )
    return requests


def with_settings(
    stage_c: DiffusionConfig, stage_b: DiffusionConfig, settings: Mapping[str, Any]
) -> tuple[DiffusionConfig, DiffusionConfig]:
    """Sampling of both stages but for `settings`, by the names in `SETTINGS` and `SETTINGS_B`.

    Raises:
        UserError: a value out of range.
    """
    of_b = {name.removesuffix("_b"): value for name, value in settings.items() if name in SETTINGS_B}
    of_c = {name: value for name, value in settings.items() if name not in SETTINGS_B}
    made = []
    for name, own, changes in (("C", stage_c, of_c), ("B", stage_b, of_b)):
        try:
            made.append(dataclasses.replace(own, **changes) if changes else own)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from error
    return made[0], made[1]


# ---------------------------------------------------------------------------- batches and shares


def plan(requests: Sequence[Request], batch_size: int, lr_side: int) -> list[Batch]:
    """Group requests into device batches of one bucket, one set of settings and one kind of conditions each.

    Groups come in the order of their first request, requests in list order, so that each bucket
    compiles once and the first pictures are those asked for first. Only the last batch of a group is
    padded.

    Args:
        requests: what to draw.
        batch_size: pictures at once.
        lr_side: the model's, in units of 32 pixels (`Cascade.lr_side`).
    """
    buckets = _buckets(requests, lr_side)
    return [
        Batch(buckets[at[0]], tuple(requests[i] for i in at), batch_size - len(at))
        for at in _chunks(requests, buckets, batch_size)
    ]


def share(
    requests: Sequence[Request], index: int, count: int, batch_size: int, lr_side: int
) -> list[Request]:
    """The part of the list, in list order, that process `index` of `count` makes.

    Every request goes to exactly one process. The batches of the whole plan are dealt in consecutive
    runs of about equal numbers of pixels, so that a bucket is split (and compiled twice) only at the
    borders and no process gets more than its even part plus one batch.
    """
    buckets = _buckets(requests, lr_side)
    chunks = _chunks(requests, buckets, batch_size)
    # A padded batch takes as long as a full one: its cost is that of its bucket alone.
    costs = [buckets[at[0]].pixels[0] * buckets[at[0]].pixels[1] for at in chunks]
    total, before, mine = sum(costs), 0, []
    for at, cost in zip(chunks, costs):
        # The process in whose even part of the total the middle of this batch falls.
        if (2 * before + cost) * count // (2 * total) == index:
            mine += at
        before += cost
    return [requests[i] for i in sorted(mine)]


def _buckets(requests: Sequence[Request], lr_side: int) -> list[Bucket]:
    return [Bucket.of(r.height, r.width, lr_side) for r in requests]


def _chunks(requests: Sequence[Request], buckets: Sequence[Bucket], batch_size: int) -> list[list[int]]:
    """Positions of the requests of each batch."""
    groups: dict[Hashable, list[int]] = {}
    for i, (request, bucket) in enumerate(zip(requests, buckets)):
        groups.setdefault((bucket, request.stage_c, request.stage_b, request.conditions.group), []).append(i)
    return [at[i : i + batch_size] for at in groups.values() for i in range(0, len(at), batch_size)]
