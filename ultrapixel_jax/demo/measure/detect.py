"""Finds the objects of the demo world in a picture, without a network, and compares them with a scene.

    found = detect(picture)
    verdict = compare(scene, found)

The picture is looked at with 256 pixels on its shorter side, whatever its size, so that what is found does
not depend on fine detail. Every pixel gets the nearest colour in CIELAB among shades of the world's colours
and of its backgrounds; connected regions of one colour are objects. A region's shape is the silhouette that
overlaps best with it, at the best centre and size; its texture is the pattern that correlates best with
its lightness, at any phase and at periods around the world's. What is too unlike all of them is `UNCLEAR`,
which is never right.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage

from ultrapixel_jax.demo.world.render import FINE_MAIN, outline, period_of
from ultrapixel_jax.demo.world.scenes import COLOURS, DARK, SHAPES, TONES, Scene
from ultrapixel_jax.errors import UserError

SIDE = 256
"""Pixels of the shorter side that detection works at."""
UNCLEAR = "unclear"
"""Colour, shape or texture of what resembles none."""

SHADES = (1.05, 0.95, 0.85, 0.7, 0.55, DARK, 0.34)
"""Of an object's colour: its main tone under fine lines, its second tone, and what blurring makes of them."""
GREYS = (1.02, 0.94, 0.86, 0.78, 0.7, 0.6, 0.5)
"""Of the background's tones."""
SMALLEST = 0.01
"""Area of the smallest object, in squares of the shorter side. The world's smallest has 0.025."""
THINNEST = 0.02
"""Radius of a disc that fits into every object, in shorter sides; the world's have 0.04. A rim has less."""
SPECK = 2
"""Radius in working pixels of what is too thin to be an object."""
MOST = 6
"""Objects that are looked at, the largest ones; a scene has two at most."""
REACH = 0.024
"""How far around an object that lies inside another its pale rim may reach, in shorter sides."""
FAR = 40
"""Distance in CIELAB from every main tone beyond which a colour is unclear; tones are 45 or more apart."""
LIKE_SHAPE = 0.7
"""Overlap with a silhouette, as intersection over union, below which a shape is unclear."""
LIKE_TEXTURE = 0.35
"""Correlation with a pattern below which a texture with contrast is unclear."""
PATTERN = 0.06
"""Deviation of lightness that a pattern explains, relative to the mean, from which on it is a texture."""
BLOTCHES = 0.14
"""Relative deviation of lightness from which on an object is not plain, whatever its pattern."""

Mask = Bool[np.ndarray, "h w"]
Relation = Literal["left of", "right of", "above", "below", "inside", "around", ""]


@dataclasses.dataclass(frozen=True)
class Found:
    """One object that was found."""

    colour: str
    """One of the world's, or `UNCLEAR`; so are shape and texture."""
    shape: str
    texture: str
    x: float
    """Of the centre, in shorter sides of the picture, as in `world.Object`."""
    y: float
    size: float
    overlap: float = 1.0
    """With the best silhouette, as intersection over union."""
    outer: int | None = None
    """Index of the found object that encloses it."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what its scene tells; backgrounds do not count."""

    colour: bool
    """Every object of the scene is there with its colour."""
    shape: bool
    texture: bool
    relation: bool | None
    """Of objects that have their colour or their shape, at least. None for scenes of one object."""
    number: bool
    """As many objects as in the scene."""

    @property
    def all(self) -> bool:
        """Everything is right, and nothing else is there."""
        return self.colour and self.shape and self.texture and self.relation is not False and self.number


# ---------------------------------------------------------------------------- colours


