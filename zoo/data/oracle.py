"""Reads a picture back into its scene by comparing every quarter with every thing that could lie there.

No learned model: the templates are the drawings themselves, and the nearest one in squared error wins, which under
Gaussian noise is the likeliest. So drawings of a network are judged exactly.
"""

import functools
import itertools

import numpy as np

from zoo.data.drawing import RGB, blend, check_size, drawn, window
from zoo.data.scenes import BACKGROUNDS, FIELDS, REACH, Scene, Thing
from zoo.errors import ZooError

QUARTER = 16  # pixels of 32


def read_scenes(images: np.ndarray, chunk: int = 256) -> list[tuple[Scene | None, float]]:
    """For each image uint8 [N, S, S, 3] the nearest scene, None where that is empty, and how far it is.

    The distance is the root of the mean squared difference of pixels, in units of 1/255. Pictures of 64 pixels are
    compared after averaging 2 × 2. Raises ZooError for another shape or dtype.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (images.shape[1], images.shape[1], 3) or images.dtype != np.uint8:
        raise ZooError(f"images are {images.dtype}{list(images.shape)}; give uint8 [N, size, size, 3]")
    size = images.shape[1]
    check_size(size)
    return [found for first in range(0, len(images), chunk) for found in _read(images[first : first + chunk], size)]


def read_scene(image: np.ndarray) -> Scene | None:
    """The nearest scene of one image uint8 [S, S, 3]; None where that has no thing."""
    return read_scenes(np.asarray(image)[None])[0][0]


def _read(images: np.ndarray, size: int) -> list[tuple[Scene | None, float]]:
    patches = quarters(_averaged(images, size)).reshape(-1, QUARTER * QUARTER * 3)  # [4 N, 768]
    lengths = np.square(patches).sum(-1, keepdims=True)
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for background in BACKGROUNDS:
        rows, squares = templates(background, size)
        errors = lengths + squares[None] - 2 * patches @ rows.T  # [4 N, templates]
        nearest = errors.argmin(-1)
        best.append((nearest, np.maximum(errors[np.arange(len(errors)), nearest], 0)))
    totals = np.stack([errors.reshape(-1, 4).sum(-1) for _, errors in best])  # [backgrounds, N]
    choice = totals.argmin(0)
    found: list[tuple[Scene | None, float]] = []
    for i, which in enumerate(choice):
        picked = best[which][0][4 * i : 4 * i + 4]
        things = tuple(thing for quarter, k in enumerate(picked) for thing in _thing(int(k), quarter))
        distance = float(np.sqrt(totals[which, i] / (4 * patches.shape[1])))
        found.append((Scene(BACKGROUNDS[which], things) if things else None, distance))
    return found


@functools.cache
def candidates() -> tuple[Thing | None, ...]:
    """All that may lie in a quarter, nothing first."""
    found: list[Thing | None] = [None]
    for values in itertools.product(*FIELDS.values()):
        what = dict(zip(FIELDS, values, strict=True))
        steps = range(-REACH[what["size"]], REACH[what["size"]] + 1)
        found += [Thing(**what, quarter=0, dx=dx, dy=dy) for dx, dy in itertools.product(steps, steps)]
    return tuple(found)


@functools.cache
def templates(background: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The quarter as each of the candidates makes it, float32 [K, 768], and its squared length [K]."""
    unit = size // 32
    side = QUARTER * unit
    colour = np.array(RGB[background])
    rows = np.empty((len(candidates()), QUARTER * QUARTER * 3), np.float32)
    for k, thing in enumerate(candidates()):
        patch = np.empty((side, side, 3), np.uint8)
        patch[:] = colour
        if thing:
            drawing = drawn(thing.shape, thing.colour, thing.size, thing.texture, thing.shading, size)
            patch[window(thing, size)] = blend(*drawing, colour)
        rows[k] = _averaged(patch[None], size).reshape(-1)
    return rows, np.square(rows).sum(-1)


def quarters(images: np.ndarray) -> np.ndarray:
    """Images [N, 32, 32, 3] as their quarters [N, 4, 16, 16, 3], in the order of PLACES."""
    n = len(images)
    parts = images.reshape(n, 2, QUARTER, 2, QUARTER, 3).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(n, 4, QUARTER, QUARTER, 3)


def _averaged(images: np.ndarray, size: int) -> np.ndarray:
    """float32 at 16 pixels a quarter, whatever the size."""
    unit = size // 32
    n, height, width, _ = images.shape
    parts = images.reshape(n, height // unit, unit, width // unit, unit, 3)
    return parts.mean(axis=(2, 4), dtype=np.float32)


def _thing(candidate: int, quarter: int) -> list[Thing]:
    thing = candidates()[candidate]
    if thing is None:
        return []
    return [Thing(**{name: getattr(thing, name) for name in FIELDS}, quarter=quarter, dx=thing.dx, dy=thing.dy)]
