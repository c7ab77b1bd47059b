"""A trained classifier as a plain function of pictures on the host, for metrics that judge by its features."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.cnn import CNN, ResNet
from zoo.weights.files import load


class Classifier:
    """The features and class probabilities of a classifier by name ("digits-cnn"), run folder or folder of weights.

    `name` tells the weights apart: "digits-cnn@1a2b3c4d", with `fingerprint` behind it. It computes in float32 on every
    device, in batches of one shape. Raises ZooError for what `load` cannot find, and for another kind of model.
    """

    def __init__(self, source: str | os.PathLike[str], batch: int = 256):
        model = load(source, dtype="float32")
        if not isinstance(model, CNN | ResNet):
            raise ZooError(f"{source} holds a {type(model).__name__}; give a classifier, such as digits-cnn")
        self.name, self.config, self.batch = f"{Path(source).name}@{fingerprint(model)}", model.config, batch
        graphdef, self._params, self._stats = functional.split(model)

        def outputs(params: Any, stats: Any, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, named = functional.merge(graphdef, params, stats)(x_bhwc, features=True)
            return named["dense" if "dense" in named else "pooled"], jax.nn.softmax(logits)

        self._outputs = jax.jit(outputs)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(features float32 [N, D], probabilities float32 [N, classes]) of images uint8, or float in [0, 1].

        Features are what the last layer reads: 64 of cnn-basic. Raises ZooError for images of another shape or range.
        """
        images = np.asarray(images)
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        if images.dtype.kind != "f" or images.ndim != 4 or not len(images):
            raise ZooError(
                f"images are {images.dtype}{list(images.shape)}; give uint8 or floats in [0, 1], [N, H, W, C]"
            )
        if not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
            raise ZooError(
                f"images go from {images.min():.4g} to {images.max():.4g}, {self.name} wants [0, 1];"
                " map those of [-1, 1] by (x + 1) / 2, and clip"
            )
        parts = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch].astype(np.float32)
            padded = np.zeros((self.batch, *part.shape[1:]), np.float32)  # one shape is compiled once
            padded[: len(part)] = part
            found = jax.device_get(self._outputs(self._params, self._stats, jnp.asarray(padded)))
            parts.append([x[: len(part)] for x in found])
        features, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
        return features, probabilities


def fingerprint(model: Any) -> str:
    """Eight hexadecimal digits that change with any weight or statistic: of the SHA-256 of their names and bytes."""
    _, params, stats = functional.split(model)
    digest = hashlib.sha256()
    for name, x in sorted(functional.flatten({"params": params, "stats": stats}).items()):
        digest.update(name.encode() + np.asarray(jax.device_get(x)).astype("<f4").tobytes())
    return digest.hexdigest()[:8]
