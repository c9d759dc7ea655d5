"""A cascade whose blocks are loops draws what the unrolled one does, however else it is run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from configs.tiny import config
from tests.recordings import relative_error
from ultrapixel_jax.config import DiffusionConfig, LevelConfig
from ultrapixel_jax.diffusion.sampler import segments
from ultrapixel_jax.models import components, int8, lora
from ultrapixel_jax.models.lora import Lora
from ultrapixel_jax.models.scan import stack, unstack
from ultrapixel_jax.sampling.arguments import conditions
from ultrapixel_jax.sampling.pipeline import Cascade, Memory
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sharding import make_mesh

DEEP = dataclasses.replace(
    config,
    stage_c=dataclasses.replace(config.stage_c, levels=(LevelConfig(64, 4, 2, 1), LevelConfig(64, 4, 1, 3))),
    stage_b=dataclasses.replace(
        config.stage_b,
        levels=(LevelConfig(16, 1, 1, 3, up_repeats=2, layers="CT"), LevelConfig(32, 4, 2, 1)),
    ),
)
# Guidance in some steps alone, so that halves of the conditioning are taken; inner levels are kept.
STAGE_C = DiffusionConfig(steps=3, cfg=3.0, cfg_until=0.5, reuse=2)
STAGE_B = DiffusionConfig(steps=2, cfg=1.1, reuse=2)
PLAIN = DiffusionConfig(steps=1, cfg=3.0)
ASKED = [
    Request(prompt, "blurry", seed, 256, 320, STAGE_C, STAGE_B)
    for seed, prompt in enumerate(["a red circle", "a blue square"])
]


def latents(cascade: Cascade, **changes: Any) -> list[dict[str, np.ndarray]]:
    asked = [dataclasses.replace(one, **changes) for one in ASKED]
    batch = 2 if cascade.mesh is None else 4
    return [result.latents for result in cascade.generate(asked, batch_size=batch)]


def same(found: Any, expected: Any, error: float = 2e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert {*a} == {*b} > {"stage_c_low"}
        for name, x in a.items():
            assert relative_error(x, b[name]) < error, name


@pytest.fixture(scope="module")
def unrolled() -> Cascade:
    return Cascade.load(None, config=DEEP)


@pytest.fixture(scope="module")
def scanned() -> Cascade:
    return Cascade.load(None, config=DEEP, scanned=True)


def changes() -> lora.Changes:
    """Of layers of the first block and of others, one by DoRA."""
    own = dataclasses.replace(
        config.lora,
        stage_c=DEEP.stage_c,
        rank=2,
        modules=(r"up_0/layer_(2|5|8)/(in_proj|out)", "down_0/layer_3/.*", "clf"),
    )
    made = lora.changes(lora.init(jax.random.key(0), own)["params"])
    rng = np.random.default_rng(0)
    down = {path: c._replace(down=rng.normal(size=c.down.shape) / 20) for path, c in made.items()}
    path = "up_0/layer_8/out"
    return down | {path: down[path]._replace(magnitude=rng.uniform(0.5, 1.5, (1, 64)))}


def test_the_same_pictures(unrolled: Cascade, scanned: Cascade) -> None:
    assert [run.unconditional for run in segments(STAGE_C)] == [True, False]
    assert unrolled.repeated and not Cascade.load(None, config=config, preview=True).repeated
    assert "rest" in scanned.stage_c.variables["stage_c"]["params"]["up_0"]
    assert "rest" in scanned.stage_b.variables["stage_b"]["params"]["up_1"]
    same(latents(scanned), latents(unrolled))


def test_lora(unrolled: Cascade, scanned: Cascade, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = changes()
    assert len(own) == 9
    file = tmp_path / "a.safetensors"
    file.touch()
    steered, plain = conditions({"lora": file}), scanned.stage_c.variables
    for cascade in (unrolled, scanned):
        monkeypatch.setattr(cascade.personal, "_read", lambda *_: Lora("a", {"stage_c": own}))
    found, without = latents(scanned, conditions=steered), latents(unrolled)
    assert relative_error(found[0]["stage_c"], without[0]["stage_c"]) > 1e-3
    same(found, latents(unrolled, conditions=steered))
    same(latents(scanned), without)  # the base again
    now = scanned.stage_c.variables
    assert all(a is b for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(plain), strict=True))


def test_a_change_of_a_layer_that_is_not_there() -> None:
    own = {"up_0/layer_12/out": changes()["up_0/layer_2/out"]}
    variables = stack(initial(), DEEP.stage_c)
    with pytest.raises(KeyError, match="layer_12"):
        lora.merge(variables, [(own, 1.0)])


def test_what_is_merged_into_stacked_weights_is_what_is_merged_before() -> None:
    uses = [(changes(), 0.7), (changes(), -0.2)]
    variables = initial()
    expected = lora.merge(variables, uses)
    found = unstack(lora.merge(stack(variables, DEEP.stage_c), uses), DEEP.stage_c)
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


def initial() -> dict[str, Any]:
    return components.initialise("stage_c", DEEP.stage_c, jax.random.key(0), np.dtype("float32"))


def test_with_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "SMALLEST", 48)
    little = Memory(int8=True, offload=True, cfg_in_turn=True)
    one, other = (
        Cascade.load(None, config=DEEP, memory=little, preview=True, scanned=s) for s in (False, True)
    )
    kernel = other.stage_c.variables["stage_c"]["params"]["up_0"]["rest"]["layer_2"]["out"]
    assert any(isinstance(x, np.ndarray) and x.dtype == np.int8 for x in jax.tree.leaves(kernel))
    same(latents(other, stage_c=PLAIN), latents(one, stage_c=PLAIN))


def test_on_a_mesh() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    found = latents(Cascade.load(None, config=DEEP, mesh=mesh, preview=True, scanned=True), stage_c=PLAIN)
    expected = latents(Cascade.load(None, config=DEEP, preview=True), stage_c=PLAIN)
    same(found, expected, 1e-4)
