"""Captions say what their scenes show."""

from __future__ import annotations

import re

from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.captions import GOAL, MAX_BYTES, caption, plain_caption
from ultrapixel_jax.demo.world.scenes import Background, Object, Scene

SCENES = [scenes.sample(5, i, scenes.SPLITS[i % 2]) for i in range(800)]
CAPTIONS = [caption(scene, 1, i) for i, scene in enumerate(SCENES)]
TEXTURES = {"striped": "stripes", "dotted": "dots", "checked": "checks", "ringed": "rings", "plain": "plain"}
RELATIONS = {
    "left of": "left of", "right of": "right of", "above": "above", "over": "above", "below": "below",
    "under": "below", "inside": "inside", "in": "inside", "around": "around",
}  # fmt: skip
TURNED = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "around": "inside",
}


def read(text: str) -> tuple[list[tuple[str, str, str]], str | None]:
    """Objects, the first of the relation first, and the relation, by rules of this test's own."""
    text = re.sub(r" on (a )?(plain |gradient |textured )?((white|grey|beige) ?)?(background)?$", "", text)
    wrapped = re.fullmatch(r"(an? .*) with (an? .*) inside", text)
    if wrapped:
        text = f"{wrapped[2]} inside {wrapped[1]}"
    pattern = r" (?:to the )?(left of|right of|above|over|below|under|inside|in|around) "
    parts = re.split(pattern, text)
    objects = []
    for part in parts[::2]:
        words = part.split()
        (colour,) = set(words) & set(scenes.COLOURS)
        (shape,) = set(words) & set(scenes.SHAPES)
        textures = [TEXTURES.get(w, w) for w in words if w in TEXTURES or w in TEXTURES.values()]
        assert len(textures) <= 1, part
        objects.append((colour, shape, textures[0] if textures else "plain"))
    relation = RELATIONS[parts[1]] if len(parts) == 3 else None
    return objects, relation


def told(scene: Scene) -> tuple[list[tuple[str, str, str]], str | None]:
    return [(o.colour, o.shape, o.texture) for o in scene.objects], scene.relation


def test_both_kinds_of_caption_say_objects_and_relation():
    for scene, text in zip(SCENES, CAPTIONS):
        assert read(plain_caption(scene)) == told(scene)
        objects, relation = read(text)
        if (objects, relation) != told(scene):
            assert (objects[::-1], TURNED[relation or ""]) == told(scene), text


def test_what_is_said_of_size_and_background_is_true():
    said = set()
    for scene, text in zip(SCENES, CAPTIONS):
        words = text.split()
        if {"large", "small"} & set(words):
            assert len(scene.objects) == 1
            assert ("large" in words) == (scene.objects[0].size > 0.57)
            said.add("large" if "large" in words else "small")
        for name in ("white", "grey", "beige", "gradient", "textured"):
            if name in words:
                assert name in (scene.background.tone, scene.background.kind)
                said.add(name)
    assert said == {"large", "small", "white", "grey", "beige", "gradient", "textured"}


def test_captions_are_short_lower_case_ascii():
    assert max(map(len, CAPTIONS)) <= MAX_BYTES
    assert sum(len(text) <= GOAL for text in CAPTIONS) > 0.9 * len(CAPTIONS)
    assert all(text.isascii() and text == text.lower() and "  " not in text for text in CAPTIONS)
    assert not any(re.search(r"\ban? [aeiou]", text) and re.search(r"\ba [aeiou]", text) for text in CAPTIONS)


def test_words_vary_with_seed_and_index_and_with_nothing_else():
    scene = SCENES[0]
    assert caption(scene, 1, 0) == caption(scene, 1, 0)
    assert len({caption(scene, 1, i) for i in range(50)}) > 5
    assert len({caption(scene, seed, 0) for seed in range(50)}) > 5


def test_plain_captions():
    ground = Background("plain", "white")
    circle = Object("orange", "circle", "plain", 0.3, 0.5, 0.4)
    star = Object("blue", "star", "rings", 0.7, 0.5, 0.4)
    assert plain_caption(Scene((circle,), None, ground)) == "an orange circle"
    assert (
        plain_caption(Scene((circle, star), "left of", ground))
        == "an orange circle left of a ringed blue star"
    )
