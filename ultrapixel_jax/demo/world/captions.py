"""Captions of scenes, in varied words; the same on every machine for the same seed and index.

    a red circle above a striped blue square
    a small green star with dots on a grey background

Lower-case English of `MAX_BYTES` at most, mostly below `GOAL`. Colour, shape, texture and relation are
always told ("plain" may be left out); background and size sometimes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ultrapixel_jax.data.plan import uniforms
from ultrapixel_jax.demo.world.scenes import Object, Scene

MAX_BYTES = 75
"""What a tokenizer of bytes with 77 positions has room for."""
GOAL = 60

PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("{c} {s}", "{c} {s}", "plain {c} {s}"),
    "stripes": ("striped {c} {s}", "{c} striped {s}", "{c} {s} with stripes"),
    "dots": ("dotted {c} {s}", "{c} dotted {s}", "{c} {s} with dots"),
    "checks": ("checked {c} {s}", "{c} checked {s}", "{c} {s} with checks"),
    "rings": ("ringed {c} {s}", "{c} ringed {s}", "{c} {s} with rings"),
}
"""The first is the one that `plain_caption` uses."""
SHORT = 2
"""Number of phrases that may stand in a relation; of the others it would not be clear what they go with."""
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "in"),
}
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
LARGE, SMALL = 0.62, 0.52
"""A single object from this size on, in shorter sides, may be called large; up to this one, small."""
_DOMAIN = 0xCA9
_TRIES = 8


def caption(scene: Scene, seed: int, index: int) -> str:
    """Words for `scene`; `seed` and `index` choose among many."""
    best = ""
    for attempt in range(_TRIES):
        text = _words(scene, iter(uniforms(16, (_DOMAIN, seed, index, attempt)).tolist()))
        if len(text) <= GOAL:
            return text
        best = min(best or text, text, key=len)
    return best


def plain_caption(scene: Scene) -> str:
    """The shortest words for `scene`, always the same."""
    names = [_article(PHRASES[o.texture][0].format(c=o.colour, s=o.shape)) for o in scene.objects]
    return names[0] if scene.relation is None else f"{names[0]} {scene.relation} {names[1]}"


def _words(scene: Scene, numbers: Iterator[float]) -> str:
    def choice(options: Sequence[str]) -> str:
        return options[int(next(numbers) * len(options))]

    def name(o: Object, phrases: Sequence[str]) -> str:
        return choice(phrases).format(c=o.colour, s=o.shape)

    if scene.relation is None:
        (o,) = scene.objects
        text = name(o, PHRASES[o.texture])
        if next(numbers) < 0.4 and (size := _size_word(o)):
            text = f"{size} {text}"
        return _article(text) + (_background(scene, choice) if next(numbers) < 0.5 else "")

    first, second = (_article(name(o, PHRASES[o.texture][:SHORT])) for o in scene.objects)
    relation, turned = scene.relation, next(numbers) < 0.25
    if turned and relation == "inside":
        text = choice((f"{second} around {first}", f"{second} with {first} inside"))
    elif turned:
        text = f"{second} {choice(RELATION_WORDS[CONVERSE[relation]])} {first}"
    else:
        text = f"{first} {choice(RELATION_WORDS[relation])} {second}"
    return text + (_background(scene, choice) if next(numbers) < 0.3 else "")


def _size_word(o: Object) -> str:
    return "large" if o.size >= LARGE else "small" if o.size <= SMALL else ""


def _background(scene: Scene, choice: Callable[[Sequence[str]], str]) -> str:
    kind, tone = scene.background.kind, scene.background.tone
    if kind == "plain":
        return choice((f" on {tone}", f" on a {tone} background", f" on a plain {tone} background"))
    return choice((f" on a {kind} background", f" on a {kind} {tone} background"))


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
