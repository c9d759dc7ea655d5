from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrapixel_jax import sizes
from ultrapixel_jax.config import GuidanceConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.errors import UserError

LEAST, MOST = sizes.MIN_SIDE, sizes.MAX_SIDE


@st.composite
def good_sizes(draw):
    one = draw(st.integers(LEAST, MOST))
    other = draw(st.integers(max(LEAST, math.ceil(one / 6)), min(MOST, 6 * one)))
    return one, other


@st.composite
def long_sizes(draw):
    short = draw(st.integers(LEAST, (MOST - 1) // 6))
    size = short, draw(st.integers(6 * short + 1, MOST))
    return draw(st.sampled_from([size, size[::-1]]))


@pytest.mark.parametrize(
    ("size", "sides", "ratio", "said"),
    [
        ((768, 768), (384, 1536), 1.0, None),
        ((375, 390), (384, 1536), 1.0, None),
        ((1560, 1540), (384, 1536), 1.0, None),
        ((1640, 1640), (384, 1536), None, "areas from 384x384 to 1536x1536"),
        ((256, 384), (384, 1536), None, "areas from 384x384 to 1536x1536"),
        ((600, 1200), (384, 1536), 1.0, "squares alone"),
        ((1200, 600), (384, 1536), 16 / 9, "sides of at most 1.78:1"),
        ((2048, 8192), (384, 1536), 2.0, "areas from 384x384 to 1536x1536 and sides of at most 2:1"),
        ((2048, 8192), None, None, None),
        ((1024, 1792), (1024, 6144), 6.0, None),
    ],
)
def test_sizes_that_a_model_was_not_trained_on(size, sides, ratio, said):
    line = sizes.outside_training(*size, sides, ratio)
    assert (line is None) if said is None else f"{size[0]}x{size[1]} " in line and f": {said};" in line


THRESHOLDS = GuidanceConfig().up_guide_weights


@pytest.mark.parametrize(
    ("size", "hr", "lr", "stage_b"),
    [
        ((1024, 1024), (24, 24), (24, 24), (256, 256)),
        ((2048, 2048), (48, 48), (24, 24), (512, 512)),
        ((2560, 5120), (60, 120), (17, 34), (640, 1280)),
        ((4096, 4096), (96, 96), (24, 24), (1024, 1024)),
        ((1001, 1999), (24, 47), (17, 34), (252, 500)),
        ((6000, 1000), (141, 24), (59, 10), (1500, 250)),
        ((256, 256), (6, 6), (24, 24), (64, 64)),
    ],
)
def test_latents_of_a_size(size, hr, lr, stage_b):
    bucket = sizes.Bucket.of(*size)
    assert (bucket.hr, bucket.lr, bucket.stage_b) == (hr, lr, stage_b)
    assert bucket.pixels == tuple(4 * side for side in stage_b)


@given(good_sizes())
@settings(deadline=None)
def test_every_allowed_size_has_a_bucket(size):
    height, width = size
    bucket = sizes.Bucket.of(height, width)
    for side, asked, small in zip(bucket.pixels, (height, width), bucket.stage_b):
        assert 0 <= side - asked < 8 and side % 8 == 0
        assert small % 2 == 0 and small * 4 == side
    assert bucket.hr == (math.ceil(height / 42.67), math.ceil(width / 42.67))
    assert bucket.lr[0] * bucket.lr[1] <= sizes.MAX_LR_TOKENS
    turned = sizes.Bucket.of(width, height)
    assert turned.hr == bucket.hr[::-1] and turned.pixels == bucket.pixels[::-1]


@given(long_sizes())
@settings(deadline=None)
def test_a_ratio_beyond_6_is_refused(size):
    with pytest.raises(UserError, match="aspect ratio"):
        sizes.check_size(*size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((255, 1024), "height 255 is outside 256 to 8192"),
        ((1024, 8193), "width 8193 is outside"),
        ((0, 0), "height 0"),
        ((-1024, 1024), "height -1024"),
        ((6001, 1000), "6.00:1, beyond 6:1; make the shorter side at least 1001"),
    ],
)
def test_a_bad_size_is_named(size, message):
    with pytest.raises(UserError, match=message):
        sizes.check_size(*size)


def test_more_lr_tokens_than_embeddings_are_refused(monkeypatch):
    monkeypatch.setattr(sizes, "MAX_LR_TOKENS", 575)
    with pytest.raises(UserError, match="24x24 = 576 low-resolution tokens"):
        sizes.check_size(2048, 2048)


def test_size_is_height_by_width():
    assert sizes.parse_size("2560x5120") == (2560, 5120)
    assert sizes.parse_size(" 1001 X 1999 ") == (1001, 1999)


@pytest.mark.parametrize(
    "text", ["", "1024", "x", "1024x", "1024x1024x3", "-1024x1024", "1e3x1e3", "9" * 5000]
)
def test_a_malformed_size_is_refused(text):
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        sizes.parse_size(text)


def test_scale_is_rounded_once():
    assert sizes.scale(24, 24) == np.float32(1)
    value = sizes.scale(60, 120)
    assert isinstance(value, np.float32)
    assert value == np.float32(math.sqrt(math.log(7200) / math.log(576)))


@pytest.mark.parametrize(
    ("hw", "weight"),
    [((96, 96), 0.7), ((95, 97), 0.5), ((72, 72), 0.5), ((71, 73), 0.3), ((6, 6), 0.3), ((192, 192), 0.7)],
)
def test_up_guide_weight(hw, weight):
    assert sizes.up_guide_weight(*hw, THRESHOLDS) == weight
    assert sizes.up_guide_weight(*hw, THRESHOLDS[::-1]) == weight  # in any order


def test_up_guide_weight_without_an_entry():
    with pytest.raises(UserError, match="no entry for a latent of 6x6"):
        sizes.up_guide_weight(6, 6, [(100, 1.0)])


def test_low_resolution_side_of_a_small_model() -> None:
    assert sizes.Bucket.of(1024, 1024).lr == (24, 24)
    assert sizes.Bucket.of(1024, 1024, lr_side=16).lr == (12, 12)
    assert sizes.Bucket.of(2048, 1024, lr_side=16).lr == (math.ceil(704 / 42.67), math.ceil(352 / 42.67))
    assert sizes.Bucket.of(1024, 1024, lr_side=16).hr == sizes.Bucket.of(1024, 1024).hr


def test_control_images_are_of_the_size_of_training() -> None:
    assert sizes.control_side() == 768
    assert sizes.control_side(demo.guidance.lr_side) == 288  # latents of 9×9
