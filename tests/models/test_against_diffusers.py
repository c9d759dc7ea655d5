"""Stages B and C against diffusers' own implementation, through its layout of the weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from diffusers import StableCascadeUNet

from benchmarks import torch_models
from tests.recorded_models import import_component
from tests.recordings import relative_error
from ultrapixel_jax.checkpoints.named_weights import tensor
from ultrapixel_jax.config import LevelConfig, StageBConfig, StageCConfig
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC

STAGE_C = StageCConfig(
    levels=(LevelConfig(32, 4, 2, 2), LevelConfig(32, 4, 3, 1)),
    c_cond=32,
    c_clip_text=24,
    c_clip_text_pooled=24,
    c_clip_img=20,
)
STAGE_B = StageBConfig(
    levels=(
        LevelConfig(16, 1, 1, 2, up_repeats=2, layers="CT"),
        LevelConfig(24, 1, 2, 1, up_repeats=2, layers="CT"),
        LevelConfig(32, 4, 1, 2, up_repeats=3),
        LevelConfig(32, 4, 2, 1, up_repeats=3),
    ),
    c_cond=32,
    c_clip=24,
)
NOISE_LEVELS = (
    (np.zeros(2, np.float32), 1e-5),
    # Angles reach 10,000 rad; one unit in the last place of diffusers' table of frequencies is 1e-3.
    (np.float32([0.3, 0.9]), 1e-4),
)


def unet(config) -> StableCascadeUNet:
    """With named weights."""
    model = torch_models.unet(config)
    weights = {k: torch.from_numpy(tensor(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


def numpy_state(model) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in model.state_dict().items()}


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_stage_c(size):
    model = unet(STAGE_C)
    variables = import_component("stage_c", STAGE_C, numpy_state(model))
    x, text, pooled, image = values(2, *size, 16), values(2, 9, 24), values(2, 24, seed=1), values(2, 20)
    module = StageC(STAGE_C)

    @jax.jit
    def run(x, r, text, pooled, image):
        c = module.apply(variables, text, pooled, image, method="condition")
        return module.apply(variables, x, r, c).epsilon

    for r, tolerance in NOISE_LEVELS:
        expected = model(
            nchw(x),
            torch.from_numpy(r),
            clip_text_pooled=torch.from_numpy(pooled[:, None]),
            clip_text=torch.from_numpy(text),
            clip_img=torch.from_numpy(image[:, None]),
        ).sample  # diffusers fails where sca or crp are given for more than one image
        found = run(x, r, text, pooled, image)
        assert relative_error(found, np.moveaxis(expected.numpy(), 1, -1)) < tolerance


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (38, 50)])
def test_stage_b(size):
    model = unet(STAGE_B)
    variables = import_component("stage_b", STAGE_B, numpy_state(model))
    x, pooled, effnet = values(2, *size, 4), values(2, 24, seed=1), values(2, 5, 7, 16)
    pixels = values(2, 8, 8, 3, seed=2)
    module = StageB(STAGE_B)

    @jax.jit
    def run(x, r, pooled, effnet, pixels):
        c = module.apply(variables, pooled, effnet, (x.shape[1], x.shape[2]), pixels, method="condition")
        return module.apply(variables, x, r, c)

    for r, tolerance in NOISE_LEVELS:
        expected = model(
            nchw(x),
            torch.from_numpy(r),
            clip_text_pooled=torch.from_numpy(pooled[:, None]),
            effnet=nchw(effnet),
            pixels=nchw(pixels),
        ).sample
        found = run(x, r, pooled, effnet, pixels)
        assert relative_error(found, np.moveaxis(expected.numpy(), 1, -1)) < tolerance
