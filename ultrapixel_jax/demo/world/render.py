"""A scene drawn at any size, antialiased, with numpy alone.

Shapes are signed distance functions: a pixel is covered by ½ − d, with d the distance from its centre to the
outline in pixels. Periodic patterns are averaged over the pixel in closed form. So a small rendering is
what a large one becomes when it is averaged down.

Every surface carries line work of `FINE` periods per side. Where a period is less than two pixels it fades
to its mean, so that at 384 pixels nothing of it is left; at 768 and above it is drawn. A large rendering is
therefore not an enlarged small one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from ultrapixel_jax.demo.world.scenes import COLOURS, DARK, TONES, Background, Object, Scene
from ultrapixel_jax.errors import UserError

FINE = 320
"""Periods of the fine line work along the picture's shorter side."""
LARGEST = 16384
"""Pixels on a side."""

Field = Float32[np.ndarray, "#h #w"]
Axis = Float64[np.ndarray, "..."]

STRIP = 1 << 17
"""Pixels drawn at a time: few enough to stay in the cache."""
MOAT = 0.014
"""Width of the pale rim around an object that lies inside another, in shorter sides."""
MOAT_TONE = 0.97
HAIRLINE = (0.0085, 0.0028)
"""Distance inwards from the outline of a thin dark line, and its width, in shorter sides."""
HAIRLINE_DEPTH = 0.45
FINE_MAIN, FINE_DARK, FINE_BACKGROUND = 0.25, 0.5, 0.06
"""How much the fine lines darken the main tone and the background, and lighten the dark tone."""
WEAVE = 0.055
"""How much the coarse pattern of a textured background darkens it."""
GRADIENT = 0.84
"""Of the tone, at the lower end of a gradient."""


def render(
    scene: Scene, height: int, width: int, window: tuple[int, int, int, int] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a scene: RGB, `height` × `width` pixels.

    The scene fills the largest centred square; the background goes on beyond it. Of that picture,
    `window` (top, left, height, width) is drawn alone.

    Raises:
        UserError: a side below 16 or above 16384 pixels.
    """
    for side in (height, width):
        if not 16 <= side <= LARGEST:
            raise UserError(f"{side} pixels are outside 16 to {LARGEST}, the sizes that can be drawn")
    unit = min(height, width)
    ys = (np.arange(height) + 0.5 - (height - unit) / 2) / unit
    xs = (np.arange(width) + 0.5 - (width - unit) / 2) / unit
    top, left, h, w = window or (0, 0, height, width)
    ys, xs = ys[top : top + h], xs[left : left + w]
    out = np.empty((len(ys), len(xs), 3), np.uint8)
    rows = max(1, STRIP // len(xs))
    order = scene.objects[::-1]  # the first is on top
    for top in range(0, len(ys), rows):
        y = ys[top : top + rows]
        planes = background(scene.background, y, xs, 1 / unit)
        for o in order:
            _draw(planes, o, y, xs, 1 / unit, moat=scene.relation == "inside" and o is scene.objects[0])
        out[top : top + rows] = (planes * 255 + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return out


# ---------------------------------------------------------------------------- patterns


def _lines(u: np.ndarray, period: float, duty: float, pixel: float) -> np.ndarray:
    """Share of a pixel at `u` that is on a line: lines are the first `duty` of every period."""
    kind = u.dtype.type

    def integral(v: np.ndarray) -> np.ndarray:
        whole = np.floor(v)
        return whole * kind(duty) + np.minimum(v - whole, kind(duty))

    a = u * kind(1 / period)
    half = kind(pixel / period / 2)
    return (integral(a + half) - integral(a - half)) * kind(period / pixel)


def _fine(u: Axis, pixel: float, duty: float) -> Axis:
    """The fine lines, faded to their mean where a period is less than two pixels."""
    keep = np.clip((0.75 - pixel * FINE) / 0.25, 0, 1)
    return duty + keep * (_lines(u, 1 / FINE, duty, pixel) - duty)


def background(b: Background, y: Axis, x: Axis, pixel: float) -> Float32[np.ndarray, "3 h w"]:
    """What a scene stands on, at the pixel centres `y` and `x`; planes of 0 to 1."""
    tone = np.array(TONES[b.tone], np.float64) / 255
    rows = 1 - FINE_BACKGROUND * _fine(y, pixel, 0.5)
    columns = 1 - FINE_BACKGROUND * _fine(x, pixel, 0.5)
    if b.kind == "gradient":
        rows = rows * (1 + (GRADIENT - 1) * y.clip(0, 1))
    shade = np.multiply.outer(rows, columns)
    if b.kind == "textured":
        wave_y, wave_x = (2 * _lines(u, 1 / 14, 0.5, pixel) - 1 for u in (y, x))
        shade *= 1 - WEAVE * (0.5 + 0.5 * np.multiply.outer(wave_y, wave_x))
    return (tone[:, None, None] * shade).astype(np.float32)


def period_of(size: float) -> float:
    """Period of the coarse texture of an object of `size`; both in shorter sides."""
    return float(np.clip(0.36 * size, 0.12, 0.2))


def _dark_share(o: Object, x: Field, y: Field, pixel: float) -> Field | None:
    """Where the second tone is: 0 to 1, around the object's centre. None for a plain object."""
    p = period_of(o.size)
    match o.texture:
        case "stripes":
            u = (x + np.float32(o.lean) * y) * np.float32(np.sqrt(0.5))
            return _lines(u + np.float32(0.22 * p), p, 0.44, pixel)
        case "rings":
            return _lines(np.hypot(x, y) - np.float32(0.5 * p), p, 0.44, pixel)
        case "checks":
            q = 1.15 * p
            a, b = (2 * _lines(u.astype(np.float64) - q / 4, q, 0.5, pixel) - 1 for u in (x[0], y[:, 0]))
            return (0.5 - 0.5 * np.multiply.outer(b, a)).astype(np.float32)
        case "dots":
            a, b = (np.abs(u - np.round(u / p) * p) for u in (x[0], y[:, 0]))
            d = np.sqrt(np.add.outer(b * b, a * a)) - np.float32(0.32 * p)
            return np.clip(0.5 - d * np.float32(1 / pixel), 0, 1)
    return None


# ---------------------------------------------------------------------------- shapes


def outline(shape: str, x: Field, y: Field, size: float) -> Field:
    """Distance to the outline of a shape of `size` around (0, 0); negative inside. All in shorter sides.

    Exact along the edges; outside of sharp corners it is the distance to the edges' lines.
    """
    s = np.float32(size)
    match shape:
        case "circle":
            return np.hypot(x, y) - np.float32(0.5) * s
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.45) * s
        case "triangle":  # equilateral, its centroid a little below (0, 0)
            slope = np.abs(x) * np.float32(np.sqrt(0.75)) - y * np.float32(0.5)
            return np.maximum(slope - np.float32(0.258) * s, y - np.float32(0.37) * s)
        case "diamond":
            a, b = 0.4, 0.56
            line = np.abs(x) * np.float32(1 / a) + np.abs(y) * np.float32(1 / b) - s
            return line * np.float32(a * b / np.hypot(a, b))
        case "star":
            return _star(x, y - np.float32(0.03) * s, 0.58 * size, 0.27 * size)
        case "cross":
            a, b = np.abs(x), np.abs(y)
            long, short = np.float32(0.5) * s, np.float32(0.17) * s
            return np.minimum(np.maximum(a - long, b - short), np.maximum(a - short, b - long))
        case "heart":
            return _heart(x, y, size)
    raise UserError(f"shape {shape!r:.80} is not known")