def cielab(rgb: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """CIELAB (D65) of sRGB values from 0 to 255."""
    c = np.clip(np.asarray(rgb, np.float32) / 255, 0, 1)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T.astype(np.float32)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@functools.cache
def _palette() -> tuple[Float[np.ndarray, "k 3"], Int[np.ndarray, " k"]]:
    """Shades in CIELAB, and the index of the colour that each belongs to, −1 for backgrounds."""
    shades = [np.multiply(rgb, s) for rgb in COLOURS.values() for s in SHADES]
    greys = [np.multiply(rgb, s) for rgb in TONES.values() for s in GREYS]
    owner = np.repeat(np.arange(len(COLOURS)), len(SHADES))
    return cielab(np.array(shades + greys)), np.concatenate([owner, np.full(len(greys), -1)])


def labels_of(lab: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """Of every pixel, the index of its colour, −1 for background."""
    palette, owner = _palette()
    # |a − b|² without |a|², which is the same for every b.
    distance = (palette**2).sum(1) - 2 * lab.reshape(-1, 3) @ palette.T
    return owner[distance.argmin(1)].reshape(lab.shape[:2])


def _main_colour(lab: Float[np.ndarray, "n 3"]) -> str:
    """Name of the colour whose main tone is nearest to that of the lighter half of an object's pixels."""
    lighter = lab[lab[:, 0] >= np.median(lab[:, 0])]
    main = cielab(np.array(list(COLOURS.values())) * (1 - 0.4 * FINE_MAIN))
    distance = np.sqrt(((main - np.median(lighter, 0)) ** 2).sum(1))
    return list(COLOURS)[int(distance.argmin())] if distance.min() <= FAR else UNCLEAR


# ---------------------------------------------------------------------------- regions


def _disc(radius: int) -> Mask:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 1


def _regions(labels: Int[np.ndarray, "h w"]) -> list[Mask]:
    """Connected regions of one colour, without what is thin or small; the largest first."""
    grown = 2 * SPECK
    padded = np.pad(labels, grown, constant_values=-1)
    cores = np.zeros(padded.shape, np.int32)
    colours: list[int] = []
    for colour in range(len(COLOURS)):
        if np.count_nonzero(padded == colour) < SMALLEST * SIDE**2 / 2:
            continue
        mask = ndimage.binary_closing(padded == colour, _disc(SPECK))
        mask = ndimage.binary_opening(mask, _disc(SPECK))
        parts, number = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
        depths = ndimage.distance_transform_edt(mask)
        deepest = ndimage.maximum(depths, parts, range(number + 1))
        # Where two colours alternate closely, closing gives both the same area, and the first has it.
        areas = np.bincount(parts[cores == 0], minlength=number + 1)
        for part in range(1, number + 1):
            if areas[part] >= SMALLEST * SIDE**2 and deepest[part] >= THINNEST * SIDE:
                colours.append(colour)
                cores[(parts == part) & (cores == 0)] = len(colours)
    # What else is coloured (thin tips, mixed pixels of edges) belongs to the nearest of these, if it is near.
    away, at = ndimage.distance_transform_edt(cores == 0, return_indices=True)  # pyright: ignore
    nearest = cores[tuple(at)]
    thin = (padded >= 0) & (cores == 0) & (away < 0.1 * SIDE)
    regions = []
    for number in range(1, len(colours) + 1):
        core = cores == number
        parts, _ = ndimage.label(core | (thin & (nearest == number)))  # pyright: ignore
        region = np.isin(parts, np.unique(parts[core]))
        regions.append(region[grown:-grown, grown:-grown])
    largest = sorted(range(len(regions)), key=lambda i: -int(regions[i].sum()))[:MOST]
    return _joined([regions[i] for i in largest], [colours[i] for i in largest])


def _joined(regions: Sequence[Mask], colours: Sequence[int]) -> list[Mask]:
    """`regions` with those put together that another one, which lies inside and reaches their edge, cuts."""
    owner = list(range(len(regions)))
    for middle in regions:
        around = ndimage.distance_transform_edt(~middle) <= REACH * SIDE  # pyright: ignore
        near = [i for i, region in enumerate(regions) if region is not middle and (region & around).any()]
        for i, j in itertools.combinations(near, 2):
            if colours[i] == colours[j]:
                owner = [owner[i] if o == owner[j] else o for o in owner]
    parts = [[m for m, o in zip(regions, owner) if o == number] for number in dict.fromkeys(owner)]
    return sorted((np.logical_or.reduce(masks) for masks in parts), key=lambda m: -int(m.sum()))


def _filled(mask: Mask) -> Mask:
    """Without holes; those that reach the picture's border are none."""
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(mask, 4), _disc(SPECK)))[4:-4, 4:-4]  # pyright: ignore


# ---------------------------------------------------------------------------- shapes


