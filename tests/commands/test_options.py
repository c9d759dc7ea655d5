"""Options of command lines: what is refused, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ultrapixel_jax.commands import DTYPE, MESH, OTHERS, Parser, number, one_of, whole
from ultrapixel_jax.config import load_config
from ultrapixel_jax.errors import UserError, nearest
from ultrapixel_jax.sampling import options as sampling
from ultrapixel_jax.training import options as training
from ultrapixel_jax.training.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def parser() -> Parser:
    p = Parser("draw", "Draws.", stray="put it in quotes")
    p.argument("place", str, "where")
    p.option("--steps", whole(1, 10), "how many", 5)
    p.option("--share", number(above=0, high=1), "how much")
    p.option("--cfg", number(), "how strongly")
    p.option("--kind", one_of(("canny", "inpainting")), "of what")
    p.option("--dtype", DTYPE, "of computing", "float32")
    p.option("--mesh", MESH, "devices", shown="one")
    p.flag("--quiet", "says nothing")
    return p


def test_values_and_help(parser: Parser) -> None:
    values = parser.read(["here", "--steps", "7", "--share", "1", "--mesh", "rows=2", "--kind", "canny"])
    assert (values.place, values.steps, values.share, values.cfg, values.quiet) == (
        "here",
        7,
        1.0,
        None,
        False,
    )
    assert (values.mesh, values.kind, values.dtype) == ({"rows": 2}, "canny", "float32")
    text = " ".join(parser.format_help().split())
    assert "--mesh data=N,fsdp=N,tensor=N,rows=N devices (default: one)" in text
    assert "--steps N how many (default: 5)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PLACE (see draw --help)"),
        (["a", "b"], "unexpected argument 'b'; put it in quotes"),
        (["a", "--steps", "0"], "--steps 0 is outside 1 to 10"),
        (["a", "--steps", "1.5"], "--steps '1.5' is not a whole number; use 1 to 10"),
        (["a", "--share", "0"], "--share '0' must be above 0 and at most 1"),
        (["a", "--share", "nan"], "--share 'nan' is not a finite number"),
        (["a", "--cfg", "x"], "--cfg 'x' is not a number"),
        (["a", "--cfg"], "--cfg expected one argument; a value that starts with - is written --option=value"),
        (["a", "--kind", "cany"], "--kind 'cany' is not known; did you mean 'canny'?"),
        (["a", "--kind", "depth"], "--kind 'depth' is not known; use canny, inpainting"),
        (["a", "--mesh", "row=2"], "unknown mesh axis: 'row'; did you mean 'rows'?"),
        (["a", "--stpes", "3"], "unknown option: '--stpes'; did you mean '--steps'?"),
        (["a", "--guidance-scale=3"], "unknown option: '--guidance-scale'; did you mean '--cfg'?"),
        (["a", "--banana"], "unknown option: '--banana'; see draw --help"),
        (["a", "--quite"], "unknown option: '--quite'; did you mean '--quiet'?"),
    ],
)
def test_refusals(parser: Parser, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parser.read(arguments)
    assert str(caught.value) == message


def test_what_is_near() -> None:
    assert nearest("--learning-rate", ["--steps", "--optimizer.learning-rate"]) == "--optimizer.learning-rate"
    assert nearest("--negative", ["--prompt", "--negative-prompt"]) == "--negative-prompt"
    assert nearest("c_latnet", ["c_latent", "c_cond"]) == "c_latent"
    assert nearest("--guidance-scale", ["--cache-dir", "--schedule", "--size"]) is None


def test_names_of_other_programs_lead_to_options_that_there_are() -> None:
    preset = load_config(ROOT / "configs" / "train" / "tiny.py", TrainConfig)
    known = {*sampling._parser()._option_string_actions, *training._options(preset)}
    assert not {ours for names in OTHERS.values() for ours in names if f"--{ours}" not in known}
    assert not {f"--{theirs}" for theirs in OTHERS} & known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes", "3"], "unknown option: '--stpes'; did you mean '--steps'?"),
        (["--lr", "3"], "unknown option: '--lr'; did you mean '--optimizer.learning-rate'?"),
        (["--optimizer.banana=3"], "unknown option: '--optimizer.banana'; see train.py PRESET.py --help"),
    ],
)
def test_fields_of_training_are_refused_in_the_same_words(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        training.parse(["configs/train/tiny.py", *arguments])
