import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.generate.traversal import mixture_draws, most_active, sheet, traverse


def test_most_active_by_hand():
    # KL of the dimensions: mean² / 2 = 0.5, 0, 2; and (4 - 1 - log 4) / 2 = 0.81 by its variance
    mean, log_var = np.array([[1.0, 0, 2, 0], [-1, 0, 2, 0]]), np.array([[0, 0, 0, np.log(4)]] * 2)
    codes = np.stack([mean, log_var], axis=1).astype(np.float32)
    np.testing.assert_array_equal(most_active(codes, 3), [2, 3, 0])
    assert len(most_active(codes, 9)) == 4


def test_traverse_by_hand():
    walk = traverse(np.array([7.0, 8.0, 9.0]), np.array([2, 0]), 3, span=2.0)
    np.testing.assert_array_equal(walk, [[7, 8, -2], [7, 8, 0], [7, 8, 2], [-2, 8, 9], [0, 8, 9], [2, 8, 9]])
    assert walk.dtype == np.float32


def test_mixture_draws_lie_where_the_codes_do():
    rng = np.random.default_rng(0)
    centre = np.where(rng.random((4000, 1)) < 0.25, -5.0, 5.0) * np.array([[1.0, 0.5]])
    codes = np.stack([centre, np.full_like(centre, np.log(0.09))], axis=1).astype(np.float32)
    draws = mixture_draws(codes, 2, 2000, seed=0)
    left = draws[:, 0] < 0
    assert left.mean() == pytest.approx(0.25, abs=0.04)
    for part, x in ((left, -5.0), (~left, 5.0)):
        np.testing.assert_allclose(draws[part].mean(0), [x, x / 2], atol=0.06)
        np.testing.assert_allclose(draws[part].std(0), 0.3, atol=0.03)  # the posteriors' own width
    assert 0.15 < left[:200].mean() < 0.35  # not sorted by component
    np.testing.assert_array_equal(draws, mixture_draws(codes, 2, 2000, seed=0))
    assert np.any(draws != mixture_draws(codes, 2, 2000, seed=1))
    with pytest.raises(ZooError, match="5 components needs as many images; there are 4"):
        mixture_draws(codes[:4], 5, 1, seed=0)


def test_each_group_starts_a_row():
    groups = [np.zeros((3, 28, 28, 1), np.float32), np.full((1, 28, 28, 1), 0.5, np.float32)]
    picture = sheet(groups, columns=2)  # zoomed twice, gaps of 2
    assert picture.shape == (3 * 58 + 2, 2 * 58 + 2, 3)
    corners = picture[2::58, 2::58, 0]
    np.testing.assert_array_equal(corners, [[0, 0], [0, 255], [128, 255]])
