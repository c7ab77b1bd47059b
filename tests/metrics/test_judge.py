"""The sanity ladder on real digits, on the features of the bundled classifier."""

import numpy as np
import pytest

from zoo.data import ImageConfig, load_images
from zoo.errors import ZooError
from zoo.metrics.distribution import frechet_distance, mode_count
from zoo.metrics.judge import Judge, channel_labels, fd_score
from zoo.weights.classifier import Classifier


@pytest.fixture(scope="module")
def network():
    return Classifier("digits-cnn")


@pytest.fixture(scope="module")
def halves():
    """Images float32 [N, 16, 16, 1] in [0, 1] and labels of two halves of all 1,797 digits."""
    parts = load_images(ImageConfig(size=16))
    image = np.concatenate([part.image for part in parts]).astype(np.float32) / 255
    label = np.concatenate([part.label for part in parts])
    order = np.random.default_rng(0).permutation(len(label))
    return [(image[rows], label[rows]) for rows in (order[::2], order[1::2])]


@pytest.fixture(scope="module")
def judge(network, halves):
    return Judge(network.name, network, halves[0][0])


def blurred(images):
    """Means with the four neighbours."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, 1 + i : 17 + i, 1 + j : 17 + j] for i, j in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]
    return (sum(shifted) / 5).astype(np.float32)


def test_real_halves_are_nearer_than_mild_blur_and_that_than_noise(judge, halves):
    other = halves[1][0]
    noise = np.random.default_rng(1).random(other.shape, np.float32)
    ladder = [judge(images) for images in (other, blurred(other), noise)]
    for name in ("FD", "KD"):
        real, blur, worst = (scores[f"{name} {judge.name}"] for scores in ladder)
        assert abs(real) < blur / 2 < worst / 4, name
        assert ladder[0][f"{name} {judge.name} real floor"] == ladder[2][f"{name} {judge.name} real floor"]
    # The floor is of halves of this half: twice the bias, and so above, but not by much.
    assert ladder[0][f"FD {judge.name}"] < judge.floor < 4 * ladder[0][f"FD {judge.name}"]
    for name, least in (("precision", 0.85), ("recall", 0.85), ("density", 0.85), ("coverage", 0.85)):
        real, _, worst = (scores[f"{name} {judge.name}"] for scores in ladder)
        assert worst < 0.1 < least < real, name
    assert 6 < ladder[0][f"class score {judge.name}"] <= 10  # labels were smoothed, and no answer is quite sure
    assert ladder[2][f"class score {judge.name}"] < 2


def test_a_dropped_mode_lowers_recall(judge, halves):
    other, label = halves[1]
    kept = label < 5
    dropped, whole = judge(other[kept]), judge(other[: kept.sum()])  # as many of all classes
    for name, drop in (("recall", 0.3), ("coverage", 0.3)):
        assert dropped[f"{name} {judge.name}"] < whole[f"{name} {judge.name}"] - drop, name
    assert dropped[f"precision {judge.name}"] > whole[f"precision {judge.name}"] - 0.05
    assert dropped[f"FD {judge.name}"] > 3 * whole[f"FD {judge.name}"]


def test_batches_are_the_same_as_all_at_once(judge, network, halves):
    images = halves[1][0][:300]
    whole = judge(images)
    assert judge(iter(np.split(images, [100, 101]))) == pytest.approx(whole, rel=1e-5, abs=1e-9)
    name, score = fd_score(network.name, network, [halves[0][0]], np.split(images, [100, 101]))
    assert name == f"FD {network.name}"
    assert score == pytest.approx(whole[name], rel=1e-5)
    assert score == pytest.approx(frechet_distance(network(halves[0][0])[0], network(images)[0]), rel=1e-5)


def test_stacked_digits(network, halves):
    """Three digits in the channels of a picture: each is classified by itself."""
    images, labels = halves[0]
    stacked = np.concatenate([images[:200], images[200:400], images[400:600]], axis=-1)
    expected = np.stack([labels[:200], labels[200:400], labels[400:600]], axis=-1)
    found = channel_labels(network, stacked)
    assert np.mean(found == expected) > 0.99
    modes, divergence = mode_count(found)
    assert abs(modes - mode_count(expected)[0]) <= 3
    assert divergence == pytest.approx(mode_count(expected)[1], abs=0.05)
    assert mode_count(channel_labels(network, np.repeat(images[:1], 3, axis=-1)))[0] == 1


def test_bad_values(judge, network):
    with pytest.raises(ZooError, match="no pictures"):
        judge([])
    with pytest.raises(ZooError, match=r"images are \[2, 16, 16\]"):
        channel_labels(network, np.zeros((2, 16, 16)))
    with pytest.raises(ZooError, match="at least 4 of both"):
        judge(np.zeros((3, 16, 16, 1), np.float32))
