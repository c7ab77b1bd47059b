"""Distances between sets of features: closed forms, other libraries, and streams."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from zoo.errors import ZooError
from zoo.metrics import distribution
from zoo.metrics.distribution import (
    Moments,
    as_features,
    class_score,
    density_coverage,
    frechet_distance,
    kernel_distance,
    kid,
    mode_count,
    precision_recall,
    real_floor,
)

GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "metrics.safetensors")
REAL, FAKE = GOLDEN["real"], GOLDEN["fake"]


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def with_moments(mean, covariance):
    """A set whose sample mean and unbiased covariance are exactly these."""
    d = len(mean)
    points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt(d - 0.5)  # their covariance is the identity
    return np.asarray(mean) + points @ np.linalg.cholesky(covariance).T


def line(*values):
    return np.array(values, np.float64)[:, None]


def test_moments_are_those_of_numpy():
    moments = Moments().add(REAL)
    assert moments.count == 150
    np.testing.assert_allclose(moments.mean, REAL.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(REAL.astype(float), rowvar=False), rtol=1e-11)


def test_streaming_equals_all_at_once():
    """Batches of uneven sizes, at a level whose squares would leave a float64 few digits."""
    high = REAL.astype(np.float64) + 1e6
    streamed = Moments()
    for part in np.split(high, [1, 2, 40, 149]):
        streamed.add(part)
    assert streamed.count == 150
    np.testing.assert_allclose(streamed.mean, high.mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(high, rowvar=False), rtol=1e-8)
    other = Moments().add(FAKE.astype(np.float64) + 1e6)
    assert frechet_distance(streamed, other) == pytest.approx(frechet_distance(REAL, FAKE), rel=1e-6)


def test_frechet_distance_of_diagonal_gaussians():
    """|μ₁ - μ₂|² + Σ(σ₁ - σ₂)²."""
    one = with_moments([1.0, 2.0, 3.0], np.diag([1.0, 4.0, 9.0]))
    two = with_moments([1.0, 0.0, 4.0], np.diag([4.0, 4.0, 0.25]))
    assert frechet_distance(one, two) == pytest.approx((0 + 4 + 1) + (1 + 0 + 6.25), rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """For two by two, tr(M^½) is (tr M + 2 det(M)^½)^½ with M = S₁ S₂."""
    s1, s2 = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = s1 @ s2
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 9 + np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet_distance(with_moments([0, 0], s1), with_moments([0, 3], s2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_that_of_torch_fidelity_and_clean_fid():
    np.testing.assert_allclose(GOLDEN["frechet"], frechet_distance(REAL, FAKE), rtol=1e-9)
    assert GOLDEN["frechet"][0] > 0.1


def test_frechet_distance_of_equal_sets_and_singular_ones():
    assert frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-9)
    few = REAL[:4]  # 4 pictures in 6 dimensions
    assert 0 <= frechet_distance(few, few[::-1]) < 1e-6
    assert frechet_distance(few, few + 2.0) == pytest.approx(6 * 4, rel=1e-6)


def test_live_frechet_distance():
    library = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (np.float64(REAL), np.float64(FAKE))]
    expected = library.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(REAL, FAKE) == pytest.approx(expected, rel=1e-9)


def test_live_clean_fid():
    library = pytest.importorskip("cleanfid.fid")
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (np.float64(REAL), np.float64(FAKE))]
    expected = library.frechet_distance(*moments[0], *moments[1])
    assert frechet_distance(REAL, FAKE) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_by_hand():
    """One feature, k(x, y) = (xy + 1)³: within 0, 1 the pair gives 1; within 1, 2 it gives 27; across 1, 1, 8, 27."""
    assert kernel_distance(line(0, 1), line(1, 2)) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    # Sets of different sizes: k over pairs of 0, 1, 2 is 1, 1 and 27, across 1, 1, 1, 8, 1 and 27.
    assert kernel_distance(line(0, 1, 2), line(0, 1)) == pytest.approx(29 / 3 + 1 - 2 * (3 + 1 + 8 + 27) / 6)


def test_kernel_distance_is_that_of_torch_fidelity(monkeypatch):
    assert kernel_distance(REAL, FAKE) == pytest.approx(float(GOLDEN["mmd2"]), rel=1e-10)
    monkeypatch.setattr(distribution, "ROWS", 7)  # blocks that do not divide the sets
    assert kernel_distance(REAL, FAKE) == pytest.approx(float(GOLDEN["mmd2"]), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Over many draws of one distribution the mean is zero, within its own error; the biased one is not."""
    rng = np.random.default_rng(0)
    draws = [kernel_distance(*rng.normal(size=(2, 10, 2))) for _ in range(2000)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(2000) < 0.15
    assert min(draws) < 0


def test_kid_is_the_mean_over_subsets():
    mean, spread = kid(REAL, FAKE, subsets=60, size=100)
    assert mean == pytest.approx(float(GOLDEN["mmd2"]), abs=3 * spread / np.sqrt(60))
    assert spread > 0
    assert kid(REAL, FAKE, subsets=2, size=150)[1] == pytest.approx(0, abs=1e-9)
    assert kid(REAL, FAKE, 3, 50) == kid(REAL, FAKE, 3, 50) != kid(REAL, FAKE, 3, 50, seed=1)


def test_precision_and_recall_by_hand():
    """Real 0, 1, 3, 7 have balls of radius 1, 1, 2, 4 (k = 1); fakes 2, 12, 12.5, 20 of 10, 0.5, 0.5 and 7.5."""
    real, fake = line(0, 1, 3, 7), line(2, 12, 12.5, 20)
    assert precision_recall(real, fake, k=1) == (1 / 4, 1.0)
    assert precision_recall(real, line(1.5, 2.5, 3.5, 40), k=1) == (3 / 4, 1 / 2 + 1 / 4)
    assert precision_recall(fake, real, k=1) == (1.0, 1 / 4)


def test_density_and_coverage_by_hand():
    """Real balls of k = 1: 0 ± 1, 1 ± 1, 3 ± 2, 7 ± 4. The fake 2 lies in those of 1 and 3; 5 in those of 3 and 7."""
    real = line(0, 1, 3, 7)
    assert density_coverage(real, line(2, 5), k=1) == (2.0, 3 / 4)
    assert density_coverage(real, line(20, 30), k=1) == (0.0, 0.0)
    # k = 2: radii 3, 2, 3 and 6; 3.5 lies in the balls of 3 and 7, and -1 in those of 0 and 1.
    assert density_coverage(real, line(3.5, -1, 50), k=2) == (pytest.approx(4 / 2 / 3), 1.0)


def test_neighbours_are_those_of_prdc(monkeypatch):
    for rows in (1024, 7):
        monkeypatch.setattr(distribution, "ROWS", rows)
        np.testing.assert_allclose(precision_recall(REAL, FAKE, 3), GOLDEN["precision_recall"], rtol=1e-12)
        np.testing.assert_allclose(density_coverage(REAL, FAKE, 5), GOLDEN["density_coverage"], rtol=1e-12)


def test_live_prdc():
    library = pytest.importorskip("prdc")
    expected = library.compute_prdc(REAL[:90], FAKE[:120], 4)  # sets of different sizes
    precision, recall = precision_recall(REAL[:90], FAKE[:120], 4)
    density, coverage = density_coverage(REAL[:90], FAKE[:120], 4)
    result = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    assert result == pytest.approx(expected, rel=1e-12)


def test_a_dropped_mode_lowers_recall_and_coverage():
    rng = np.random.default_rng(1)
    real, full, part = (rng.normal(size=(300, 2)) + 20 * rng.integers(n, size=(300, 1)) for n in (4, 4, 3))
    assert precision_recall(real, full)[1] > 0.9
    assert 0.6 < precision_recall(real, part)[1] < 0.8
    assert density_coverage(real, part)[1] < density_coverage(real, full)[1] - 0.15
    assert precision_recall(real, part)[0] > 0.9


def test_class_score_by_hand():
    """Sure and even over 4 classes: 4. The same answer everywhere: 1. Two sure ones of a half each: 2."""
    assert class_score(np.eye(4)) == pytest.approx(4)
    assert class_score(np.tile([[0.7, 0.2, 0.1]], (5, 1))) == pytest.approx(1)
    assert class_score(np.eye(4)[[0, 0, 1, 1]]) == pytest.approx(2)
    assert class_score(np.eye(4)[[0, 0, 1, 1]], splits=2) == pytest.approx(1)


def test_class_score_is_the_inception_score_of_torch_fidelity():
    p = softmax(GOLDEN["logits"])
    np.testing.assert_allclose([class_score(p), class_score(p, 10)], GOLDEN["inception_score"], rtol=1e-12)


def test_modes_by_hand():
    assert mode_count(np.arange(10)) == (10, pytest.approx(0))
    assert mode_count(np.zeros(7, int)) == (1, pytest.approx(np.log(10)))
    # Shares 3/4 and 1/4 of two classes: ln 2 + (3 ln 3/4 + ln 1/4) / 4.
    expected = np.log(2) + (3 * np.log(3 / 4) + np.log(1 / 4)) / 4
    assert mode_count(np.array([0, 0, 0, 1]), classes=2) == (2, pytest.approx(expected))


def test_modes_of_stacked_digits():
    every = np.stack(np.meshgrid(*[np.arange(10)] * 3), -1).reshape(-1, 3)
    assert mode_count(every) == (1000, pytest.approx(0))
    assert mode_count(every[::2]) == (500, pytest.approx(np.log(2)))
    assert mode_count(np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3]], np.uint8))[0] == 2


