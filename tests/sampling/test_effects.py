"""Nothing is accepted and then ignored: options and components have an effect, or say that they have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert import __main__ as convert
from tests.sampling.test_sample import FakeCascade, fake
from ultrapixel_jax import Canny
from ultrapixel_jax.checkpoints import weights
from ultrapixel_jax.checkpoints.sources import Sources
from ultrapixel_jax.config import COMPONENTS, HR_FIELDS, CascadeConfig, DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components
from ultrapixel_jax.models.lora import Lora, NewToken
from ultrapixel_jax.sampling import options
from ultrapixel_jax.sampling.arguments import conditions
from ultrapixel_jax.sampling.effects import COMPILED, OF_ENTRIES, RULES, Situation, without_effect
from ultrapixel_jax.sampling.requests import SETTINGS, SETTINGS_B, Entry, Request

__all__ = ["fake"]

ALWAYS = {
    "help", "prompt", "prompts", "size", "height", "width", "reproduce", "checkpoint", "config", "dtype",
    "preview", "quiet", "batch_size", "mesh", "process_index", "process_count", "distributed", "coordinator",
    "cache_dir", "no_cache", "lora", "token", "control", "control_map", "image_prompt", "inpaint",
    "cfg", "cfg_b", "steps", "shift", "sampler", "eta", "schedule", "reuse",
    "int8", "offload",
}  # fmt: skip
"""Options that always have an effect, as long as something is drawn with stage C."""


def request(c: Mapping[str, Any] = {}, b: Mapping[str, Any] = {}, **steering: Any) -> Request:
    own = conditions(steering)
    return Request("a", "", 0, 256, 256, DiffusionConfig(**c), DiffusionConfig(**b), conditions=own)


def steered(**steering: Any) -> dict[str, Any]:
    return {"requests": (request(**steering),)}


ONE = {"requests": (request({"cfg": 1.0}, {"cfg": 1.0}),)}
PICTURE = np.zeros((32, 32, 3), np.uint8)
CANNY = steered(control=Canny(PICTURE))
READY = steered(control=Canny(PICTURE, ready=True))
START, INPAINT = steered(image=PICTURE), steered(image=PICTURE, mask=PICTURE)
OF_CONTROLS = ("control_strength", "control_from", "control_until", "control_pass", "controlnet")
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tile", {"preview": True}, {}),
    ("decode_memory", {"preview": True}, {}),
    ("decode_memory", {"given": {"decode_memory", "tile"}}, {}),
    *((name, {"preview": True}, {}) for name in SETTINGS_B),
    *((name, {"guided": False}, {}) for name in HR_FIELDS),
    *(
        (name, ONE, {"requests": (request({"cfg": 1.0, "cfg_hr": 2.0}), request())})
        for name in ("cfg_rescale", "cfg_from", "cfg_until", "cfg_from_hr", "cfg_until_hr")
    ),
    *(
        (name, ONE, {"requests": (request({"cfg": 1.0}),)})
        for name in ("cfg_rescale_b", "cfg_from_b", "cfg_until_b")
    ),
    ("negative_prompt", ONE, {"requests": (request({"cfg": 1.0}),)}),
    ("cfg_in_turn", ONE, {"requests": (request({"cfg": 1.0}),)}),
    ("scanned", {"repeated": False}, {}),
    ("negative_prompt", {"requests": (request({"cfg": 1.0}),), "preview": True}, {}),
    *((name, {"compile_only": True}, {}) for name in ("output", "save_latents", "seed", "num_images")),
    *((name, {"compile_only": True}, {}) for name in sorted({*SETTINGS, *SETTINGS_B} - COMPILED)),
    *((name, steered(), CANNY) for name in OF_CONTROLS),
    ("control_pass", {"guided": False, **CANNY}, CANNY),
    ("canny_thresholds", READY, CANNY),
    *((name, steered(image=PICTURE, strength=1.0), START) for name in ("image", "upscale")),
    *((name, steered(), START) for name in ("strength", "strength_hr")),
    ("strength_hr", {"guided": False, **START}, START),
    ("feather", START, INPAINT),
    *((name, {"compile_only": True}, {}) for name in (*OF_CONTROLS[:3], "canny_thresholds", "feather")),
    *((name, {"compile_only": True}, {}) for name in ("strength", "strength_hr")),
    ("compile_only", {"cached": False}, {}),
    ("comments", {"listed": False}, {}),
    ("patience", {"together": False}, {}),
    ("no_ema", {"run": False}, {}),
    ("seed", {"entries": [Entry("a", seed=1)]}, {"entries": [Entry("a", seed=1), Entry("b")]}),
    ("size", {"entries": [Entry("a", height=256, width=256)]}, {"entries": [Entry("a")]}),
    ("steps", {"entries": [Entry("a", settings={"steps": 3})]}, {"entries": [Entry("a")]}),
]
"""An option, where it has no effect, and where it has."""


@pytest.mark.parametrize(("name", "ignored", "used"), CASES)
def test_an_option_without_effect_is_named(name: str, ignored: dict[str, Any], used: dict[str, Any]) -> None:
    assert not without_effect(Situation(**{"given": {name}, **used}))
    (line,) = without_effect(Situation(**{"given": {name}, **ignored}))
    assert line.startswith(f"{name} without effect: ") and "\n" not in line


def test_every_option_and_every_rule_is_thought_of() -> None:
    known = {action.dest for action in options._parser()._actions}
    ruled = {name for rule in RULES for name in rule.names}
    assert ALWAYS | ruled | {*OF_ENTRIES} == known
    assert {name for rule in RULES for name in rule.names} <= {name for name, *_ in CASES} | ALWAYS
    assert {*SETTINGS, *SETTINGS_B} <= known  # what a line can say, the command line can too


def test_what_lines_of_a_list_say_counts_too() -> None:
    entries = [Entry("a", settings={"steps_b": 3, "cfg": 2.0})]
    assert without_effect(Situation({"steps"}, entries, preview=True)) == [
        "steps_b without effect: the previewer draws"
    ]


def test_sampling_says_it(fake: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeCascade, "unused", ("controlnet of X without effect: no",))
    fake("--prompt", "a", "--preview", "--tile", "64", "--steps-b", "3", "--comments", "--no-ema")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")] == [
        "warning: steps_b, tile without effect: the previewer draws",
        "warning: comments without effect: there is no list of prompts",
        "warning: no_ema without effect: the weights are no training run's",
        "warning: controlnet of X without effect: no",
    ]
    fake("--prompt", "a")
    assert capsys.readouterr().err.count("warning: ") == 1


# -- components

DRAWS = {"clip_text", "stage_c", "guidance", "stage_b", "stage_a", "previewer", "lora"}
"""Components that pictures depend on."""
ASKED = {"effnet_encoder", "clip_vision", "controlnet"}
"""Those that pictures depend on where somebody asks for it."""


def test_every_component_draws_or_is_announced() -> None:
    assert {*components.CONFIGS} == DRAWS | ASKED == {*COMPONENTS}
    assert not [name for name in (*components.CONFIGS, "controlnet_canny") if weights.not_used(name, "X")]
    said = weights.not_used("what_is_this", "X")
    assert said and said.startswith("what_is_this of X without effect: ")


@pytest.mark.parametrize("tokens", [False, True])
def test_loading_a_checkpoint_with_all_of_them(tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config, names = CascadeConfig(), [*components.CONFIGS, "controlnet_canny", "strange"]
    entries = {name: SimpleNamespace(origin="X", config=getattr(config, name, {})) for name in names}
    brought = (NewToken(None, np.zeros((1, 1280)), False),) if tokens else ()

    sources = Sources(())
    sources.entries, sources.config = entries, config  # type: ignore[assignment]
    monkeypatch.setattr(sources, "load", lambda name, *_, **__: {"params": {}})
    monkeypatch.setattr(sources, "check", lambda name, config: None)
    monkeypatch.setattr(weights.loras, "of_sources", lambda *_: Lora("X", {}, brought))
    wanted = ["stage_c"]
    found = weights.from_sources(sources, None, wanted, what="", dtype="float32", mesh=None).unused
    assert [line.split(" of X")[0] for line in found] == [
        "strange", *["the new text tokens"][: int(tokens)],
    ]  # fmt: skip


# -- conversion


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--export", "--dtype", "bfloat16"], "--dtype has no effect on export: each tensor"),
        (["--export", "--compress"], "--compress has no effect on export: released files"),
        (["--export", "--tokenizer", "x"], "--tokenizer has no effect on export"),
        (["--export", "--config", "x"], "--config has no effect on export: checkpoints and runs have"),
        (["--export", "--mantissa-bits", "3"], "--mantissa-bits has no effect on export"),
        (["--mantissa-bits", "3"], "--mantissa-bits has no effect on conversion: it rounds"),
    ],
)
def test_options_of_conversion_without_effect_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert.run([*arguments, "/nowhere", "/nowhere/else"])
    of_sources = {action.dest for action in convert.parser()._actions} - {
        "help",
        "paths",
        "export",
        "component",
    }
    assert of_sources == {*convert.ONLY}


def test_situations_have_a_field_for_each_condition() -> None:
    assert all(rule.holds(Situation(set())) is False for rule in RULES if "compile_only" not in rule.names)
    assert len(dataclasses.fields(Situation)) == 11
