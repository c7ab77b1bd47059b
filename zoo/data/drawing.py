"""Pictures of scenes, by Pillow: drawn four times as large with one colour a pixel, then averaged.

The same scene is the same bytes on every machine: shapes are polygons and ellipses at whole coordinates, and averaging
is of integers.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from zoo.data.scenes import Scene, Thing
from zoo.errors import ZooError

RGB = {
    "red": (225, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 45),
    "green": (35, 165, 60),
    "blue": (45, 95, 235),
    "purple": (135, 45, 190),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
    "black": (16, 16, 16),
    "gray": (112, 112, 112),
    "brown": (92, 60, 36),
    "navy": (18, 26, 84),
}
SIZES = (32, 64)
DIAMETER = {"small": 9, "large": 14}  # pixels of 32
FINE = 4  # times as large while it is drawn
DARK = 0.4  # how bright spots and stripes are beside the colour that they lie on
LIGHT = (1.15, 0.55)  # brightness of a shaded thing at its top left and its bottom right


def draw_scene(scene: Scene, size: int = 32) -> np.ndarray:
    """The picture uint8 [size, size, 3] of a scene. Raises ZooError for a size other than 32 or 64."""
    check_size(size)
    image = np.empty((size, size, 3), np.uint8)
    image[:] = RGB[scene.background]
    for thing in scene.things:
        rows, columns = window(thing, size)
        colours, cover = drawn(thing.shape, thing.colour, thing.size, thing.texture, thing.shading, size)
        image[rows, columns] = blend(colours, cover, np.array(RGB[scene.background]))
    return image


def masks(scene: Scene, size: int = 32) -> np.ndarray:
    """Which pixels each thing covers at least half of, bool [things, size, size]."""
    check_size(size)
    found = np.zeros((len(scene.things), size, size), bool)
    for i, thing in enumerate(scene.things):
        _, cover = drawn(thing.shape, thing.colour, thing.size, thing.texture, thing.shading, size)
        found[i][window(thing, size)] = cover >= FINE**2 / 2
    return found


def boxes(scene: Scene, size: int = 32) -> np.ndarray:
    """The tightest box around each thing's mask, int32 [things, 4]: top, left, bottom, right, the last two outside."""
    found = []
    for mask in masks(scene, size):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        found.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    return np.array(found, np.int32)


def check_size(size: int) -> None:
    if size not in SIZES:
        raise ZooError(f"scenes are drawn at {' or '.join(map(str, SIZES))} pixels, not at {size}")


def window(thing: Thing, size: int) -> tuple[slice, slice]:
    """The rows and columns of the square that a thing is drawn in."""
    unit, side = size // 32, DIAMETER[thing.size] * size // 32
    starts = (
        (16 * place + 8) * unit + off * unit - side // 2
        for place, off in ((thing.row, thing.dy), (thing.column, thing.dx))
    )
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns


def blend(colours: np.ndarray, cover: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Summed colours [.., 3] of the covered part of each pixel, and the background in the rest: uint8."""
    whole = FINE**2
    total = colours + (whole - cover)[..., None] * background
    return ((2 * total + whole) // (2 * whole)).astype(np.uint8)


@functools.cache
def drawn(shape: str, colour: str, size: str, texture: str, shading: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing in its square: sums of the colours int64 [S, S, 3], and how many of the FINE² parts it covers [S, S]."""
    side = DIAMETER[size] * pixels // 32
    fine = side * FINE
    inside = np.asarray(outline(shape, fine)) > 0
    dark = np.asarray(pattern(texture, fine, pixels // 32)) > 0
    y, x = np.mgrid[:fine, :fine]
    light = np.ones((fine, fine))
    if shading == "shaded":
        light = LIGHT[0] + (LIGHT[1] - LIGHT[0]) * (x + y) / (2 * fine - 2)
    light = np.where(dark, DARK, 1.0) * light
    colours = np.clip(np.round(np.array(RGB[colour]) * light[..., None]), 0, 255).astype(np.int64)
    colours = np.where(inside[..., None], colours, 0)
    parts = (side, FINE, side, FINE)
    found = colours.reshape(*parts, 3).sum(axis=(1, 3)), inside.astype(np.int64).reshape(parts).sum(axis=(1, 3))
    for array in found:
        array.flags.writeable = False
    return found


def outline(shape: str, fine: int) -> Image.Image:
    """The filled shape in a square of `fine` pixels, gray: 255 inside."""
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    last = fine - 1
    at = lambda points: [(round(x * last), round(y * last)) for x, y in points]
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            edge = round(0.28 * last)
            draw.ellipse((edge, edge, last - edge, last - edge), fill=0)
    elif shape == "square":
        draw.rectangle((round(0.06 * last), round(0.06 * last), round(0.94 * last), round(0.94 * last)), fill=255)
    elif shape == "heart":
        bow = round(0.54 * last)
        draw.ellipse((0, 0, bow, bow), fill=255)
        draw.ellipse((last - bow, 0, last, bow), fill=255)
        draw.polygon(at([(0.06, 0.42), (0.5, 0.2), (0.94, 0.42), (0.5, 1.0)]), fill=255)
    else:
        draw.polygon(at(CORNERS[shape]), fill=255)
    return image


def pattern(texture: str, fine: int, unit: int) -> Image.Image:
    """Where a texture is dark, in a square of `fine` pixels, gray: 255 there."""
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    step = 4 * unit * FINE  # of 4 pixels of 32
    if texture == "striped":
        for start in range(-fine, 2 * fine, step):
            half = step // 2
            draw.polygon([(start, 0), (start + half, 0), (start + half - fine, fine), (start - fine, fine)], fill=255)
    elif texture == "spotted":
        radius, middle = 1.25 * unit * FINE, fine / 2
        reach = range(-4, 5)
        for i in reach:
            for j in reach:
                x, y = middle + (i + 0.5 * (j % 2)) * step, middle + j * step * 0.75
                draw.ellipse((round(x - radius), round(y - radius), round(x + radius), round(y + radius)), fill=255)
    return image


def _star(points: int, inner: float) -> Sequence[tuple[float, float]]:
    angles = [math.pi * (i / points - 0.5) for i in range(2 * points)]
    radii = [0.5 if i % 2 == 0 else inner for i in range(2 * points)]
    return [(0.5 + r * math.cos(a), 0.52 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


CORNERS = {
    "triangle": [(0.5, 0.0), (1.0, 0.95), (0.0, 0.95)],
    "star": _star(5, 0.2),
    "diamond": [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)],
    "cross": [
        (0.33, 0.0), (0.67, 0.0), (0.67, 0.33), (1.0, 0.33), (1.0, 0.67), (0.67, 0.67),
        (0.67, 1.0), (0.33, 1.0), (0.33, 0.67), (0.0, 0.67), (0.0, 0.33), (0.33, 0.33),
    ],
}  # fmt: skip