def test_real_floor_is_a_distance_of_halves():
    halves = []

    def distance(a, b):
        halves.append((a, b))
        return frechet_distance(a, b)

    floor = real_floor(distance, REAL)
    assert floor == real_floor(frechet_distance, REAL) != real_floor(frechet_distance, REAL, seed=1)
    (a, b), rows = halves[0], sorted(map(tuple, REAL))
    assert len(a) == len(b) == 75
    assert sorted(map(tuple, np.concatenate([a, b]).astype(np.float32))) == rows
    assert not np.array_equal(np.concatenate([a, b]), REAL), "in a random order"
    assert 0 < floor < frechet_distance(REAL, REAL + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_features(np.zeros((2, 4, 4, 1), np.float32)), r"\[2, 4, 4, 1\]; give \[N, D\]"),
        (lambda: as_features(np.zeros((2, 4), np.uint8)), "features are uint8"),
        (lambda: as_features(np.full((2, 4), np.nan)), "infinite or no numbers"),
        (lambda: as_features(np.zeros((0, 4))), r"\[0, 4\]"),
        (lambda: Moments().add(REAL).add(REAL[:, :5]), "5 features after batches of 6"),
        (lambda: frechet_distance(REAL, FAKE[:1]), "covariance of 1 pictures"),
        (lambda: frechet_distance(REAL, FAKE[:, :5]), "6 features of the real pictures, 5"),
        (lambda: kernel_distance(REAL, FAKE[:, :5]), "6 features of the real pictures, 5"),
        (lambda: kid(REAL, FAKE), "at least 1000 of both"),
        (lambda: kid(REAL, FAKE, subsets=0, size=10), "0 subsets"),
        (lambda: precision_recall(REAL, FAKE[:3]), "3 others; give at least 4"),
        (lambda: density_coverage(REAL, FAKE, k=0), "k is 0"),
        (lambda: class_score(GOLDEN["logits"]), "softmax"),
        (lambda: class_score(np.eye(4), 5), "5 parts of 4"),
        (lambda: mode_count(np.array([0.5])), "class numbers"),
        (lambda: mode_count(np.array([3, 10])), "from 3 to 10; 10 classes are 0 to 9"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ZooError, match=message):
        call()
