"""How a classifier is judged: which classes it takes for which, and a look at what it gets wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts of true class (rows) against predicted class (columns): int64 [classes, classes]."""
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
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], most: int = 24
) -> Any:
    """A matplotlib figure of up to `most` images uint8 [N, H, W, C] with what was predicted.

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
    for axes, index in zip(grid.flat, order, strict=False):
        right = predictions[index] == labels[index]
        axes.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
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
