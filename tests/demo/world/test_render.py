"""Drawing: a scene looks the same at every size, but for lines that only large pictures hold."""

from __future__ import annotations

import numpy as np
import pytest

from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.render import FINE, MOAT, render
from ultrapixel_jax.demo.world.scenes import COLOURS, Background, Object, Scene
from ultrapixel_jax.errors import UserError

PLAIN = Background("plain", "white")


# 1280 pixels have four for each of the 320 fine lines, so that averages over four by four have none of them.


def averaged(image: np.ndarray, factor: int) -> np.ndarray:
    h, w = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(h, factor, w, factor, 3).astype(np.float32).mean((1, 3))


def one(shape: str, texture: str, colour: str = "red", background: Background = PLAIN) -> Scene:
    return Scene((Object(colour, shape, texture, 0.5, 0.5, 0.7),), None, background)


def assert_averages_down(scene: Scene) -> None:
    away = np.abs(averaged(render(scene, 1280, 1280), 4) - render(scene, 320, 320)).max(-1)
    assert away.mean() < 1 and (away > 24).mean() < 5e-3


def test_a_large_rendering_averaged_down_is_the_small_one():
    for i, texture in enumerate(scenes.TEXTURES):
        for j in range(3):
            shape, kind = scenes.SHAPES[(3 * i + j) % 7], scenes.BACKGROUNDS[j]
            assert_averages_down(one(shape, texture, background=Background(kind, "beige")))


def test_the_scene_with_an_inner_object_averages_down_as_well():
    first = Object("yellow", "star", "dots", 0.5, 0.5, 0.28)
    scene = Scene((first, Object("blue", "circle", "rings", 0.5, 0.5, 0.75)), "inside", PLAIN)
    assert_averages_down(scene)


def lines(image: np.ndarray, axis: int) -> np.ndarray:
    """Amplitudes by periods per side, averaged over the middle of the picture."""
    side = image.shape[0]
    middle = image[side // 3 : -side // 3, side // 3 : -side // 3, 1].astype(np.float64)
    periods = np.fft.rfftfreq(middle.shape[axis], 1 / side)
    spectrum = np.abs(np.fft.rfft(middle - middle.mean(axis, keepdims=True), axis=axis)).mean(1 - axis)
    return np.interp([FINE, side - FINE], periods, spectrum / middle.shape[axis])


def test_fine_lines_are_only_in_large_pictures():
    scene = one("square", "plain", "orange")
    assert lines(render(scene, 960, 960), 0)[0] > 5
    assert lines(render(scene, 1920, 1920), 0)[0] > 5
    assert lines(render(scene, 384, 384), 0).max() < 0.1  # as an alias, too
    assert lines(render(scene, 960, 960), 1)[0] < 0.1  # across, not down, where the tone is the main one
    small = render(scene, 960, 960)
    enlarged = np.kron(render(scene, 320, 320), np.ones((3, 3, 1), np.uint8))
    inside = (slice(320, 640),) * 2
    assert small[inside].std((0, 1)).max() > 8
    assert enlarged[inside].std((0, 1)).max() < 1


def test_a_window_is_a_part_of_the_whole():
    scene = scenes.sample(0, 4)
    whole = render(scene, 300, 500)
    np.testing.assert_array_equal(render(scene, 300, 500, (37, 61, 100, 222)), whole[37:137, 61:283])


def test_a_wide_picture_has_the_square_in_its_middle():
    scene = one("star", "checks")
    wide, tall, square = render(scene, 256, 400), render(scene, 400, 256), render(scene, 256, 256)
    for part in (wide[:, 72:328], tall[72:328]):
        away = np.abs(part.astype(int) - square)
        assert (away > 2).mean() < 1e-3
    assert np.ptp(wide[:, :72], axis=(0, 1)).max() <= 1


def test_colours_are_those_of_the_world_and_the_second_tone_covers_less_than_half():
    for name, rgb in COLOURS.items():
        picture = render(one("square", "plain", name), 384, 384)
        np.testing.assert_allclose(picture[192, 192], np.array(rgb) * 0.9, atol=1.5)
    for texture in scenes.TEXTURES[1:]:
        inside = render(one("square", texture, "yellow"), 384, 384)[80:-80, 80:-80, 0]
        assert 0.2 < (inside < 140).mean() < 0.55


def test_an_inner_object_has_a_pale_rim():
    first, second = (
        Object("red", "circle", "plain", 0.5, 0.5, 0.3),
        Object("blue", "square", "plain", 0.5, 0.5, 0.8),
    )
    picture = render(Scene((first, second), "inside", PLAIN), 512, 512)
    at = 256 + round((0.15 + MOAT / 2) * 512)
    assert picture[256, at].min() > 230
    assert picture[256, at + 12, 2] > 180 and picture[256, at + 12, 0] < 60
    assert picture[256, 256, 0] > 180 and picture[256, 256, 2] < 60


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (16385, 64)])
def test_sizes_that_cannot_be_drawn_are_refused(size):
    with pytest.raises(UserError, match="16 to 16384"):
        render(scenes.sample(0, 0), *size)
