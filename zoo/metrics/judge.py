"""Pictures scored on the features of a named network: the name is a part of every score.

A Fréchet distance means nothing without its network. It is called FD here, with the network's name and a hash of its
weights, and never FID, which stands for one certain network and its way of resizing.
"""

from collections.abc import Callable, Iterable

import numpy as np

from zoo.errors import ZooError
from zoo.metrics.distribution import (
    Moments,
    class_score,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
    real_floor,
)

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Judge:
    """What a network says of pictures, beside the same for real ones.

    `network(images)` gives features float [N, D] and class probabilities float [N, classes]; `name` is its name with a
    hash of its weights, "digits-cnn@1a2b3c4d". `real` is an array of images, or an iterable of batches of them.
    """

    def __init__(self, name: str, network: Network, real: np.ndarray | Iterable[np.ndarray]):
        self.name, self.network = name, network
        self.real, _ = self._outputs(real)
        self.floor = real_floor(frechet_distance, self.real)
        self.kernel_floor = real_floor(kernel_distance, self.real)

    def __call__(self, images: np.ndarray | Iterable[np.ndarray]) -> dict[str, float]:
        """The scores of an array of images, or of an iterable of batches of them, by their printed names.

        FD and KD (the kernel distance) are lower for better pictures, and each is followed by its floor: the distance
        of one half of the real pictures from the other. Precision and recall are with 3 neighbours, density and
        coverage with 5. Raises ZooError for fewer than 6 pictures.
        """
        features, probabilities = self._outputs(images)
        precision, recall = precision_recall(self.real, features)
        density, coverage = density_coverage(self.real, features)
        return {
            f"FD {self.name}": frechet_distance(self.real, features),
            f"FD {self.name} real floor": self.floor,
            f"KD {self.name}": kernel_distance(self.real, features),
            f"KD {self.name} real floor": self.kernel_floor,
            f"precision {self.name}": precision,
            f"recall {self.name}": recall,
            f"density {self.name}": density,
            f"coverage {self.name}": coverage,
            f"class score {self.name}": class_score(probabilities),
        }

    def _outputs(self, images: np.ndarray | Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        batches = [images] if isinstance(images, np.ndarray) else images
        parts = [self.network(batch) for batch in batches]
        if not parts:
            raise ZooError("there are no pictures to judge; give at least 6")
        features, probabilities = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(probabilities)


def fd_score(name: str, network: Network, real: Iterable[np.ndarray], fake: Iterable[np.ndarray]) -> tuple[str, float]:
    """The Fréchet distance alone, of batches of images too many to keep even their features: ("FD <name>", value)."""
    moments = Moments(), Moments()
    for kept, batches in zip(moments, (real, fake), strict=True):
        for batch in batches:
            kept.add(network(batch)[0])
    return f"FD {name}", frechet_distance(*moments)


def channel_labels(network: Network, images_bhwc: np.ndarray) -> np.ndarray:
    """The class of every channel, taken as a gray image: int64 [B, C], for the `mode_count` of stacked digits."""
    images = np.asarray(images_bhwc)
    if images.ndim != 4:
        raise ZooError(f"images are {list(images.shape)}; give [B, H, W, C]")
    b, h, w, c = images.shape
    _, probabilities = network(np.moveaxis(images, -1, 1).reshape(b * c, h, w, 1))
    return probabilities.argmax(-1).reshape(b, c)
