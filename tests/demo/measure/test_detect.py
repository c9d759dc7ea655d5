"""The detector against scenes whose contents are known: it finds them, and notices what is different."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage

from ultrapixel_jax.demo.measure.detect import UNCLEAR, Found, cielab, compare, detect, relation
from ultrapixel_jax.demo.measure.validate import PROPERTIES, can_change, changed, degrade, main, validate
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.demo.world.scenes import Background, Object, Scene
from ultrapixel_jax.errors import UserError

PLAIN = Background("plain", "white")


def scene(i: int) -> Scene:
    return scenes.sample(8, i, scenes.SPLITS[i % 2])


@pytest.mark.parametrize(
    ("size", "count", "blur", "noise"),
    [
        (512, 24, 0.0, 0.0),
        (1024, 12, 0.0, 0.0),
        (2048, 6, 0.0, 0.0),
        (512, 14, 3.0, 10.0),
        (1024, 6, 2.0, 15.0),
    ],
)
def test_rendered_scenes_are_found(size, count, blur, noise):
    right = 0
    for i in range(count):
        found = detect(degrade(render(scene(i), size, size), blur, noise, i))
        right += compare(scene(i), found).all
    assert right >= 0.98 * count


def test_places_and_sizes_are_measured():
    for i in range(6):
        found = detect(render(scene(i), 384, 384))
        assert len(found) == len(scene(i).objects)
        for o in scene(i).objects:
            (f,) = [f for f in found if f.colour == o.colour]
            assert np.hypot(f.x - o.x, f.y - o.y) < 0.01
            assert f.size == pytest.approx(o.size, rel=0.04)
            assert f.overlap > 0.93
            assert (f.outer is not None) == (scene(i).relation == "inside" and o == scene(i).objects[0])


def test_places_are_those_of_the_middle_square():
    (o,) = objects = (Object("green", "heart", "plain", 0.4, 0.55, 0.5),)
    for size in ((256, 400), (400, 256), (300, 300)):
        (found,) = detect(render(Scene(objects, None, PLAIN), *size))
        assert (found.x, found.y) == (pytest.approx(o.x, abs=0.01), pytest.approx(o.y, abs=0.01))


@pytest.mark.parametrize("what", PROPERTIES)
def test_what_is_changed_is_noticed_and_nothing_else(what):
    met = 0
    for i in itertools.count():
        told = scene(i)
        if not can_change(told, what):
            continue
        verdict = compare(told, detect(render(changed(told, what, i // 2), 384, 384)))
        for name in PROPERTIES:
            assert getattr(verdict, name) in ((name != what), None), (i, name)
        assert not verdict.all and verdict.number
        met += 1
        if met == 6:
            break


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_and_texture_is_told_from_the_others(shape):
    colours = itertools.cycle(scenes.COLOURS)
    for texture in scenes.TEXTURES:
        o = Object(next(colours), shape, texture, 0.5, 0.5, 0.5)
        (found,) = detect(render(Scene((o,), None, PLAIN), 384, 384))
        assert (found.colour, found.shape, found.texture) == (o.colour, shape, texture)


def test_missing_and_additional_objects_are_wrong():
    a = Object("red", "circle", "plain", 0.25, 0.5, 0.35)
    b = Object("blue", "star", "dots", 0.75, 0.5, 0.35)
    one, two = Scene((a,), None, PLAIN), Scene((a, b), "left of", PLAIN)
    found_one, found_two = detect(render(one, 384, 384)), detect(render(two, 384, 384))
    missing = compare(two, found_one)
    assert not (missing.number or missing.colour or missing.shape or missing.texture or missing.relation)
    more = compare(one, found_two)
    assert more.colour and more.shape and more.texture and not more.number and not more.all
    assert more.relation is None
    assert compare(one, found_one).all and compare(two, found_two).all
    assert not compare(one, []).all and not compare(two, []).colour


def test_swapped_objects_and_swapped_colours_are_wrong():
    a = Object("red", "circle", "plain", 0.25, 0.5, 0.35)
    b = Object("blue", "star", "dots", 0.75, 0.5, 0.35)
    told = Scene((a, b), "left of", PLAIN)
    places = dataclasses.replace(a, x=b.x), dataclasses.replace(b, x=a.x)
    verdict = compare(told, detect(render(Scene(places, "right of", PLAIN), 384, 384)))
    assert verdict.colour and verdict.shape and verdict.texture and verdict.relation is False
    colours = dataclasses.replace(a, colour=b.colour), dataclasses.replace(b, colour=a.colour)
    verdict = compare(told, detect(render(Scene(colours, "left of", PLAIN), 384, 384)))
    assert verdict.shape and verdict.texture and not verdict.colour


def test_a_relation_counts_between_the_objects_that_are_meant():
    a = Object("red", "circle", "plain", 0.25, 0.5, 0.35)
    b = Object("blue", "star", "dots", 0.75, 0.5, 0.35)
    told = Scene((a, b), "left of", PLAIN)
    left = Found("red", "circle", "plain", 0.25, 0.5, 0.35)
    right = Found("blue", "star", "dots", 0.75, 0.5, 0.35)
    assert compare(told, [right, left]).relation
    assert compare(told, [dataclasses.replace(left, colour="pink"), right]).relation
    # The right pair is in the wrong order, and any other two are in the right one.
    others = [Found("green", UNCLEAR, "plain", x, 0.2, 0.1) for x in (0.1, 0.5, 0.9)]
    swapped = [dataclasses.replace(left, x=0.75), dataclasses.replace(right, x=0.25)]
    assert compare(told, [*others, *swapped]).relation is False
    assert compare(told, others).relation is False
    assert (
        compare(told, [dataclasses.replace(f, colour="pink", shape=UNCLEAR) for f in (left, right)]).relation
        is False
    )


def test_relations():
    def at(x: float, y: float, outer: int | None = None) -> Found:
        return Found("red", "circle", "plain", x, y, 0.3, outer=outer)

    middle = at(0.5, 0.5)
    assert relation([at(0.2, 0.4), middle]) == "left of"
    assert relation([at(0.8, 0.4), middle]) == "right of"
    assert relation([at(0.4, 0.2), middle]) == "above"
    assert relation([at(0.4, 0.8), middle]) == "below"
    assert relation([at(0.5, 0.5, outer=1), middle]) == "inside"
    assert relation([middle, at(0.5, 0.5, outer=0)]) == "around"
    assert relation([middle]) == relation([]) == relation([middle] * 3) == ""


def test_an_inner_object_that_cuts_the_outer_one_apart_leaves_one_outer_object():
    told = scenes.sample(0, 121, "held_out")
    assert [o.shape for o in told.objects] == ["heart", "triangle"] and told.relation == "inside"
    assert compare(told, detect(render(told, 512, 512))).all


def test_a_rim_in_mixed_colours_is_no_object():
    told = scenes.sample(2, 212)
    found = detect(degrade(render(told, 512, 512), 3.0, 10.0, 212))
    assert [o.colour for o in told.objects] == ["purple", "red"] and len(found) == 2
    assert compare(told, found).all


def test_pictures_without_objects():
    for value in (255, 200, 150):
        assert detect(np.full((300, 256, 3), value, np.uint8)) == []
    ground = Scene((Object("red", "circle", "plain", 0.5, 0.5, 0.4),), None, Background("textured", "beige"))
    corner = render(ground, 1024, 1024, (0, 0, 256, 256))
    assert detect(corner) == []


def test_what_resembles_nothing_is_unclear():
    noise = np.random.default_rng(0).normal(0, 1, (256, 256))
    blotch = ndimage.gaussian_filter(noise, 24) > 0
    blotch &= np.hypot(*np.mgrid[-128:128, -128:128]) < 110
    picture = np.where(blotch[..., None], np.array(scenes.COLOURS["red"]), 250).astype(np.uint8)
    found = detect(picture)
    assert found and found[0].colour == "red" and found[0].shape == UNCLEAR
    o = Object("purple", "square", "plain", 0.5, 0.5, 0.6)
    picture = render(Scene((o,), None, PLAIN), 256, 256)
    shade = 0.4 + 0.6 * (ndimage.gaussian_filter(noise, 3) > 0)
    mottled = np.where(picture.min(-1, keepdims=True) < 128, picture * shade[..., None], picture)
    (found,) = detect(mottled.astype(np.uint8))
    assert (found.colour, found.shape, found.texture) == ("purple", "square", UNCLEAR)
    assert detect(np.zeros((256, 256, 3), np.uint8))[0].colour == UNCLEAR


def test_cielab_values():
    lab = cielab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.float32))
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab, expected, atol=0.1)


def test_pictures_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="255x512 is too small"):
        detect(np.zeros((255, 512, 3), np.uint8))


def test_validation_reports_shares(capsys):
    shares = validate(count=3, size=(256, 256), quiet=True)
    assert shares["all"] == shares["wrong colour"] == shares["wrong shape"] == 1
    blurred = validate(count=2, size=(256, 256), blur=40.0, quiet=True)
    assert blurred["all"] < 1
    assert main(["--count", "1", "--sizes", "256", "--quiet"]) == 0
    assert "256x256 pixels, blur 0, noise 0: colour 100.00%" in capsys.readouterr().out
    assert main(["--count", "2", "--sizes", "512x384", "--encoded", "previewer", "--quiet"]) == 0
    assert "512x384 pixels, blur 0, noise 0, previewer: colour 100.00%" in capsys.readouterr().out
    assert main(["--count", "1", "--sizes", "384", "--encoded", "stages", "--quiet"]) == 0
    assert "384x384 pixels, blur 0, noise 0, stages: colour 100.00%" in capsys.readouterr().out
    assert main(["--blur", "-1"]) == 2
    assert "at most 100" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["background", "relation"])
def test_what_cannot_be_changed(what):
    with pytest.raises(UserError, match="cannot be changed"):
        changed(Scene((Object("red", "circle", "plain", 0.5, 0.5, 0.4),), None, PLAIN), what, 0)


@pytest.mark.parametrize("rows", [100, 101])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_colours_that_alternate_closely_are_one_object(rows: int, width: int) -> None:
    picture = np.full((256, 256, 3), 235, np.uint8)
    names = list(scenes.COLOURS)
    for row in range(80, 80 + rows):
        picture[row, 80:180] = scenes.COLOURS[names[row // width % 2]]
    (found,) = detect(picture)
    assert found.colour in (*names[:2], UNCLEAR)