def _fit(mask: Mask) -> tuple[str, float, float, float, float]:
    """Best silhouette of a region: shape, x, y, size (in working pixels), and its overlap."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = 4
    top, left = rows[0] - margin, columns[0] - margin
    crop = np.pad(mask, margin)[
        rows[0] : rows[-1] + 1 + 2 * margin, columns[0] : columns[-1] + 1 + 2 * margin
    ]
    step = max(1, round(max(crop.shape) / 80))
    height, width = (-(-n // step) * step for n in crop.shape)
    crop = np.pad(crop, ((0, height - crop.shape[0]), (0, width - crop.shape[1])))
    share = crop.reshape(height // step, step, width // step, step).mean((1, 3)).astype(np.float32)
    y = ((np.arange(share.shape[0]) + 0.5) * step + top).astype(np.float32)
    x = ((np.arange(share.shape[1]) + 0.5) * step + left).astype(np.float32)
    total = share.sum()
    centre = float((share.sum(1) @ y) / total), float((share.sum(0) @ x) / total)
    area = float(total) * step * step

    best = (UNCLEAR, centre[1], centre[0], float(np.sqrt(area)), 0.0)
    for shape in SHAPES:

        def overlap(values: Sequence[float], shape: str = shape) -> float:
            d = outline(shape, x[None] - np.float32(values[1]), y[:, None] - np.float32(values[0]), values[2])
            drawn = np.clip(0.5 - d / step, 0, 1)
            return float(np.minimum(drawn, share).sum() / np.maximum(drawn, share).sum())

        unit_area, unit_y, unit_x = _MOMENTS[shape]
        size = np.sqrt(area / unit_area)
        at = [centre[0] - unit_y * size, centre[1] - unit_x * size, size]
        value = overlap(at)
        move = 0.06 * size
        while move > 0.008 * size:
            moved = False
            for i, sign in itertools.product(range(3), (1, -1)):
                other = list(at)
                other[i] += sign * move
                if (new := overlap(other)) > value:
                    at, value, moved = other, new, True
            if not moved:
                move /= 2
        if value > best[4]:
            best = (shape, float(at[1]), float(at[0]), float(at[2]), value)
    return best


def _moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid of a shape of size 1."""
    u = ((np.arange(400) + 0.5) / 400 * 1.6 - 0.8).astype(np.float32)
    inside = (
        outline(shape, np.broadcast_to(u[None], (400, 400)), np.broadcast_to(u[:, None], (400, 400)), 1.0) < 0
    )
    weight = inside.sum()
    return float(weight) * 0.004**2, float(inside.sum(1) @ u / weight), float(inside.sum(0) @ u / weight)


_MOMENTS = {shape: _moments(shape) for shape in SHAPES}


# ---------------------------------------------------------------------------- textures

Points = Float[np.ndarray, " n"]
Waves = Float[np.ndarray, "k n"]
_PERIODS = (0.78, 0.85, 0.92, 1.0, 1.08, 1.17, 1.28)
_PHASES = (np.arange(8) / 8).astype(np.float32)
_HALF = _PHASES[:4]
"""Half a period on, a wave is its own negative."""
_TURN = np.float32(2 * np.pi)
_COS, _SIN = (f(_TURN * _HALF)[:, None] for f in (np.cos, np.sin))


def _wave(u: Points) -> Waves:
    """A rounded square wave of period 1 at half of the phases; at the first, with its trough around 0."""
    out = np.sin(_TURN * u) * _SIN - np.cos(_TURN * u) * _COS
    out *= np.float32(1.6)
    return np.clip(out, -1, 1, out=out)


def _stripes(x: Points, y: Points, p: float) -> Iterator[Waves]:
    for lean in (1, -1):
        yield _wave((x + lean * y) * np.float32(np.sqrt(0.5) / p))


def _rings(x: Points, y: Points, p: float) -> Iterator[Waves]:
    for dy, dx in ((0, 0), (0.25, 0), (-0.25, 0), (0, 0.25), (0, -0.25)):
        yield _wave(np.hypot(x - np.float32(dx * p), y - np.float32(dy * p)) / np.float32(p))


def _checks(x: Points, y: Points, p: float) -> Iterator[Waves]:
    across, down = (_wave(u / np.float32(1.15 * p)) for u in (x, y))
    for wave in across:
        yield wave * down


def _dots(x: Points, y: Points, p: float) -> Iterator[Waves]:
    across, down = (u / np.float32(p) + _PHASES[:, None] for u in (x, y))
    for u in (across, down):
        u -= np.round(u)
        u *= u
    for squares in across:
        out = np.sqrt(squares + down)
        out -= np.float32(0.32)
        out /= np.float32(0.15)
        yield np.clip(out, -1, 1, out=out)


_PATTERNS: dict[str, Callable[[Points, Points, float], Iterator[Waves]]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "rings": _rings,
}
_OF_WAVES = ("stripes", "checks", "rings")
"""Whose negatives are patterns too, at the other phases."""


def _texture(lightness: Points, x: Points, y: Points, size: float) -> str:
    """Name of the texture of points at (x, y) around an object's centre; all lengths in one unit.

    `lightness` is that of the points.
    """
    deviation = float(lightness.std()) / max(float(lightness.mean()), 1.0)
    if deviation < PATTERN:
        return "plain"
    v = (lightness - lightness.mean()) / lightness.std()
    best, name = 0.0, UNCLEAR
    for texture, patterns in _PATTERNS.items():
        for scale in _PERIODS:
            for waves in patterns(x, y, period_of(size) * scale):
                waves -= waves.mean(1, keepdims=True)
                spread = np.sqrt(np.square(waves).mean(1))
                values = waves @ v / (len(v) * spread.clip(0.05)) * (spread > 0.05)
                value = float((np.abs(values) if texture in _OF_WAVES else values).max())
                if value > best:
                    best, name = value, texture
    if best < LIKE_TEXTURE:
        return UNCLEAR if deviation >= BLOTCHES else "plain"
    return name if best * deviation >= PATTERN else "plain"


