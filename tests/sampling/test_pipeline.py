"""The cascade as a whole, with weights made from names: batches, meshes, compilations."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from configs.tiny import config
from tests.recordings import relative_error
from ultrapixel_jax.config import DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components, int8
from ultrapixel_jax.sampling.arguments import conditions
from ultrapixel_jax.sampling.pipeline import Cascade, Memory
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.stages.base import Variants
from ultrapixel_jax.sharding import make_mesh

STAGE_C = DiffusionConfig(steps=2)
STAGE_B = DiffusionConfig(steps=1, cfg=1.1)
LATENTS = ("stage_c_low", "stage_c", "stage_b")


def request(prompt: str, seed: int, height: int = 320, width: int = 384) -> Request:
    return Request(prompt, "blurry", seed, height, width, STAGE_C, STAGE_B)


A, B, C = request("a red circle", 1), request("a blue square", 2), request("a third thing", 2**32 - 1)


def make(cascade: Cascade, *requests: Request, batch_size: int = 1, **kwargs):
    return cascade.generate(requests, batch_size=batch_size, **kwargs)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load(None, config=config)


@pytest.fixture(scope="module")
def alone(cascade):
    return make(cascade, A)[0]


def test_picture_has_the_size_asked_for_and_is_not_flat(cascade, alone):
    assert alone.image.shape == (320, 384, 3) and alone.image.dtype == np.uint8
    assert alone.image.std() > 1
    odd = request("a red circle", 1, 315, 380)  # the bucket of 320×384
    assert cascade.bucket(odd) == cascade.bucket(A)
    image = make(cascade, odd)[0].image
    np.testing.assert_array_equal(image, alone.image[:315, :380])


def test_neighbours_and_place_in_the_batch_change_nothing(cascade, alone):
    first = make(cascade, A, B, batch_size=2)
    second = make(cascade, C, A, batch_size=2)
    padded = make(cascade, A, batch_size=2)
    assert len(padded) == 1
    for name in LATENTS:
        assert relative_error(first[0].latents[name], second[1].latents[name]) < 1e-4  # another place
        np.testing.assert_array_equal(first[0].latents[name], padded[0].latents[name])
        assert relative_error(first[0].latents[name], alone.latents[name]) < 1e-3
    assert np.abs(first[0].image.astype(int) - second[1].image).max() <= 1
    assert not np.array_equal(first[0].image, first[1].image)


def test_seed_prompt_and_negative_prompt_matter(cascade, alone):
    for other in (
        dataclasses.replace(A, seed=3),
        dataclasses.replace(A, prompt="a red circlf"),
        dataclasses.replace(A, negative_prompt=""),
    ):
        assert not np.array_equal(make(cascade, other)[0].latents["stage_c"], alone.latents["stage_c"])


def test_progress_changes_no_bit(cascade, alone):
    calls = []
    shown = make(cascade, A, progress=lambda *args: calls.append(args[:3]))[0]
    np.testing.assert_array_equal(shown.image, alone.image)
    assert calls[0] == ("C low", 0, 2) and calls[-1] == ("B", 1, 1)


def test_only_a_new_bucket_compiles(cascade, alone):
    before = cascade.compilations
    settings = DiffusionConfig(
        steps=5, cfg=2.0, shift=2.0, sampler="ddim", schedule="edm", eta=0.3, cfg_rescale=0.1
    )
    changed = dataclasses.replace(A, stage_c=settings, stage_b=settings, seed=9)
    make(cascade, changed)
    make(cascade, request("another", 5, 315, 380))
    assert cascade.compilations == before
    make(cascade, request("taller", 5, 512, 384))
    assert cascade.compilations > before


def operations(programs: Variants, **static: bool) -> float:
    """Of the bucket of A, which is drawn before all others."""
    return next(iter(programs(**static)._compiled._programs.values())).cost_analysis()["flops"]


def test_steps_outside_the_interval_of_guidance_run_half_the_batch(cascade, alone):
    """And so do all where the weight is 1, in every pass, by the same programs."""

    def latents(**changes: Any) -> dict[str, np.ndarray]:
        stages = {"stage_c": STAGE_C, "stage_b": dataclasses.replace(STAGE_B, steps=2)}
        for stage, own in changes.items():
            stages[stage] = dataclasses.replace(stages[stage], **own)
        return make(cascade, dataclasses.replace(A, **stages))[0].latents

    before = cascade.compilations
    late = {"cfg": 40.0, "cfg_from": 0.5, "cfg_from_hr": 0.0, "cfg_hr": 4.0}
    found = latents(stage_c=late, stage_b={"cfg": 30.0, "cfg_until": 0.5})
    assert cascade.compilations == before + 2  # of the LR pass and of stage B
    one = latents(stage_c={"cfg": 1.0, "cfg_hr": 4.0}, stage_b={"cfg": 1.0})
    near = latents(stage_c={"cfg": 1 + 1e-6, "cfg_hr": 4.0}, stage_b={"cfg": 1 + 1e-6})
    assert cascade.compilations == before + 2
    plain = latents(stage_c={"cfg": 40.0, "cfg_hr": 4.0}, stage_b={"cfg": 30.0})
    for name in LATENTS:
        assert relative_error(one[name], near[name]) < 1e-3
    assert min(relative_error(found[LATENTS[0]], other[LATENTS[0]]) for other in (one, plain)) > 5e-5
    for programs in (cascade.stage_c._low, cascade.stage_b._steps):
        whole, half = (operations(programs, unconditional=both) for both in (True, False))
        assert 0.4 < half / whole < 0.6


def test_inner_levels_are_reused_between_steps(cascade, alone):
    def latents(steps: int, reuse: int) -> dict[str, np.ndarray]:
        own = dataclasses.replace(STAGE_C, steps=steps, reuse=reuse)
        of_b = dataclasses.replace(STAGE_B, steps=steps, reuse=reuse)
        return make(cascade, dataclasses.replace(A, stage_c=own, stage_b=of_b))[0].latents

    first, second, third = latents(1, 2), latents(2, 2), latents(3, 3)
    before = cascade.compilations
    plain = [latents(steps, 1) for steps in (1, 2, 3)]
    for name in LATENTS:
        assert relative_error(first[name], plain[0][name]) < 1e-4
        # The LR pass gives guidance from its last step, whose inner levels are computed.
        assert (relative_error(second[name], plain[1][name]) > 1e-4) == (name != "stage_c_low")
        assert relative_error(third[name], plain[2][name]) > 1e-4
    assert cascade.compilations == before


def test_a_weight_of_1_in_the_hr_pass_leaves_out_its_unconditional_half(cascade):
    def latent(cfg_hr: float, *requests: Request) -> np.ndarray:
        settings = dataclasses.replace(A.stage_c, cfg_hr=cfg_hr)
        changed = [dataclasses.replace(r, stage_c=settings) for r in requests]
        return make(cascade, *changed, batch_size=2)[0].latents["stage_c"]

    expected = latent(1 + 1e-6, A, B)
    before = cascade.compilations
    assert relative_error(latent(1.0, A, B), expected) < 1e-3
    assert cascade.compilations == before + 1
    assert relative_error(latent(1.0, A), expected) < 1e-3


def test_less_memory_draws_nearly_the_same_picture(alone, monkeypatch, tmp_path):
    """Kernels in eight bits, stages that wait on the host, and guidance's halves one after the other."""
    monkeypatch.setattr(int8, "SMALLEST", 48)
    mesh = make_mesh({"data": 8})
    with pytest.raises(UserError, match="leave out the mesh"):
        Cascade.load(None, config=config, mesh=mesh, memory=Memory(offload=True))
    model = Cascade.load(None, config=config, memory=Memory(int8=True, offload=True, cfg_in_turn=True))
    kernels = [x for x in jax.tree.leaves(model.stage_c.variables) if x.dtype == np.int8]
    wide = [
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(components.abstract("stage_c", config.stage_c))
        if path[-1].key == "kernel" and x.ndim == 2 and min(x.shape) >= 48
    ]
    assert len(kernels) == len(wide) > 30 and sum(x.nbytes for x in kernels) == sum(wide)
    found = make(model, A)[0]
    for name in LATENTS:
        assert 1e-5 < relative_error(found.latents[name], alone.latents[name]) < 0.1
    for stage in model.stages:
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(stage.variables))
    (tmp_path / "a.safetensors").touch()
    steered = conditions({"lora": tmp_path / "a.safetensors"})
    with pytest.raises(UserError, match="a LoRA cannot be added to weights in int8"):
        make(model, dataclasses.replace(A, conditions=steered))


