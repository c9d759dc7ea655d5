"""Scenes: what the splits show, the same everywhere, and drawable."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import plain_caption
from ultrapixel_jax.demo.world.render import outline
from ultrapixel_jax.demo.world.scenes import Scene
from ultrapixel_jax.errors import UserError

SCENES = {split: [scenes.sample(3, i, split) for i in range(3000)] for split in scenes.SPLITS}


def objects(scene: Scene) -> set[tuple[str, ...]]:
    return {(o.colour, o.shape, o.texture) for o in scene.objects}


def pair(scene: Scene) -> set[tuple[str, ...]]:
    """The coloured shapes and how they lie; "a left of b" and "b right of a" are one."""
    if scene.relation is None:
        return set()
    first, second = ((o.colour, o.shape) for o in scene.objects)
    turned = {"right of": "left of", "below": "above"}
    if scene.relation in turned:
        return {(*second, turned[scene.relation], *first)}
    return {(*first, scene.relation, *second)}


def test_every_held_out_scene_shows_what_training_never_does():
    seen = set().union(*(objects(s) | pair(s) for s in SCENES["train"]))
    kinds = set()
    for scene in SCENES["held_out"]:
        new_objects, new_pair = objects(scene) - seen, pair(scene) - seen
        assert scene.held_out and (new_objects or new_pair)
        kinds.add((any(scenes._object_held_out(o) for o in scene.objects), bool(new_pair)))
    assert {(True, True), (True, False), (False, True)} <= kinds
    assert not any(scene.held_out for scene in SCENES["train"])


def test_one_in_ten_objects_is_held_out_and_training_sees_every_pair_of_properties():
    everything = set(itertools.product(scenes.COLOURS, scenes.SHAPES, scenes.TEXTURES))
    seen = set().union(*map(objects, SCENES["train"]))
    held_out = everything - seen
    assert len(held_out) == pytest.approx(len(everything) / 10, abs=1)
    for a, b in itertools.combinations(range(3), 2):
        assert {(o[a], o[b]) for o in seen} == {(o[a], o[b]) for o in everything}


def test_a_scene_depends_on_seed_index_and_split_alone():
    assert scenes.sample(3, 7) == SCENES["train"][7] == scenes.sample(3, 7, "train")
    assert scenes.sample(3, 7) != scenes.sample(4, 7)
    assert len(set(SCENES["train"] + SCENES["held_out"])) == 6000
    assert [plain_caption(scenes.sample(0, i, "held_out")) for i in range(3)] == HELD_OUT
    assert scenes.sample(0, 0).objects[0].x == X_OF_FIRST


def test_all_values_occur_about_as_often():
    train = SCENES["train"]
    relations = [s.relation for s in train]
    assert relations.count(None) / len(train) == pytest.approx(1 - scenes.PAIR, abs=0.05)
    for name in scenes.RELATIONS:
        assert relations.count(name) / len(train) == pytest.approx(scenes.PAIR / 5, abs=0.03)
    for name, known in (("colour", scenes.COLOURS), ("texture", scenes.TEXTURES), ("shape", scenes.SHAPES)):
        values = [getattr(o, name) for s in train for o in s.objects]
        for value in known:
            assert values.count(value) / len(values) == pytest.approx(1 / len(known), rel=0.35)
    assert {s.background for s in train} == {
        scenes.Background(kind, tone) for kind in scenes.BACKGROUNDS for tone in scenes.TONES
    }


def test_objects_lie_in_the_picture_and_as_the_relation_says():
    u = ((np.arange(-20, 220) + 0.5) / 200).astype(np.float32)
    outside = np.logical_or.outer((u < 0) | (u > 1), (u < 0) | (u > 1))
    for scene in SCENES["train"][:150] + SCENES["held_out"][:150]:
        covered = [outline(o.shape, u[None] - o.x, u[:, None] - o.y, o.size) < 0 for o in scene.objects]
        for mask in covered:
            assert mask.sum() > 0.02 * 200**2
            assert not (mask & outside).any()
        if scene.relation is None:
            continue
        first, second = scene.objects
        assert first.colour != second.colour
        both = (covered[0] & covered[1]).sum()
        if scene.relation == "inside":
            assert both == covered[0].sum()
            continue
        assert both < 0.01 * covered[0].sum()
        dx, dy = first.x - second.x, first.y - second.y
        along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[scene.relation]
        assert along > 0.4 and min(abs(dx), abs(dy)) <= 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0, "test"), "split 'test'"), ((-1, 0), "seed -1"), ((2**63, 0), "seed"), ((0, -1), "index -1")],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        scenes.sample(*arguments)


def test_scenes_that_cannot_be_are_refused():
    o = scenes.Object("red", "circle", "plain", 0.5, 0.5, 0.4)
    ground = scenes.Background("plain", "white")
    for make, message in [
        (lambda: scenes.Object("crimson", "circle", "plain", 0.5, 0.5, 0.4), "colour 'crimson'"),
        (lambda: scenes.Object("red", "circle", "plain", 0.5, 0.5, 3.0), "size 3.0"),
        (lambda: scenes.Object("red", "circle", "plain", 0.5, 0.5, 0.4, 0), "lean 0"),
        (lambda: Scene((o,), "above", ground), "relation 'above'"),
        (lambda: Scene((o, o), None, ground), "relation None"),
        (lambda: Scene((o, o, o), "above", ground), "not 3"),
        (lambda: scenes.Background("plain", "black"), "tone 'black'"),
    ]:
        with pytest.raises(UserError, match=message):
            make()


HELD_OUT = [
    "a purple triangle above a striped green star",
    "a ringed purple square below a dotted yellow star",
    "a striped green heart right of a yellow star",
]
X_OF_FIRST = 0.2842


@pytest.mark.parametrize("ratio", [0.5, 2 / 3, 1.5, 3.0])
def test_long_pictures_are_used_from_end_to_end_and_say_the_same(ratio):
    half, reached, grown = max(ratio, 1 / ratio) / 2, [], []
    for i, square in enumerate(SCENES["held_out"][:200]):
        scene = scenes.sample(3, i, "held_out", ratio)
        assert scene.held_out and plain_caption(scene) == plain_caption(square)
        lengthwise = ("above", "below") if ratio > 1 else ("left of", "right of")
        crosswise = scene.relation not in (None, "inside", *lengthwise)
        for o, before in zip(scene.objects, square.objects):
            along, across = (o.y, o.x) if ratio > 1 else (o.x, o.y)
            was = before.x if ratio > 1 else before.y
            grown.append(o.size / before.size)
            assert 1 <= grown[-1] < math.sqrt(2 * half) + 1e-3
            assert abs(across - 0.5) <= abs(was - 0.5)
            if crosswise:
                assert (o.size, across) == (before.size, was)
            else:
                assert abs(across - 0.5) + o.size / 2 <= 0.5 - scenes.EDGE + 1e-3
            assert abs(along - 0.5) + o.size / 2 <= half - scenes.EDGE + 1e-3
            reached.append((along - 0.5 + half) / (2 * half))
        if scene.relation in ("left of", "right of", "above", "below"):
            first, second = scene.objects
            dx, dy = second.x - first.x, second.y - first.y
            assert scene.relation == (("left of" if dx > 0 else "right of") if abs(dx) > abs(dy) else
                                      ("above" if dy > 0 else "below"))  # fmt: skip
    shares = np.histogram(reached, 5, (0, 1))[0] / len(reached)
    assert shares.min() > 0.04, shares
    assert max(grown) > math.sqrt(2 * half) - 1e-3


def test_a_square_is_what_it_was():
    assert all(scenes.sample(3, i, "train", 1.0) == scene for i, scene in enumerate(SCENES["train"][:50]))
