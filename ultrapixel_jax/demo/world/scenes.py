"""Scenes of the demo world: one or two objects on a background, as vector descriptions.

    sample(seed, index, split, ratio) -> Scene

Coordinates are fractions of the picture's shorter side: the largest centred square runs from (0, 0) at the
top left to (1, 1) at the bottom right, x to the right, y downwards. In a longer picture, whose height is
`ratio` times its width, the same objects lie anywhere along it, up to `EDGE` from its ends.

Split `train` and split `held_out` share no contents. Held out are one in ten combinations of colour, shape
and texture, spread so that every pair of the three is still seen in training, and about one in twelve
combinations of two coloured shapes in a relation. A held-out scene shows at least one of either.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ultrapixel_jax.data.plan import uniforms
from ultrapixel_jax.errors import UserError

T = TypeVar("T")
RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (216, 34, 40),
    "orange": (248, 138, 20),
    "yellow": (252, 222, 44),
    "green": (38, 160, 58),
    "cyan": (60, 214, 216),
    "blue": (10, 112, 238),
    "purple": (112, 28, 150),
    "pink": (250, 110, 186),
}
"""sRGB of an object's main tone, by name; 45 or more apart in CIELAB."""
DARK = 0.42
"""A texture's second tone is the main tone times this, and covers half of the object at most."""
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart")
ROOMY = ("circle", "square", "triangle", "diamond", "heart")
"""Shapes that another object fits into."""
TEXTURES = ("plain", "stripes", "dots", "checks", "rings")
RELATIONS = ("left of", "right of", "above", "below", "inside")
"""Of the first object to the second."""
BACKGROUNDS = ("plain", "gradient", "textured")
TONES: dict[str, RGB] = {"white": (252, 252, 252), "grey": (214, 216, 220), "beige": (245, 236, 220)}
"""sRGB of backgrounds, by name; all of them pale and nearly grey."""
SPLITS = ("train", "held_out")
MAX_SEED = 2**63 - 1

PAIR = 0.65
"""Share of scenes with two objects."""
_OPPOSITE = {"left of": "right of", "above": "below"}
EDGE = 0.03
"""Least distance of an object from the ends of a long picture, in shorter sides."""
WIDEST = 0.88
"""Largest object, in shorter sides."""
FARTHEST = 4.0
"""By how much two objects may be farther apart in a long picture than in a square, as a factor."""
_DOMAIN, _LONG = 0x5CE7E, 0x1096
"""Keep these random numbers apart from others of the same seed."""


@dataclasses.dataclass(frozen=True)
class Object:
    """One coloured, textured shape."""

    colour: str
    shape: str
    texture: str
    x: float
    """Of the centre, in shorter sides of the picture."""
    y: float
    size: float
    """Diameter, roughly, in shorter sides."""
    lean: int = 1
    """Direction of stripes: 1 rises to the right, -1 falls."""

    def __post_init__(self) -> None:
        _check("colour", self.colour, COLOURS)
        _check("shape", self.shape, SHAPES)
        _check("texture", self.texture, TEXTURES)
        if not 0.02 <= self.size <= 2:
            raise UserError(f"size {self.size} of an object is outside 0.02 to 2 sides of the picture")
        if self.lean not in (-1, 1):
            raise UserError(f"lean {self.lean} of an object is neither 1 nor -1")


