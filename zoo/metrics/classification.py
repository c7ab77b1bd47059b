"""How a classifier is judged: how often it is right, which classes it takes for which, how well it knows when it is
wrong, and a look at what it gets wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import ZooError


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, float64 [classes]; NaN for a class that is neither true nor predicted anywhere."""

    precision: np.ndarray
    """Right ones of those predicted; 0 where none is."""
    recall: np.ndarray
    """Right ones of those that are true; 0 where none is."""
    f1: np.ndarray
    """Harmonic mean of the two; 0 where both are."""

    def macro(self) -> dict[str, float]:
        """Means over the classes, each counting the same; those without any example or prediction are left out."""
        return {f"macro_{name}": float(np.nanmean(value)) for name, value in vars(self).items()}


def class_scores(matrix: np.ndarray) -> ClassScores:
    """Precision, recall and F1 of every class, from a `confusion_matrix`."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.sum():
        raise ZooError(f"a matrix {list(matrix.shape)} with {matrix.sum()} examples; give one of confusion_matrix")
    right, true, predicted = np.diag(matrix).astype(np.float64), matrix.sum(axis=1), matrix.sum(axis=0)
    seen = np.where(true + predicted > 0, 1.0, np.nan)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return seen * part / np.maximum(whole, 1)

    return ClassScores(share(right, predicted), share(right, true), share(2 * right, true + predicted))


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of predicted classes that are the true ones."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or not labels.size:
        raise ZooError(f"labels {list(labels.shape)} and predictions {list(predictions.shape)}; give as many of both")
    return float(np.mean(labels == predictions))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017, equation 5): how far confidence is from accuracy.

    Confidence is the highest of the probabilities float [N, classes] of an example. Examples fall into `bins` of equal
    width, open below; the distance between mean confidence and accuracy of a bin counts by its share of the examples.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise ZooError(f"labels {list(labels.shape)} and probabilities {list(probabilities.shape)}; give [N], [N, K]")
    confidence = probabilities.max(axis=1)
    if probabilities.min() < 0 or confidence.max() > 1 + 1e-6:
        raise ZooError("probabilities lie in [0, 1]; give the softmax of the logits")
    if bins < 1:
        raise ZooError(f"{bins} bins; give at least 1")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gap = np.where(probabilities.argmax(axis=1) == labels, 1.0, 0.0) - confidence
    return float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(labels))


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1, and calibration error of class probabilities float [N, classes]."""
    predictions = np.asarray(probabilities).argmax(axis=-1)
    matrix = confusion_matrix(labels, predictions, probabilities.shape[-1])
    error = calibration_error(labels, probabilities)
    return {"accuracy": accuracy(labels, predictions)} | class_scores(matrix).macro() | {"calibration_error": error}


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts of true class (rows) against predicted class (columns): int64 [classes, classes].

    Raises ZooError for class numbers outside 0 to classes - 1, which would be counted in another cell.
    """
    for name, values in (("labels", labels), ("predictions", predictions)):
        values = np.asarray(values)
        if not np.issubdtype(values.dtype, np.integer) or (
            values.size and not 0 <= values.min() <= values.max() < classes
        ):
            raise ZooError(f"{name} must be class numbers from 0 to {classes - 1}")
    flat = np.asarray(labels, np.int64) * classes + np.asarray(predictions, np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Any:
    """The confusion matrix as a matplotlib figure, with the counts in the cells of up to 20 classes."""
    from matplotlib.figure import Figure

    size = max(4.0, min(12.0, 0.45 * len(names) + 2))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(matrix)} of {matrix.sum()} right")
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=8)
    return figure


def prediction_sheet(
    images_of: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    most: int = 24,
) -> Any:
    """A matplotlib figure of up to `most` images with what was predicted.

    `images_of` gives those of some of the N indices, uint8 [n, H, W, C], since all of them may not fit in memory.
    Wrong ones come first, framed in red, with the true class behind the predicted one; the others follow in
    their order. `probabilities` is float [N, classes].
    """
    from matplotlib.figure import Figure

    predictions = probabilities.argmax(axis=-1)
    order = np.argsort(predictions == labels, kind="stable")[:most]
    columns = 12
    rows = -(-len(order) // columns)
    height = rows * 1.25 + 0.4  # inches; a computed layout of so many axes would take seconds
    figure = Figure(figsize=(columns * 0.95, height))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1 / height, top=1 - 0.75 / height, wspace=0.08, hspace=0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, index, image in zip(grid.flat, order, images_of(order), strict=False):
        right = predictions[index] == labels[index]
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        text = names[predictions[index]] if right else f"{names[predictions[index]]}, is {names[labels[index]]}"
        share = probabilities[index, predictions[index]]
        axes.set_title(f"{text}\n{share:.0%}", fontsize=8, color="black" if right else "crimson")
        if not right:
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="crimson", linewidth=2.5)
    wrong = int((predictions != labels).sum())
    figure.suptitle(f"{len(labels) - wrong} of {len(labels)} right; wrong ones first", fontsize=10, y=1 - 0.12 / height)
    return figure
