"""Damage of pictures: what a hole covers, that noise is Gaussian, and how often each is drawn."""

import statistics

import numpy as np
import pytest
from scipy import stats

from zoo.data.damage import Hole, Noise, damaged, draw_damage, normal_levels, touched
from zoo.data.draw import Draw


def test_damage_is_half_holes_and_half_noise():
    draw = Draw(5)
    found = [draw_damage(draw) for _ in range(1200)]
    holes = [each for each in found if isinstance(each, Hole)]
    noises = [each for each in found if isinstance(each, Noise)]
    assert len(holes) / len(found) == pytest.approx(0.5, abs=0.05)
    assert np.mean([hole.ellipse for hole in holes]) == pytest.approx(0.5, abs=0.07)
    covers = np.array([hole.mask().mean() for hole in holes])
    assert (covers.min(), covers.max()) == (pytest.approx(0.05, abs=0.01), pytest.approx(0.3, abs=0.01))
    assert 0.05 <= covers.min() <= covers.max() <= 0.3
    for ellipse in (True, False):
        assert covers[[hole.ellipse == ellipse for hole in holes]].mean() == pytest.approx(0.175, abs=0.015)
    reached = np.mean([hole.mask() for hole in holes], axis=0)
    assert reached.any(axis=0).all()
    assert reached.any(axis=1).all()
    assert reached.max() < 0.5  # no pixel is nearly always lost
    sigmas = [noise.sigma for noise in noises]
    assert (min(sigmas), max(sigmas)) == (5, 40)
    assert np.mean(sigmas) == pytest.approx(22.5, abs=1.5)
    assert len({noise.seed for noise in noises}) == len(noises)


def test_holes_by_hand():
    assert np.argwhere(Hole(3, 7, 2, 1, ellipse=False).mask()).tolist() == [[3, 7], [4, 7]]
    small = Hole(0, 1, 4, 4, ellipse=True).mask()[:5, :6].astype(int).tolist()
    assert small == [
        [0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    box = Hole(5, 2, 11, 20, ellipse=False)
    np.testing.assert_array_equal(box.mask(64), box.mask().repeat(2, 0).repeat(2, 1))
    assert Hole(5, 2, 11, 20, ellipse=True).mask(64).sum() == pytest.approx(np.pi * 11 * 20, rel=0.02)
    image = np.full((32, 32, 3), 9, np.uint8)
    assert damaged(image, box).sum() == 9 * 3 * (32 * 32 - 11 * 20)
    assert touched(box.mask(), (4, 4)).tolist() == [[True] * 3 + [False]] * 2 + [[False] * 4] * 2


def test_noise_is_gaussian_and_the_same_everywhere():
    gray = np.full((64, 64, 3), 128, np.uint8)
    noise = (damaged(gray, Noise(20, seed=1)).astype(int) - 128).ravel()
    assert noise.mean() == pytest.approx(0, abs=0.6)
    assert noise.std() == pytest.approx(20, rel=0.03)
    assert stats.kstest(noise + np.random.default_rng(0).uniform(-0.5, 0.5, noise.size), "norm", (0, 20)).pvalue > 0.01
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.03
    np.testing.assert_allclose(normal_levels() / 65536, stats.norm.ppf((np.arange(4096) + 0.5) / 4096), atol=1e-5)
    # From the raw bits, four levels a word, lowest first
    words = [int(word) for word in np.random.Philox(1).random_raw(2)]
    levels = [word >> shift & 4095 for word in words for shift in (0, 16, 32, 48)]
    exact = [128 + 20 * statistics.NormalDist().inv_cdf((level + 0.5) / 4096) for level in levels]
    assert (noise[:8] + 128).tolist() == [round(value) for value in exact]
    assert (damaged(gray, Noise(20, seed=3)) != damaged(gray, Noise(20, seed=1))).mean() > 0.9
    for level in (0, 255):
        edge = damaged(np.full((32, 32, 3), level, np.uint8), Noise(40, seed=2))
        assert (edge == level).mean() == pytest.approx(0.5, abs=0.03)
        assert np.abs(edge.astype(int) - level).max() > 100