@dataclasses.dataclass(frozen=True)
class Background:
    """What the objects stand on."""

    kind: str
    tone: str

    def __post_init__(self) -> None:
        _check("background", self.kind, BACKGROUNDS)
        _check("tone", self.tone, TONES)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that is drawn."""

    objects: tuple[Object, ...]
    """One or two. With the relation `inside`, the first lies on top of the second."""
    relation: str | None
    """Of the first object to the second; None for one object."""
    background: Background

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise UserError(f"a scene has one or two objects, not {len(self.objects)}")
        if (self.relation is None) != (len(self.objects) == 1):
            raise UserError(f"relation {self.relation!r} does not go with {len(self.objects)} object(s)")
        if self.relation is not None:
            _check("relation", self.relation, RELATIONS)

    @property
    def held_out(self) -> bool:
        """Whether the training split never shows these contents."""
        if any(_object_held_out(o) for o in self.objects):
            return True
        if self.relation is None:
            return False
        first, second = self.objects
        return _pair_held_out(first, self.relation, second)


def _check(what: str, value: str, known: Sequence[str] | dict[str, RGB]) -> None:
    if value not in known:
        raise UserError(f"{what} {value!r:.80} is not known; use one of {', '.join(known)}")


def _object_held_out(o: Object) -> bool:
    colour, shape = list(COLOURS).index(o.colour), SHAPES.index(o.shape)
    return (colour + 2 * shape + 3 * TEXTURES.index(o.texture)) % 10 == 0


def _pair_held_out(first: Object, relation: str, second: Object) -> bool:
    if relation in _OPPOSITE:  # "a left of b" and "b right of a" are one
        first, relation, second = second, _OPPOSITE[relation], first
    text = f"{first.colour} {first.shape} {relation} {second.colour} {second.shape}"
    return zlib.crc32(text.encode()) % 12 == 0


def sample(seed: int, index: int, split: str = "train", ratio: float = 1.0) -> Scene:
    """Scene `index` of a split; the same on every machine and for every size of picture of one `ratio`.

    Of another ratio (height over width) it has the same objects in the same relation, but see `spread`.

    Raises:
        UserError: an unknown split, or a negative seed or index.
    """
    _check("split", split, SPLITS)
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed} is outside 0 to {MAX_SEED}")
    if index < 0:
        raise UserError(f"index {index} is negative")
    attempt = 0
    while True:
        scene = _draw(_Dice((_DOMAIN, seed, SPLITS.index(split), index, attempt)))
        if scene.held_out == (split == "held_out"):
            return spread(scene, ratio, uniforms(2, (_LONG, seed, SPLITS.index(split), index)).tolist())
        attempt += 1


def spread(scene: Scene, ratio: float, chances: Sequence[float]) -> Scene:
    """`scene` along the longer side of a picture of `ratio`; itself for a square.

    Its objects take up as much of the picture as of a square, where the shorter side has room for that: two
    beside each other across the picture stay as large as they are. Latents of the base size hold no texture
    of an object that is smaller.

    Args:
        scene: of a square.
        ratio: height over width.
        chances: how far apart objects come, and where along the picture they lie: each from 0 to 1.
    """
    half = max(ratio, 1 / ratio) / 2 - EDGE
    axis = "y" if ratio > 1 else "x"
    if half <= 0.5 - EDGE:
        return scene
    apart, where = chances
    along = scene.relation in (("above", "below") if axis == "y" else ("left of", "right of"))
    grown = 1.0
    if along or scene.relation in (None, "inside"):
        widest = max(o.size for o in scene.objects)
        grown = max(1.0, min(math.sqrt(max(ratio, 1 / ratio)), WIDEST / widest))
    sizes = [round(grown * o.size, 4) for o in scene.objects]
    aways = [grown * (getattr(o, axis) - 0.5) for o in scene.objects]
    room = [half - size / 2 for size in sizes]
    if along:
        most = min(r / max(abs(a), 1e-6) for r, a in zip(room, aways))
        farther = 1 + apart * (min(most, FARTHEST) - 1)
        aways = [a * farther for a in aways]
    low, high = max(-r - a for r, a in zip(room, aways)), min(r - a for r, a in zip(room, aways))
    shift = low + where * (high - low)
    places = [round(0.5 + a + shift, 4) for a in aways]
    other = "x" if axis == "y" else "y"

    def moved(o: Object, place: float, size: float) -> Object:
        beside = getattr(o, other)
        if grown > 1:
            free = 0.5 - EDGE - size / 2
            beside = round(min(max(beside, 0.5 - free), 0.5 + free), 4)
        return dataclasses.replace(o, **{axis: place, other: beside, "size": size})

    return dataclasses.replace(scene, objects=tuple(map(moved, scene.objects, places, sizes)))


class _Dice:
    """Random choices, one after the other."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._numbers: Iterator[float] = iter(uniforms(64, key).tolist())

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability

    def choice(self, options: Sequence[T]) -> T:
        return options[int(next(self._numbers) * len(options))]

    def between(self, low: float, high: float) -> float:
        return round(low + (high - low) * next(self._numbers), 4)


def _draw(dice: _Dice) -> Scene:
    background = Background(dice.choice(BACKGROUNDS), dice.choice(list(TONES)))
    if not dice.chance(PAIR):
        size = dice.between(0.42, 0.72)
        free = (0.9 - size) / 2
        x, y = (0.5 + dice.between(-free, free) for _ in range(2))
        return Scene((_object(dice, list(COLOURS), SHAPES, x, y, size),), None, background)

    relation = dice.choice(RELATIONS)
    if relation == "inside":
        sizes = dice.between(0.28, 0.34), dice.between(0.76, WIDEST)
        x, y = (0.5 + dice.between(-0.01, 0.01) for _ in range(2))
        places = [(x, y), (x, y)]
    else:
        sizes = dice.between(0.33, 0.43), dice.between(0.33, 0.43)
        near, far = 0.265 + dice.between(-0.025, 0.025), 0.735 + dice.between(-0.025, 0.025)
        across = [0.5 + dice.between(-0.1, 0.1) for _ in range(2)]
        along = [near, far] if relation in ("left of", "above") else [far, near]
        places = list(zip(along, across))
        if relation in ("above", "below"):
            places = [(x, y) for y, x in places]
    first = _object(dice, list(COLOURS), SHAPES, *places[0], sizes[0])
    others = [name for name in COLOURS if name != first.colour]
    shapes = ROOMY if relation == "inside" else SHAPES
    second = _object(dice, others, shapes, *places[1], sizes[1])
    return Scene((first, second), relation, background)


def _object(
    dice: _Dice, colours: Sequence[str], shapes: Sequence[str], x: float, y: float, size: float
) -> Object:
    return Object(
        colour=dice.choice(colours),
        shape=dice.choice(shapes),
        texture=dice.choice(TEXTURES),
        x=round(x, 4),
        y=round(y, 4),
        size=size,
        lean=dice.choice((1, -1)),
    )