def _star(x: Field, y: Field, outer: float, inner: float) -> Field:
    """Five points, one of them up."""
    step = np.pi / 5
    # Folded into the sector between the upper point and the notch to its right.
    angle = np.abs(np.mod(np.arctan2(x, -y) + np.float32(step), np.float32(2 * step)) - np.float32(step))
    r = np.hypot(x, y)
    notch = inner * np.array([np.cos(step), np.sin(step)])
    edge = notch - [outer, 0]
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    c, s = np.cos(angle) * r - np.float32(outer), np.sin(angle) * r
    return c * np.float32(normal[0]) + s * np.float32(normal[1])


def _heart(x: Field, y: Field, size: float) -> Field:
    """Two quarter circles on a square that stands on its corner."""
    k = np.float32(1 / (0.87 * size))
    a, b = np.abs(x) * k, np.float32(0.60) - y * k  # the tip at (0, 0), the lobes upwards
    lobe = np.hypot(a - np.float32(0.25), b - np.float32(0.75)) - np.float32(np.sqrt(0.125))
    half = np.maximum(a + b, 0) * np.float32(0.5)
    line = np.hypot(a - half, b - half)
    notch = np.hypot(a, b - 1)
    body = np.minimum(notch, line) * np.sign(a - b)
    return np.where(a + b > 1, lobe, body) / k


# ---------------------------------------------------------------------------- objects


def _draw(
    planes: Float32[np.ndarray, "3 h w"], o: Object, ys: Axis, xs: Axis, pixel: float, moat: bool
) -> None:
    """Draw `o` over the strip whose pixel centres are at `ys` and `xs`."""
    reach = 0.62 * o.size + MOAT + pixel
    top, bottom = np.searchsorted(ys, (o.y - reach, o.y + reach))
    left, right = np.searchsorted(xs, (o.x - reach, o.x + reach))
    if top == bottom or left == right:
        return
    y = (ys[top:bottom, None] - o.y).astype(np.float32)
    x = (xs[None, left:right] - o.x).astype(np.float32)
    d = outline(o.shape, x, y, o.size)
    scale = np.float32(1 / pixel)
    covered = np.clip(np.float32(0.5) - d * scale, 0, 1)

    light = 1 - FINE_MAIN * _fine(ys[top:bottom, None], pixel, 0.4)
    light = np.broadcast_to(light.astype(np.float32), d.shape)
    dark = _dark_share(o, x, y, pixel)
    if dark is not None:
        low = DARK * (1 + FINE_DARK * _fine(xs[None, left:right], pixel, 0.4)).astype(np.float32)
        light = light + dark * (low - light)
    depth, thickness = HAIRLINE
    inset = d * scale + np.float32(depth / pixel)  # pixels from the hairline's middle
    line = _overlap(inset, thickness / pixel)
    light = light * (1 - np.float32(HAIRLINE_DEPTH) * line)

    window = planes[:, top:bottom, left:right]
    if moat:
        rim = np.clip(np.float32(0.5) - (d - np.float32(MOAT)) * scale, 0, 1)
        window += rim * (np.float32(MOAT_TONE) - window)
    for plane, value in zip(window, COLOURS[o.colour]):
        plane += covered * (light * np.float32(value / 255) - plane)


def _overlap(u: Field, thickness: float) -> Field:
    """Share of a pixel at `u` (in pixels) that a line of `thickness` pixels around 0 covers."""
    half = np.float32(thickness / 2)
    return np.clip(np.minimum(u + np.float32(0.5), half) - np.maximum(u - np.float32(0.5), -half), 0, 1)
