"""The objects of the synthetic scenes: polygons with paint and light, drawn into patches with an alpha channel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from edge_effdet.artifacts import Size


@dataclass(frozen=True, slots=True)
class Patch:
    """A drawing to paste. rgb: float32 [h, w, 3], 0 to 255. alpha: float32 [h, w], 0 to 1. solid: bool [h, w], alpha above 0.5."""

    rgb: np.ndarray
    alpha: np.ndarray
    solid: np.ndarray


_Color = tuple[int, int, int]
_NEUTRAL = 128


@dataclass(slots=True)
class _Drawing:
    """The polygons of an object, float [K, 2] each, around the origin, with y down.

    Attributes:
        base: the colour where no pattern is painted.
        outline, holes: the area of the object, and the holes in it.
        paint: the polygons of a pattern with their colours, in drawing order.
        shade: polygons with their brightness, in drawing order; 128 leaves the colour as it is.
    """

    base: _Color
    outline: list[np.ndarray]
    holes: list[np.ndarray] = field(default_factory=list)
    paint: list[tuple[np.ndarray, _Color]] = field(default_factory=list)
    shade: list[tuple[np.ndarray, int]] = field(default_factory=list)


def _draw_ball(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    drawing = _Drawing(base, [_circle(1.0)])
    pattern = rng.integers(3)
    if pattern == 1:
        half, shift = rng.uniform(0.15, 0.4), rng.uniform(-0.3, 0.3)
        drawing.paint.append((_rectangle(-1, shift - half, 1, shift + half), other))
    elif pattern == 2:
        pole = rng.uniform(-0.4, 0.4, 2)
        for start in np.arange(3) * 2 * math.pi / 3:
            arc = np.linspace(start, start + math.pi / 3, 8)
            drawing.paint.append((np.vstack([pole, 1.3 * np.stack([np.cos(arc), np.sin(arc)], axis=1)]), other))
    for level in range(60, 160, 3):
        radius = math.sqrt((160 - level) / 100)
        drawing.shade.append((_circle(radius, light * 0.5 * (1 - radius)), level))
    if rng.random() < 0.6:
        drawing.shade.append((_circle(rng.uniform(0.08, 0.16), light * 0.5), 250))
    return drawing


def _draw_bottle(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    body, neck = rng.uniform(0.3, 0.42), rng.uniform(0.11, 0.15)
    shoulder, throat = rng.uniform(-0.25, 0.0), rng.uniform(-0.6, -0.45)
    side = np.array([[neck, -1], [neck, throat], [body * 0.7, (shoulder + throat) / 2], [body, shoulder]])
    foot = np.array([[body, 0.95], [body * 0.9, 1.0]])
    right = np.vstack([side, foot])
    drawing = _Drawing(base, [_mirrored(right)])
    drawing.paint.append((_rectangle(-1, -1.1, 1, -0.84), other))
    if rng.random() < 0.7:
        drawing.paint.append((_rectangle(-1, shoulder + 0.15, 1, rng.uniform(0.5, 0.8)), _colors(rng)[1]))
    drawing.shade.extend(_round_shading(right, light))
    return drawing


def _draw_box(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    yaw, tilt = math.radians(rng.uniform(25, 65)), math.radians(rng.uniform(22, 42))
    along = np.array([math.cos(yaw), math.sin(yaw) * math.sin(tilt)]) * rng.uniform(0.6, 1.0)
    across = np.array([-math.sin(yaw), math.cos(yaw) * math.sin(tilt)]) * rng.uniform(0.6, 1.0)
    up = np.array([0, -math.cos(tilt)]) * rng.uniform(0.45, 0.9)
    faces = [
        np.array([along + across + up, along - across + up, -along - across + up, -along + across + up]),
        np.array([along + across + up, along - across + up, along - across - up, along + across - up]),
        np.array([along + across + up, -along + across + up, -along + across - up, along + across - up]),
    ]
    drawing = _Drawing(base, list(faces))
    if rng.random() < 0.7:
        half = rng.uniform(0.1, 0.25)
        near, far, drop = along + up, -along + up, along + up * (1 - rng.uniform(0.5, 1.2))
        drawing.paint.append(
            (np.array([near + across * half, near - across * half, far - across * half, far + across * half]), other)
        )
        drawing.paint.append(
            (np.array([near + across * half, near - across * half, drop - across * half, drop + across * half]), other)
        )
    sides = (150, 80) if light[0] > 0 else (80, 150)
    drawing.shade.extend(zip(faces, (int(rng.integers(165, 205)), *sides), strict=True))
    return drawing


def _draw_cone(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    foot, tip = rng.uniform(0.5, 0.66), rng.uniform(0.06, 0.12)
    right = np.array([[tip, -1], [foot, 0.78]])
    slab = np.array([[0.85, 0.7], [0.92, 0.8], [0.92, 0.95], [0.85, 1.0]])
    drawing = _Drawing(base, [_mirrored(slab), _mirrored(right)])
    for start in ((-0.45, 0.15), (-0.15,), ())[int(rng.choice(3, p=(0.6, 0.25, 0.15)))]:
        drawing.paint.append((_rectangle(-1, start, 1, start + rng.uniform(0.22, 0.36)), other))
    drawing.shade.append((_mirrored(slab), 95))
    drawing.shade.extend(_round_shading(right, light))
    return drawing


def _draw_ring(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    inner = rng.uniform(0.45, 0.68)
    drawing = _Drawing(base, [_circle(1.0)], [_circle(inner)])
    if rng.random() < 0.6:
        sectors = int(rng.integers(3, 6))
        for start in np.arange(sectors) * 2 * math.pi / sectors:
            arc = np.linspace(start, start + math.pi / sectors, 6)
            drawing.paint.append((np.vstack([[0, 0], 1.3 * np.stack([np.cos(arc), np.sin(arc)], axis=1)]), other))
    steps = 14
    for step in range(steps):
        across = step / (steps - 1)
        radius = 1 - across * (1 - inner)
        level = round(65 + 110 * math.sin(math.pi * min(across + 0.12, 1.0)))
        drawing.shade.append((_circle(radius, light * 0.07 * math.sin(math.pi * across)), level))
    return drawing


def _draw_star(rng: np.random.Generator, light: np.ndarray) -> _Drawing:
    base, other = _colors(rng)
    angles = -math.pi / 2 + np.arange(11) * math.pi / 5
    radii = np.where(np.arange(11) % 2, rng.uniform(0.4, 0.52), 1.0)
    corners = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    drawing = _Drawing(base, [corners])
    if rng.random() < 0.4:
        drawing.paint.append((_circle(rng.uniform(0.2, 0.35)), other))
    for first, second in itertools.pairwise(corners):
        edge = second - first
        normal = np.array([edge[1], -edge[0]]) / np.linalg.norm(edge)
        drawing.shade.append((np.array([[0, 0], first, second]), round(125 + 65 * float(normal @ light))))
    return drawing


_DRAWERS: Mapping[str, tuple[Callable[[np.random.Generator, np.ndarray], _Drawing], float]] = {
    "ball": (_draw_ball, 180),
    "bottle": (_draw_bottle, 180),
    "box": (_draw_box, 25),
    "cone": (_draw_cone, 60),
    "ring": (_draw_ring, 180),
    "star": (_draw_star, 180),
}
CLASS_NAMES = tuple(_DRAWERS)
"""Class ids count in this order, from 0."""


def object_patch(class_id: int, max_side: int, min_side: int, rng: np.random.Generator) -> Patch:
    """A random object whose longer side is log-uniform up to ``max_side`` pixels and whose shorter side is at least ``min_side``."""
    draw, turn = _DRAWERS[CLASS_NAMES[class_id]]
    angle, toward_light = math.radians(rng.uniform(-turn, turn)), rng.uniform(0, 2 * math.pi)
    squash = rng.uniform(0.93, 1.0) if draw is _draw_ball else rng.uniform(0.75, 1.1)
    shear = 0.0 if draw is _draw_ball else rng.uniform(-0.12, 0.12)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    light = rotation.T @ np.array([math.cos(toward_light), math.sin(toward_light)])
    drawing = draw(rng, light)
    matrix = rotation @ np.array([[1.0, shear], [0.0, squash]])
    spans = np.ptp(np.vstack(drawing.outline) @ matrix.T, axis=0)
    # A pointed end fills less than half of its last pixel, and the random offset between pixels may cost one more.
    shortest, longest = min_side * float(spans.max() / spans.min()) + 1.5, max_side - 1
    side = math.exp(rng.uniform(math.log(min(shortest, longest)), math.log(longest)))
    return _rasterise(drawing, matrix, side, rng)


def clutter_patch(rng: np.random.Generator, image_size: Size) -> Patch:
    """A bar, a leaf or a shard, which hides other things and belongs to no class."""
    base, other = _colors(rng)
    kind = rng.integers(3)
    length = float(rng.uniform(0.06, 0.6)) * min(image_size)
    if kind == 0:
        half = rng.uniform(0.02, 0.07)
        drawing = _Drawing(base, [_rectangle(-1, -half, 1, half)], shade=[(_rectangle(-1, 0, 1, half), 85)])
        length *= 2
    elif kind == 1:
        edge = np.linspace(0, math.pi, 14)
        bulge = rng.uniform(0.2, 0.4) * np.sin(edge)
        spine = -np.cos(edge)
        outline = np.vstack([np.stack([spine, bulge], 1), np.stack([spine, -bulge], 1)[::-1]])
        vein = _rectangle(-1, -0.02, 0.9, 0.02)
        leaf = (int(rng.integers(40, 150)), int(rng.integers(70, 160)), int(rng.integers(20, 70)))
        drawing = _Drawing(leaf, [outline], paint=[(vein, other)], shade=[(outline * (1, 0.5) + (0, 0.1), 100)])
    else:
        angles = np.sort(rng.uniform(0, 2 * math.pi, 3)) + np.arange(3) * 0.3
        outline = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.4, 1.0, (3, 1))
        drawing = _Drawing(base, [outline])
        length *= 0.5
    angle = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return _rasterise(drawing, rotation, max(length, 6.0), rng)


def _rasterise(drawing: _Drawing, matrix: np.ndarray, side: float, rng: np.random.Generator) -> Patch:
    """Draw at two to four times the size and average down, so that edges are as soft as a lens makes them."""
    factor = 4 if side <= 96 else 2
    outline = np.vstack(drawing.outline) @ matrix.T
    low, spans = outline.min(axis=0), np.ptp(outline, axis=0)
    scale = side / float(spans.max())
    width, height = (math.ceil(span * scale) + 2 for span in spans)
    offset = rng.uniform(0.5, 1.5, 2)
    canvas = (width * factor, height * factor)

    def place(polygon: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (((polygon @ matrix.T - low) * scale + offset) * factor).tolist()]

    mask, shade, paint = (
        Image.new("L", canvas),
        Image.new("L", canvas, _NEUTRAL),
        Image.new("RGB", canvas, drawing.base),
    )
    for layer, polygons in (
        (mask, [(polygon, 255) for polygon in drawing.outline] + [(polygon, 0) for polygon in drawing.holes]),
        (paint, drawing.paint),
        (shade, drawing.shade),
    ):
        brush = ImageDraw.Draw(layer)
        for polygon, value in polygons:
            brush.polygon(place(polygon), fill=value)
    alpha = np.asarray(mask.reduce(factor), np.float32) / 255
    light = np.asarray(shade.reduce(factor), np.float32) / _NEUTRAL * _surface(rng, height, width)
    rgb = np.clip(np.asarray(paint.reduce(factor), np.float32) * light[..., None], 0, 255)
    return Patch(rgb, alpha, alpha > 0.5)


def _surface(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random factors on the brightness, around 1: a gradient times stains, float32 [height, width]."""
    slope_x, slope_y = rng.uniform(-0.25, 0.25, 2)
    gradient = 1 + slope_x * np.linspace(-1, 1, width)[None, :] + slope_y * np.linspace(-1, 1, height)[:, None]
    cells = int(rng.integers(3, 24))
    stains = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    stains = np.asarray(stains.resize((width, height), Image.Resampling.BICUBIC))
    return (gradient * (1 + rng.uniform(0, 0.12) * stains)).astype(np.float32)