# ---------------------------------------------------------------------------- the whole picture


def detect(image: UInt8[np.ndarray, "h w 3"]) -> list[Found]:
    """Objects in an RGB picture, the largest first.

    Raises:
        UserError: a side is below 256 pixels.
    """
    height, width = image.shape[:2]
    if min(height, width) < SIDE:
        raise UserError(f"a picture of {height}x{width} is too small to detect objects; use {SIDE} or more")
    unit = SIDE / min(height, width)
    size = round(width * unit), round(height * unit)
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    lab = cielab(np.asarray(small, np.float32))
    regions = _regions(labels_of(lab))
    solid = [_filled(region) for region in regions]
    for i, region in enumerate(regions):
        if ndimage.label(region)[1] > 1:  # pyright: ignore
            for other in regions:
                if other is not region and other.sum() < region.sum():
                    around = ndimage.distance_transform_edt(~other) <= REACH * SIDE  # pyright: ignore
                    if ndimage.label(region | around)[1] == 1:  # pyright: ignore
                        solid[i] = _filled(region | around)

    outer: list[int | None] = []
    for i, region in enumerate(regions):  # a region can only lie within a larger one, which is further ahead
        around = [j for j in range(i) if (region & solid[j]).sum() > 0.7 * region.sum()]
        outer.append(around[-1] if around else None)
    found = []
    for i, region in enumerate(regions):
        shape, x, y, extent, overlap = _fit(solid[i])
        inner = [solid[j] for j in range(len(regions)) if outer[j] == i]
        # Away from the hairline along the outline, and from the rim around what lies inside.
        core = ndimage.binary_erosion(solid[i], _disc(1), iterations=max(2, round(0.02 * SIDE)))
        for hole in inner:
            core &= ndimage.distance_transform_edt(~hole) > 0.025 * SIDE  # pyright: ignore
        if core.sum() < 0.2 * region.sum():
            core = region
        at_y, at_x = np.nonzero(core)
        step = max(1, round(np.sqrt(len(at_y)) / 64))
        keep = (at_y % step == 0) & (at_x % step == 0)
        at_y, at_x = at_y[keep], at_x[keep]
        pixels = lab[at_y, at_x]
        dx, dy = ((at + 0.5 - c) / SIDE for at, c in ((at_x, x), (at_y, y)))
        found.append(
            Found(
                colour=_main_colour(pixels),
                shape=shape if overlap >= LIKE_SHAPE else UNCLEAR,
                texture=_texture(pixels[:, 0], dx.astype(np.float32), dy.astype(np.float32), extent / SIDE),
                x=round((x - size[0] / 2) / SIDE + 0.5, 4),
                y=round((y - size[1] / 2) / SIDE + 0.5, 4),
                size=round(extent / SIDE, 4),
                overlap=round(overlap, 4),
                outer=outer[i],
            )
        )
    return found


def relation(found: Sequence[Found]) -> Relation:
    """How the first of two objects lies to the second; nothing for another number of them."""
    if len(found) != 2:
        return ""
    first, second = found
    if (first.outer is None) != (second.outer is None):
        return "inside" if second.outer is None else "around"
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def compare(scene: Scene, found: Sequence[Found]) -> Verdict:
    """Hold what was found against a scene.

    Its objects are matched with found ones so that as many of their properties as possible are right.
    """
    wanted = scene.objects
    number = len(found) == len(wanted)
    relation_of_none = None if scene.relation is None else False
    best = Verdict(colour=False, shape=False, texture=False, relation=relation_of_none, number=number)
    most = (-1, False)
    for some in itertools.permutations(found, len(wanted)):
        right = {
            name: [getattr(o, name) == getattr(f, name) for o, f in zip(wanted, some)]
            for name in ("colour", "shape", "texture")
        }
        known = all(colour or shape for colour, shape in zip(right["colour"], right["shape"]))
        related = None if scene.relation is None else known and relation(some) == scene.relation
        points = sum(sum(values) for values in right.values()), bool(related)
        if points > most:
            most = points
            best = Verdict(
                **{name: all(values) for name, values in right.items()}, relation=related, number=number
            )
    return best
