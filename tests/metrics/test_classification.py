import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from zoo.errors import ZooError
from zoo.metrics.classification import (
    accuracy,
    calibration_error,
    class_scores,
    confusion_figure,
    confusion_matrix,
    prediction_sheet,
    summary,
)


def test_confusion_by_hand():
    matrix = confusion_matrix(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2]), 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 2]])
    assert confusion_matrix(np.array([1], np.uint8), np.array([1], np.uint8), 400)[1, 1] == 1


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_figure_shows_the_counts():
    figure = confusion_figure(np.array([[5, 1], [0, 7]]), ["cat", "dog"])
    assert sorted(texts(figure)) == ["1", "5", "7"]
    assert figure.axes[0].get_title() == "12 of 13 right"


def test_wrong_predictions_come_first_and_are_marked():
    labels = np.array([0, 1, 0, 0, 2])
    pixels = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 4, 4, 1))
    shares = np.eye(3)[[0, 1, 2, 0, 1]] * 0.8 + 0.1
    figure = prediction_sheet(pixels.__getitem__, labels, shares, ["a", "b", "c"])
    assert [axes.images[0].get_array().max() for axes in figure.axes if axes.images] == [2, 4, 0, 1, 3]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["c, is a\n90%", "b, is c\n90%"]
    assert titles[2:] == ["a\n90%", "b\n90%", "a\n90%"]
    assert figure.get_suptitle().startswith("3 of 5 right")
    framed = [axes.axison for axes in figure.axes]
    assert framed[:3] == [True, True, False]


LABELS = np.array([0, 0, 1, 2, 2, 2, 3, 3, 1, 0])
PREDICTIONS = np.array([0, 1, 1, 0, 2, 2, 3, 3, 1, 1])


def test_class_scores_by_hand():
    """Class 0: one of two predicted right, one of two found. Class 1 is never predicted, class 2 twice in vain."""
    scores = class_scores(np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]]))
    np.testing.assert_allclose(scores.precision, [1 / 2, 0, 0])
    np.testing.assert_allclose(scores.recall, [1 / 2, 0, 0])
    np.testing.assert_allclose(scores.f1, [1 / 2, 0, 0])
    # Of three classes and a fourth that is nowhere: it does not count.
    scores = class_scores(np.diag([3, 1, 2, 0]) + np.diag([1, 0, 0], 1))
    np.testing.assert_allclose(scores.precision, [1, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(scores.recall, [3 / 4, 1, 1, np.nan])
    np.testing.assert_allclose(scores.f1, [6 / 7, 2 / 3, 1, np.nan])
    expected = {"macro_precision": 5 / 6, "macro_recall": 11 / 12, "macro_f1": (6 / 7 + 2 / 3 + 1) / 3}
    assert scores.macro() == pytest.approx(expected)


def test_class_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=400)
    predictions = np.where(rng.random(400) < 0.6, labels, rng.integers(5, size=400))  # 5 is predicted less
    scores = class_scores(confusion_matrix(labels, predictions, 7))  # class 6 is nowhere
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions)
    for ours, theirs in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
        np.testing.assert_allclose(ours[:6], theirs, rtol=1e-12)
    macro = precision_recall_fscore_support(labels, predictions, average="macro")[:3]
    assert list(scores.macro().values()) == pytest.approx(list(macro), rel=1e-12)
    assert accuracy(labels, predictions) == pytest.approx(accuracy_score(labels, predictions), rel=1e-12)


def test_calibration_error_by_hand():
    """Two bins. Below a half: 0.4, wrong. Above: 0.6 right, 0.8 right, 0.9 wrong; on average 0.7667 sure, 2/3 right."""
    shares = np.array([[0.4, 0.3, 0.3], [0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    labels = np.array([1, 0, 1, 1])
    gap = abs((0.6 + 0.8 + 0.9) / 3 - 2 / 3)
    assert calibration_error(labels, shares, bins=2) == pytest.approx(0.4 / 4 + gap * 3 / 4)
    # One bin: all that counts is how sure and how often right on average.
    assert calibration_error(labels, shares, bins=1) == pytest.approx((0.4 + 0.6 + 0.8 + 0.9) / 4 - 2 / 4)
    # A confidence on an edge belongs to the bin below it: right at a half and wrong at three quarters do not cancel.
    edge = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert calibration_error(np.array([0, 1]), edge, bins=2) == pytest.approx((0.5 + 0.75) / 2)
    # Certainty belongs to the last bin.
    assert calibration_error(np.array([0, 1]), np.array([[0.9, 0.1], [1, 0]]), bins=2) == pytest.approx(0.9 / 2)


def test_summary():
    shares = np.eye(4)[PREDICTIONS]
    scores = summary(LABELS, shares)
    assert list(scores) == ["accuracy", "macro_precision", "macro_recall", "macro_f1", "calibration_error"]
    assert scores["accuracy"] == pytest.approx(0.7)
    assert scores["calibration_error"] == pytest.approx(0.3), "always sure, right in 7 of 10"
    assert scores["macro_recall"] == pytest.approx((1 / 3 + 1 + 2 / 3 + 1) / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confusion_matrix(np.array([3]), np.array([0]), 3), "labels must be class numbers from 0 to 2"),
        (lambda: confusion_matrix(np.array([0]), np.array([-1]), 3), "predictions must be"),
        (lambda: confusion_matrix(np.array([0]), np.array([0.5]), 3), "predictions must be"),
        (lambda: class_scores(np.zeros((2, 2), int)), "with 0 examples"),
        (lambda: class_scores(np.ones((2, 3), int)), r"\[2, 3\]"),
        (lambda: accuracy(LABELS, PREDICTIONS[:-1]), r"\[10\] and predictions \[9\]"),
        (lambda: calibration_error(LABELS, np.eye(4)), "give"),
        (lambda: calibration_error(LABELS[:4], 3 * np.eye(4)), "softmax"),
        (lambda: calibration_error(LABELS[:4], np.eye(4), 0), "0 bins"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ZooError, match=message):
        call()