def _colors(rng: np.random.Generator) -> tuple[_Color, _Color]:
    """Two colours; the second is lighter or darker, so that a pattern shows."""
    base = rng.uniform(40, 230, 3)
    if rng.random() < 0.25:
        base[:] = base.mean()
    other = rng.uniform(170, 250, 3) if base.mean() < 130 else rng.uniform(15, 90, 3)
    return (int(base[0]), int(base[1]), int(base[2])), (int(other[0]), int(other[1]), int(other[2]))


def _circle(radius: float, center: Sequence[float] | np.ndarray = (0.0, 0.0)) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + center


def _rectangle(x_min: float, y_min: float, x_max: float, y_max: float) -> np.ndarray:
    return np.array([[x_min, y_min], [x_max, y_min], [x_max, y_max], [x_min, y_max]])


def _mirrored(right: np.ndarray) -> np.ndarray:
    """The outline of something symmetric about x = 0, from its right side, top to bottom."""
    return np.vstack([right, right[::-1] * (-1, 1)])


def _round_shading(right: np.ndarray, light: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """The shading of a body of revolution by Lambert's law, in strips from the left edge to the right."""
    edges = np.sin(np.linspace(-math.pi / 2, math.pi / 2, 13))
    strips = []
    for left_edge, right_edge in itertools.pairwise(edges):
        middle = (left_edge + right_edge) / 2
        facing = middle * 0.7 * float(light[0]) + math.sqrt(1 - middle**2) * 0.7
        strip = np.vstack([right * (left_edge, 1), (right * (right_edge, 1))[::-1]])
        strips.append((strip, round(65 + 115 * max(0.0, facing))))
    return strips
