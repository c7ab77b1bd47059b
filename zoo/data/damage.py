"""Damaged pictures to learn mending from: holes, and noise that is the same bytes on every machine.

Noise comes from raw bits through a table of whole numbers, since `Generator.normal` may change between versions of
NumPy, and sines and logarithms differ between machines in their last bit.
"""

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np

from zoo.data.draw import Draw
from zoo.errors import ZooError

EMPTY = 0  # what the pixels of a hole become, in every channel
COVER = (50, 300)  # least and most of the picture that a hole covers, in thousandths
SIGMA = (5, 40)  # least and most noise, of 255
LONGEST = 3  # sides of a hole's box are at most so many times as long as one another
LEVELS = 4096  # of noise, each as likely
ONE = 2**16  # noise of one standard deviation


@dataclass(frozen=True)
class Hole:
    """A box, or the ellipse in it, where a picture is lost; in pixels of 32."""

    top: int
    left: int
    height: int
    width: int
    ellipse: bool

    def mask(self, size: int = 32) -> np.ndarray:
        """The pixels that are lost, bool [size, size]."""
        unit = size // 32
        height, width = unit * self.height, unit * self.width
        # Twice the distance of each pixel's middle from the hole's, so that it is whole
        y = np.abs(2 * np.arange(size) + 1 - 2 * unit * self.top - height)[:, None]
        x = np.abs(2 * np.arange(size) + 1 - 2 * unit * self.left - width)
        if self.ellipse:
            return (y * width) ** 2 + (x * height) ** 2 <= (height * width) ** 2
        return (y < height) & (x < width)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of `sigma` / 255 in each channel of each pixel."""

    sigma: int
    seed: int


def draw_damage(draw: Draw) -> Hole | Noise:
    """A hole of a random share of the picture (COVER), half of them ellipses, or noise (SIGMA), each as likely."""
    if draw.below(2):
        return Noise(SIGMA[0] + draw.below(SIGMA[1] - SIGMA[0] + 1), draw.below(2**32))
    ellipse = draw.below(2) == 1
    while True:
        area = (COVER[0] + draw.below(COVER[1] - COVER[0] + 1)) * 32**2 // 1000
        box = round(area * 4 / math.pi) if ellipse else area
        least, most = math.isqrt(box // LONGEST), min(32, math.isqrt(LONGEST * box))
        height = least + draw.below(most - least + 1)
        width = round(box / height)
        if width <= 32:
            hole = Hole(draw.below(33 - height), draw.below(33 - width), height, width, ellipse)
            if COVER[0] <= 1000 * hole.mask().mean() <= COVER[1]:
                return hole


def damaged(image: np.ndarray, damage: Hole | Noise) -> np.ndarray:
    """The picture uint8 [S, S, 3] with a hole in it, or with noise, rounded and clipped to 0 to 255."""
    if isinstance(damage, Hole):
        return np.where(damage.mask(len(image))[..., None], np.uint8(EMPTY), image)
    bits = np.random.Philox(damage.seed).random_raw(-(-image.size // 4))
    levels = (bits[:, None] >> np.arange(0, 64, 16, dtype=np.uint64)) % np.uint64(LEVELS)
    noise = damage.sigma * normal_levels()[levels.ravel()[: image.size].reshape(image.shape)]
    return np.clip((image.astype(np.int64) * ONE + noise + ONE // 2) // ONE, 0, 255).astype(np.uint8)


@functools.cache
def normal_levels() -> np.ndarray:
    """The quantiles in the middles of LEVELS equal parts of the standard normal distribution, times ONE: int64."""
    normal = statistics.NormalDist()
    return np.array([round(ONE * normal.inv_cdf((i + 0.5) / LEVELS)) for i in range(LEVELS)], np.int64)


def touched(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The cells of a grid (rows, columns) of which any pixel is in the mask bool [H, W]: bool [rows, columns].

    Raises ZooError for a mask that the grid does not divide.
    """
    (height, width), (rows, columns) = mask.shape, grid
    if height % rows or width % columns:
        raise ZooError(f"{height}×{width} pixels do not divide into {rows}×{columns} cells; give another grid")
    return mask.reshape(rows, height // rows, columns, width // columns).max(axis=(1, 3))
