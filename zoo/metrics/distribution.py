"""How near a set of pictures is to a set of real ones, judged on the features of a network.

Features are float [N, D], one row a picture; all sums are taken in float64 on the host. Every distance depends on the
network and, through its bias and its noise, on the number of pictures: compare only scores of one network and one
number, and print the `real_floor` beside them.
"""

from collections.abc import Callable, Iterator

import numpy as np

from zoo.errors import ZooError

ROWS = 1024  # of a table of distances that are held at once


class Moments:
    """Number, mean float64 [D] and covariance float64 [D, D] of features that come batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, features_nd: np.ndarray) -> "Moments":
        """Takes a batch in, and returns itself. Raises ZooError for what are no features, or of another width."""
        features = as_features(features_nd)
        n, mean = len(features), features.mean(0)
        scatter = (features - mean).T @ (features - mean)
        if not self.count:
            self.count, self.mean, self._scatter = n, mean, scatter
            return self
        if len(mean) != len(self.mean):
            raise ZooError(f"{len(mean)} features after batches of {len(self.mean)}; use one network for a set")
        # Two sets joined (Chan et al. 1979): no sum of squares, of which a high mean would eat the digits.
        step, total = mean - self.mean, self.count + n
        self._scatter += scatter + np.outer(step, step) * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total
        return self

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased one, divided by N - 1. Raises ZooError for fewer than two pictures."""
        if self.count < 2:
            raise ZooError(f"a covariance of {self.count} pictures; give at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(real: Moments | np.ndarray, fake: Moments | np.ndarray) -> float:
    """Squared Fréchet distance of the gaussians with the moments of two sets (Heusel et al. 2017, equation 6).

    |μ₁ - μ₂|² + tr(S₁) + tr(S₂) - 2 tr((S₁^½ S₂ S₁^½)^½), at least 0. Takes features float [N, D], or their
    `Moments`. It is biased upwards by about D² / 2N.
    """
    one, two = (x if isinstance(x, Moments) else Moments().add(x) for x in (real, fake))
    s1, s2 = one.covariance, two.covariance
    if s1.shape != s2.shape:
        raise ZooError(f"{len(s1)} features of the real pictures, {len(s2)} of the others; use one network for both")
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # Symmetric, so its eigenvalues are real; rounding may still put some below zero.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0)).sum()
    step = one.mean - two.mean
    return max(0.0, float(step @ step + np.trace(s1) + np.trace(s2) - 2 * cross))


def kernel_distance(real_nd: np.ndarray, fake_nd: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased: about 0, also below it, for equal
    distributions (Bińkowski et al. 2018, equation 4). Takes features float [N, D] of all pictures at once."""
    real, fake = _pair(real_nd, fake_nd, 2)

    def kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
        return sum(float(np.sum((block @ y.T / x.shape[1] + 1) ** 3)) for _, block in _blocks(x))

    def within(x: np.ndarray) -> float:
        same = np.sum((np.sum(x * x, axis=1) / x.shape[1] + 1) ** 3)
        return (kernel_sum(x, x) - float(same)) / (len(x) * (len(x) - 1))

    return within(real) + within(fake) - 2 * kernel_sum(real, fake) / (len(real) * len(fake))


def kid(
    real_nd: np.ndarray, fake_nd: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance as the literature reports it: its mean and standard deviation over random subsets.

    Each time `size` pictures of either set are drawn, without repetition within a subset. Raises ZooError where a set
    has fewer.
    """
    if subsets < 1 or size < 2:
        raise ZooError(f"{subsets} subsets of {size} pictures; give at least 1 of at least 2")
    real, fake = _pair(real_nd, fake_nd, size)
    draws = [
        kernel_distance(*(x[_order(len(x), seed, 2 * i + side)[:size]] for side, x in enumerate((real, fake))))
        for i in range(subsets)
    ]
    return float(np.mean(draws)), float(np.std(draws))


def precision_recall(real_nd: np.ndarray, fake_nd: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2), each in [0, 1].

    Precision is the share of fake features inside some real one's ball, which reaches to its k-th nearest real
    neighbour; recall is the same with the sides changed. Sets of one size compare best.
    """
    real, fake = _neighbours(real_nd, fake_nd, k)
    return float(np.mean(_balls(fake, real, k) > 0)), float(np.mean(_balls(real, fake, k) > 0))


def density_coverage(real_nd: np.ndarray, fake_nd: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5), which single outliers move less.

    Density is the mean number of real balls (to the k-th nearest real neighbour) around a fake feature, divided by k:
    1 on average for equal distributions, and not bounded by it. Coverage, in [0, 1], is the share of real balls with a
    fake feature inside.
    """
    real, fake = _neighbours(real_nd, fake_nd, k)
    nearest = np.concatenate([_squared_distances(block, fake).min(axis=1) for _, block in _blocks(real)])
    return float(np.mean(_balls(fake, real, k))) / k, float(np.mean(nearest <= _squared_radii(real, k)))


def class_score(probabilities_nk: np.ndarray, splits: int = 1) -> float:
    """exp of the mean KL divergence of p(class | picture) from p(class): the inception score (Salimans et al. 2016),
    by any classifier. From 1 to the number of classes; blind to how varied the pictures of one class are.

    Takes probabilities float [N, classes]. The mean over `splits` equal parts in order, 10 in the literature.
    """
    p = as_features(probabilities_nk)
    if p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise ZooError("rows of probabilities are at least 0 and sum to 1; give the softmax of the logits")
    if not 1 <= splits <= len(p):
        raise ZooError(f"{splits} parts of {len(p)} pictures; give 1 to {len(p)}")

    def score(part: np.ndarray) -> float:
        return float(np.exp(_negative_entropy(part).mean() - _negative_entropy(part.mean(0))))

    return float(np.mean([score(part) for part in np.array_split(p, splits)]))


def mode_count(labels: np.ndarray, classes: int = 10) -> tuple[int, float]:
    """How many modes are there, and KL(found ‖ uniform) in nats, 0 at best.

    `labels` int [N] names one of `classes` modes a picture; [N, C], one class a channel, one of classes^C: 1000 for
    stacked digits (Metz et al. 2017; Srivastava et al. 2017). N pictures cannot show more than N modes.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim not in (1, 2) or not labels.size:
        raise ZooError(f"labels are {labels.dtype}{list(labels.shape)}; give class numbers [N], or [N, channels]")
    if labels.min() < 0 or labels.max() >= classes:
        raise ZooError(f"labels go from {labels.min()} to {labels.max()}; {classes} classes are 0 to {classes - 1}")
    columns = labels.reshape(len(labels), -1).astype(np.int64)
    modes = classes ** columns.shape[1]
    counts = np.bincount(columns @ classes ** np.arange(columns.shape[1]), minlength=modes)
    return int(np.count_nonzero(counts)), float(_negative_entropy(counts / len(labels)) + np.log(modes))


def real_floor(distance: Callable[[np.ndarray, np.ndarray], float], real_nd: np.ndarray, seed: int = 0) -> float:
    """The distance of one random half of the real features from the other: what a perfect model would not get below,
    by more than luck. Halves have fewer pictures than the whole, and so a somewhat higher bias."""
    real = as_features(real_nd)
    order = _order(len(real), seed, 0)
    return distance(real[order[: len(real) // 2]], real[order[len(real) // 2 :]])


def as_features(x: np.ndarray) -> np.ndarray:
    """float64 [N, D]. Raises ZooError for anything else than finite floats [N, D]."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.size:
        raise ZooError(f"features are {list(x.shape)}; give [N, D], what a network says of pictures, not the pictures")
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise ZooError(f"features are {x.dtype}; give the floats that a network computes")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ZooError("some features are infinite or no numbers; look at the pictures they come from")
    return x


def _pair(real: np.ndarray, fake: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features of one width, with at least so many pictures each."""
    real, fake = as_features(real), as_features(fake)
    if real.shape[1] != fake.shape[1]:
        raise ZooError(
            f"{real.shape[1]} features of the real pictures, {fake.shape[1]} of the others; use one network for both"
        )
    if min(len(real), len(fake)) < least:
        raise ZooError(f"{len(real)} real pictures and {len(fake)} others; give at least {least} of both")
    return real, fake


def _neighbours(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if k < 1:
        raise ZooError(f"k is {k}: a ball reaches to the 1st nearest neighbour or a farther one")
    return _pair(real, fake, k + 1)


def _balls(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """In how many balls each point lies: int64 [points]. A ball reaches to its centre's k-th neighbour."""
    radii, found = _squared_radii(centres, k), np.zeros(len(points), np.int64)
    for rows, block in _blocks(centres):
        found += np.count_nonzero(_squared_distances(block, points) <= radii[rows, None], axis=0)
    return found


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point from its k-th nearest other one."""
    radii = np.empty(len(x))
    for rows, block in _blocks(x):
        distances = _squared_distances(block, x)
        distances[np.arange(len(block)), np.arange(len(x))[rows]] = np.inf
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.sum(x * x, 1)[:, None] + np.sum(y * y, 1) - 2 * (x @ y.T), 0)


def _blocks(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(x), ROWS):
        yield slice(start, start + ROWS), x[start : start + ROWS]


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    return np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def _order(size: int, seed: int, index: int) -> np.ndarray:
    # NumPy promises that raw bits stay the same from version to version; `Generator.permutation` may change.
    return np.argsort(np.random.Philox(np.random.SeedSequence((seed, index))).random_raw(size), kind="stable")
