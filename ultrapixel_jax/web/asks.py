"""What a browser may ask for: the keys of prompt files, within limits. Imports no jax."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from ultrapixel_jax.errors import UserError, unknown_key
from ultrapixel_jax.sampling.prompts import entry
from ultrapixel_jax.sampling.requests import MAX_SEED, SETTINGS, SETTINGS_B, Entry, check_seed
from ultrapixel_jax.web import steering
from ultrapixel_jax.web.steering import Shelf

MAX_PROMPT = 4_000
"""Characters of a prompt; the text encoder reads far fewer."""
MAX_IMAGES = 16
"""Pictures of one request."""
MAX_BATCH = 16
"""Pictures at once, and with it the memory that a browser can ask for."""
DEFAULT_SIDE = 1024
KEYS = ("prompt", "negative_prompt", "seed", "height", "width", "num_images", *SETTINGS, *SETTINGS_B)
"""What may be said. Prompt files know more: names of files, for which a browser has the following."""
STEERING = ("guides", "loras", "token")


@dataclasses.dataclass(frozen=True)
class Ask:
    """Pictures of one prompt."""

    entry: Entry
    """With a seed and a size."""
    batch_size: int


def read(values: object, shelf: Shelf) -> Ask:
    """The ask that a JSON object describes; a seed that it does not have is drawn here.

    Args:
        values: what `json.loads` made of it.
        shelf: pictures and LoRAs that can be named.

    Raises:
        UserError: an unknown key, a value of another type or out of range, no prompt.
        RefusedError: a picture or LoRA that is not there.
    """
    if not isinstance(values, Mapping):
        raise UserError("what is asked for must be an object of JSON")
    found: dict[str, Any] = dict(values)
    batch_size = found.pop("batch_size", 1)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= MAX_BATCH:
        raise UserError(f"batch size {batch_size!r:.80} is not a whole number from 1 to {MAX_BATCH}")
    guides, loras, words = (found.pop(key, None) for key in STEERING)
    steered = steering.read(guides, loras, words, shelf)
    for key in found:
        if key not in KEYS:
            raise UserError(unknown_key(key, [*KEYS, *STEERING, "batch_size"], "key"))
    for key in ("prompt", "negative_prompt"):
        text = found.get(key)
        if isinstance(text, str) and len(text) > MAX_PROMPT:
            what = key.replace("_", " ")
            raise UserError(f"the {what} has {len(text):,} characters; at most {MAX_PROMPT:,} are taken")
    one = entry({key: value for key, value in found.items() if value is not None})
    if not one.prompt.strip():
        raise UserError("the prompt is empty; say what to draw")
    count = one.num_images or 1
    if count > MAX_IMAGES:
        raise UserError(f"{count} pictures are too many for one request; at most {MAX_IMAGES} are drawn")
    seed = secrets.randbelow(MAX_SEED - count) if one.seed is None else one.seed
    check_seed(seed + count - 1)
    height, width = one.height or DEFAULT_SIDE, one.width or DEFAULT_SIDE
    one = dataclasses.replace(
        one, seed=seed, num_images=count, height=height, width=width, conditions=steered
    )
    return Ask(one, min(batch_size, count))
