"""Sharpness: high where there is detail that a smaller picture cannot hold, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ultrapixel_jax.demo.measure import sharpness as module
from ultrapixel_jax.demo.measure.detect import Found
from ultrapixel_jax.demo.measure.sharpness import beyond, enlarge
from ultrapixel_jax.demo.measure.validate import degrade
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.demo.world.scenes import Background, Object, Scene

LR = (256, 256)


def sharpness(*args: Any) -> Any:  # each test knows what is None
    return module.sharpness(*args)


def waves(periods: float, side: int = 512) -> np.ndarray:
    """A picture of cosines down, as in the cosine transform."""
    u = (np.arange(side) + 0.5) / side
    return np.broadcast_to(100 * np.cos(2 * np.pi * periods * u)[:, None], (side, side)).astype(np.float32)


def test_frequencies_are_kept_from_the_small_pictures_nyquist_frequency_on():
    for periods in (3, 64, 127.5):
        assert np.abs(beyond(waves(periods), LR)).max() < 0.01
    for periods in (128, 128.5, 200, 255):
        np.testing.assert_allclose(beyond(waves(periods), LR), waves(periods), atol=0.01)
    across = waves(200).T + waves(20)
    np.testing.assert_allclose(beyond(across, LR), waves(200).T, atol=0.01)
    np.testing.assert_allclose(beyond(across, (512, 256)), waves(200).T, atol=0.01)
    np.testing.assert_allclose(beyond(across, (256, 512)), 0, atol=0.01)


@pytest.mark.parametrize("index", range(4))
def test_a_drawn_picture_is_sharper_than_an_enlarged_or_blurred_one(index):
    scene = scenes.sample(8, index)
    drawn = render(scene, 1024, 1024)
    sharp = sharpness(drawn, scene.objects, (512, 512))
    enlarged = sharpness(enlarge(render(scene, 512, 512), (1024, 1024)), scene.objects, (512, 512))
    blurred = sharpness(degrade(drawn, 1.0, 0.0), scene.objects, (512, 512))
    for name, factor in (("edges", 3), ("textures", 5)):
        assert getattr(sharp, name) > factor * getattr(enlarged, name)
        assert getattr(enlarged, name) > getattr(blurred, name)
    assert sharp.width < 3 and 1.3 * sharp.width < enlarged.width < blurred.width


def test_noise_raises_detail_and_not_the_sharpness_of_edges():
    scene = scenes.sample(8, 1)
    enlarged = enlarge(render(scene, 512, 512), (1024, 1024))
    noisy = sharpness(degrade(enlarged, 0.0, 6.0), scene.objects, (512, 512))
    plain = sharpness(enlarged, scene.objects, (512, 512))
    assert noisy.textures > 2 * plain.textures
    assert noisy.width == pytest.approx(plain.width, rel=0.25)


def test_the_width_of_a_blurred_edge():
    o = Object("blue", "square", "plain", 0.5, 0.5, 0.5)
    picture = np.full((1024, 1024, 3), 255, np.uint8)
    inside = slice(round(1024 * (0.5 - 0.225)), round(1024 * (0.5 + 0.225)))
    picture[inside, inside] = 0
    for sigma in (1.0, 2.0):
        blurred = degrade(picture, sigma / 2, 0.0)  # in 512ths of the side
        # A Gaussian edge: contrast over the slope in the middle is √(2π)·σ.
        measured = sharpness(blurred, [o], LR).width
        assert measured == pytest.approx(np.sqrt(2 * np.pi) * sigma, rel=0.1)


def test_textures_are_measured_inside_and_edges_at_outlines():
    o = Object("blue", "circle", "plain", 0.5, 0.5, 0.5)
    plain = np.full((512, 512, 3), 128, np.uint8)
    stripes = plain.copy()
    stripes[:, ::2] += 40
    r = np.hypot(*np.mgrid[-255.5:256, -255.5:256]) / 512
    for where, edges, textures in (
        (r < 0.23, False, True),
        (np.abs(r - 0.25) < 0.01, True, False),
        (r > 0.3, 0, 0),
    ):
        measured = sharpness(np.where(where[..., None], stripes, plain), [o], LR)
        assert (measured.edges > 8) == edges and (measured.textures > 8) == textures


def test_the_rim_of_an_inner_object_is_no_texture():
    ground = Background("plain", "white")
    outer = Object("blue", "circle", "plain", 0.5, 0.5, 0.8)
    inner = Object("red", "circle", "plain", 0.5, 0.5, 0.3)
    both = render(Scene((inner, outer), "inside", ground), 384, 384)
    measured = sharpness(both, [outer, inner], (192, 192))
    assert measured.textures < 0.4 * sharpness(both, [outer], (192, 192)).textures
    assert measured.edges > 5


def test_nothing_to_measure():
    picture = render(scenes.sample(0, 0), 256, 256)
    unclear = Found("red", "unclear", "plain", 0.5, 0.5, 0.5)
    for objects in ([], [unclear]):
        measured = sharpness(picture, objects, (128, 128))
        assert (measured.edges, measured.textures, measured.width) == (None, None, None)