def test_without_guidance_and_with_the_ablations(cascade, alone):
    guidance = config.guidance
    changes = {
        "off": None,
        "synchronized": dataclasses.replace(guidance, timestep="synchronized"),
        "t = 1": dataclasses.replace(guidance, timestep=1.0),
        "bilinear": dataclasses.replace(guidance, upsampler="bilinear_conv"),
        "no scale": dataclasses.replace(guidance, scale_aware_norm=False),
    }
    for name, changed in changes.items():
        model = Cascade.load(None, config=dataclasses.replace(config, guidance=changed), preview=True)
        result = make(model, A)[0]
        assert result.image.ndim == 3, name
        assert ("stage_c_low" in result.latents) == (name != "off")
        assert not np.array_equal(result.latents["stage_c"], alone.latents["stage_c"]), name


def test_bfloat16(alone):
    model = Cascade.load(None, config=config, dtype="bfloat16", preview=True)
    result = make(model, A)[0]
    kernels = [x.dtype for x in jax.tree.leaves(model.stage_c.variables["stage_c"])]
    assert set(kernels) == {np.dtype("bfloat16")}
    assert relative_error(result.latents["stage_c"], alone.latents["stage_c"]) < 0.2


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}])
def test_mesh_gives_the_single_device_picture(cascade, axes):
    mesh = make_mesh(axes)
    requests = request("a red circle", 1, 256, 256), request("a blue square", 2, 256, 256)
    expected = make(cascade, *requests, batch_size=8)
    model = Cascade.load(None, config=config, mesh=mesh)
    split = [x for x in jax.tree.leaves(model.stage_c.variables["stage_c"]) if not x.is_fully_replicated]
    assert bool(split) == (axes.get("fsdp", 1) * axes.get("tensor", 1) > 1)
    found = make(model, *requests, batch_size=8)
    for one, other in zip(found, expected, strict=True):
        for name in LATENTS:
            assert relative_error(one.latents[name], other.latents[name]) < 1e-3
        assert (np.abs(one.image.astype(int) - other.image) > 2).mean() < 1e-3


def test_mesh_that_does_not_fit():
    with pytest.raises(UserError, match="needs 6 devices, but there are 8"):
        make_mesh({"data": 3, "tensor": 2})
    with pytest.raises(UserError, match="axis 'model' is not known"):
        make_mesh({"model": 8})
