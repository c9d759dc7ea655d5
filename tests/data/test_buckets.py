"""Buckets against their definition."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrapixel_jax.data import images
from ultrapixel_jax.data.buckets import Buckets, bucket_size, lr_size
from ultrapixel_jax.data.config import AREAS, RATIOS, DataConfig, parse_ratio
from ultrapixel_jax.errors import UserError

FULL = Buckets(AREAS, RATIOS)
SIDES = st.integers(16, 9000)


def test_the_released_list() -> None:
    assert len(FULL.ratios) == 23  # 1/1 is its own inverse
    assert len(FULL.sizes) == 23 * 8
    assert {bucket_size(s, Fraction(1)) for s in AREAS} == {(s, s) for s in AREAS}
    assert bucket_size(4096, Fraction(9, 16)) == (3072, 5440)  # 4096·4/3 = 5461.3
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in FULL.sizes)
    assert {(w, h) for h, w in FULL.sizes} == set(FULL.sizes)


@given(SIDES, SIDES)
@settings(max_examples=300, deadline=None)
def test_assignment_is_the_definition(height: int, width: int) -> None:
    h, w = FULL.sizes[FULL.assign(height, width)]
    both = [f for r in RATIOS for f in (parse_ratio(r), 1 / parse_ratio(r))]
    own = math.log(height / width)
    nearest = min(abs(math.log(r) - own) for r in both)
    area = min(AREAS, key=lambda s: abs(s * s - height * width))
    # Ties within rounding may go either way here; exactly, they go as documented.
    allowed = [bucket_size(area, r) for r in both if abs(math.log(r) - own) < nearest + 1e-9]
    assert (h, w) in allowed


@given(SIDES, SIDES)
def test_landscape_mirrors_portrait(height: int, width: int) -> None:
    h, w = FULL.sizes[FULL.assign(height, width)]
    mirrored = FULL.sizes[FULL.assign(width, height)]
    ties = {Fraction(height * height, width * width) == a * b for a, b in zip(FULL.ratios, FULL.ratios[1:])}
    assert mirrored == (w, h) or True in ties


@given(st.integers(32, 5000), st.integers(1, 40), st.integers(1, 40))
def test_sides_are_floored(s: int, p: int, q: int) -> None:
    for side, square in zip(bucket_size(s, Fraction(p, q)), (Fraction(p, q), Fraction(q, p))):
        assert side % 32 == 0
        assert side * side <= s * s * square < (side + 32) ** 2


def test_assign_all() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 5000, (50, 2)).astype(np.int32)
    assert FULL.assign_all(sizes).tolist() == [FULL.assign(h, w) for h, w in sizes.tolist()]


def test_low_resolution_sizes() -> None:
    assert lr_size(1024, 1024, 24) == (768, 768)
    assert lr_size(4096, 2048, 24) == (32 * 33, 32 * 16)  # 24·√2 = 33.9, 24/√2 = 16.97
    assert max(h * w // 1024 for h, w in (lr_size(*size, 24) for size in FULL.sizes)) <= 24 * 24


@given(st.integers(20, 300), st.integers(20, 300), st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_cover_then_crop(height: int, width: int, place: float) -> None:
    size = (64, 96)
    covered = images.cover(Image.new("RGB", (width, height)), size)
    assert covered.height >= 64
    assert covered.width >= 96
    assert covered.height == 64 or covered.width == 96
    assert images.crop(covered, size, place, place).size == (96, 64)


def test_nearest_takes_torch_pixels() -> None:
    import torch

    array = np.random.default_rng(0).integers(0, 255, (96, 130, 3), np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(array).permute(2, 0, 1)[None].float(), size=(32, 37), mode="nearest"
    )
    got = images.pixels(images.low_resolution(Image.fromarray(array), (32, 37), "nearest"))
    assert np.array_equal(got, expected[0].permute(1, 2, 0).numpy())


def test_bilinear_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    got = images.pixels(images.low_resolution(Image.fromarray(stripes), (8, 8), "bilinear"))
    assert np.all(np.abs(got[:, 1:-1].astype(int) - 100) <= 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"areas": ()}, {"areas": (16,)}, {"areas": (64, 64)}, {"ratios": ("16:9",)}, {"ratios": ()},
        {"ratios": ("0/1",)}, {"batch_size": 0}, {"seed": -1}, {"workers": -1}, {"caption_dropout": 1.5},
        {"image_vector_probability": float("nan")}, {"lr_latent": -1},
        {"clip_image_size": -1},
    ],
)  # fmt: skip
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(bad))}"):
        DataConfig(**bad)


def test_a_bucket_below_32_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="below 32"):
        Buckets((64,), ("1/6",))
