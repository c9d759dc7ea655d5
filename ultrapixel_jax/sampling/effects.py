"""What was asked for and has no effect here, in words: nothing is accepted and then ignored in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import NamedTuple

from ultrapixel_jax.config import HR_FIELDS
from ultrapixel_jax.sampling.condition_keys import KEYS
from ultrapixel_jax.sampling.conditions import Conditions
from ultrapixel_jax.sampling.requests import SETTINGS, SETTINGS_B, Entry, Request


@dataclasses.dataclass(frozen=True)
class Situation:
    """What decides which options have an effect."""

    given: Collection[str]
    """Options of ``sample.py``, or arguments in Python, by names with underscores."""
    entries: Sequence[Entry] = ()
    requests: Sequence[Request] = ()
    preview: bool = False
    """Whether the previewer draws."""
    guided: bool = True
    """Whether the model has guidance, and with it two passes."""
    repeated: bool = True
    """Whether a level of the networks that draw has several blocks."""
    compile_only: bool = False
    cached: bool = True
    """Whether compiled programs are kept."""
    listed: bool = True
    """Whether there is a prompts file."""
    together: bool = True
    """Whether processes share a mesh."""
    run: bool = True
    """Whether weights come from a training run."""


COMPILED = {name for name in (*SETTINGS, *SETTINGS_B) if name.startswith(("cfg", "reuse"))} - {
    "cfg_rescale", "cfg_rescale_b",
}  # fmt: skip
"""Settings that tell programs apart."""
PICTURES = {"image", "upscale", "inpaint"}
"""What a picture may be drawn from."""


class Rule(NamedTuple):
    """Names that have no effect where a condition holds, and why."""

    names: Set[str]
    holds: Callable[[Situation], bool]
    why: str


def _plain_c(s: Situation) -> bool:
    """Whether no pass of stage C has classifier-free guidance."""
    return bool(s.requests) and all(
        r.stage_c.cfg == 1 and (not s.guided or r.stage_c.effective_cfg_hr == 1) for r in s.requests
    )


def _plain_b(s: Situation) -> bool:
    return bool(s.requests) and all(r.stage_b.cfg == 1 for r in s.requests)


def _without(has: Callable[[Conditions], object]) -> Callable[[Situation], bool]:
    """Whether no picture is steered by what `has` finds."""
    return lambda s: bool(s.requests) and not any(has(r.conditions) for r in s.requests)


def _from_noise(s: Situation) -> bool:
    """Whether no picture starts from one, though one may be named."""
    return _without(lambda c: c.start)(s)


RULES = (
    Rule({"tile", "decode_memory", *SETTINGS_B}, lambda s: s.preview, "the previewer draws"),
    Rule(
        {"decode_memory"}, lambda s: not s.preview and "tile" in s.given, "the size of tiles is given with it"
    ),
    Rule({*HR_FIELDS}, lambda s: not s.guided, "the model has no guidance, and so one pass"),
    Rule({"cfg_rescale", "cfg_from", "cfg_until", "cfg_from_hr", "cfg_until_hr"}, _plain_c,
         "there is nothing to guide or rescale where weights of guidance are 1"),
    Rule({"cfg_in_turn"}, lambda s: _plain_c(s) and (s.preview or _plain_b(s)),
         "weights of guidance are 1, and so there is one half"),
    Rule({"scanned"}, lambda s: not s.repeated, "no level has several blocks"),
    Rule({"cfg_rescale_b", "cfg_from_b", "cfg_until_b"}, _plain_b,
         "there is nothing to guide or rescale where weights of guidance are 1"),
    Rule(
        {"negative_prompt"},
        lambda s: _plain_c(s) and (s.preview or _plain_b(s)),
        "it counts through classifier-free guidance, whose weights are 1",
    ),
    Rule(
        {"control_strength", "control_from", "control_until", "canny_thresholds", "strength", "strength_hr",
         "feather", "output", "save_latents", "seed", "num_images", "negative_prompt", *SETTINGS, *SETTINGS_B}
        - COMPILED,
        lambda s: s.compile_only,
        "nothing is drawn",
    ),
    Rule({"control_strength", "control_from", "control_until", "control_pass", "controlnet"},
         _without(lambda c: c.controls), "there is no control"),
    Rule({"control_pass"}, lambda s: not s.guided, "the model has no guidance, and so one pass"),
    Rule({"canny_thresholds"},
         _without(lambda c: any(x.kind == "canny" and not x.ready for x in c.controls)),
         "no edges are looked for"),
    Rule({"image", "upscale"}, lambda s: _from_noise(s) and _without(lambda c: c.inpaint)(s),
         "a strength of 1 starts from noise"),
    Rule({"strength", "strength_hr"}, lambda s: _from_noise(s) and not PICTURES & asked(s),
         "there is no picture to start from"),
    Rule({"strength_hr"}, lambda s: not s.guided, "the model has no guidance, and so one pass"),
    Rule({"feather"}, _without(lambda c: c.inpaint), "nothing is painted into a picture"),
    Rule({"compile_only"}, lambda s: not s.cached, "no cache keeps what is compiled"),
    Rule({"comments"}, lambda s: not s.listed, "there is no list of prompts"),
    Rule({"patience"}, lambda s: not s.together, "no other process is waited for"),
    Rule({"no_ema"}, lambda s: not s.run, "the weights are no training run's"),
)  # fmt: skip
"""In the order in which they are told; the first that holds counts."""
OF_ENTRIES = ("negative_prompt", "seed", "height", "width", "num_images")
"""What each picture of a list may say for itself, beside settings; the option is for those that do not."""


def without_effect(situation: Situation) -> list[str]:
    """A line for each reason for which something that was given has no effect."""
    lines: dict[str, list[str]] = {}
    told: set[str] = set()

    def tell(name: str, why: str) -> None:
        if name not in told:
            told.add(name)
            lines.setdefault(why, []).append(name)

    for name in situation.given:
        names = ("height",) if name == "size" else (name,)
        if situation.entries and all(_says(entry, n) for entry in situation.entries for n in names):
            tell(name, "each picture of the list says its own")
    names = asked(situation)
    for rule in RULES:
        for name in sorted(rule.names & names) if rule.holds(situation) else ():
            tell(name, rule.why)
    return [f"{', '.join(sorted(names))} without effect: {why}" for why, names in lines.items()]


def asked(situation: Situation) -> set[str]:
    """All that somebody said, for all pictures or for one."""
    names = {*situation.given, *(name for entry in situation.entries for name in entry.settings)}
    names |= {name for entry in situation.entries for name in _steered(entry)}
    return names | {name for name in OF_ENTRIES if any(_says(entry, name) for entry in situation.entries)}


def _steered(entry: Entry) -> Mapping[str, object]:
    """What an entry says of its conditions, where it has not been read."""
    return entry.conditions if isinstance(entry.conditions, Mapping) else {}


def _says(entry: Entry, name: str) -> bool:
    if name in SETTINGS or name in SETTINGS_B:
        return name in entry.settings
    if name in KEYS:
        return name in _steered(entry)
    return name in OF_ENTRIES and getattr(entry, name) is not None
