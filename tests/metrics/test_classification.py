import numpy as np

from zoo.metrics.classification import confusion_figure, confusion_matrix, prediction_sheet


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
    images = np.zeros((5, 4, 4, 1), np.uint8)
    shares = np.eye(3)[[0, 1, 2, 0, 1]] * 0.8 + 0.1
    figure = prediction_sheet(images, np.array([0, 1, 0, 0, 2]), shares, ["a", "b", "c"])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["c, is a\n90%", "b, is c\n90%"]
    assert titles[2:] == ["a\n90%", "b\n90%", "a\n90%"]
    assert figure.get_suptitle().startswith("3 of 5 right")
    framed = [axes.axison for axes in figure.axes]
    assert framed[:3] == [True, True, False]
