"""Random choices and held-out subjects that are the same on every machine and with every version of NumPy."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from zoo.errors import ZooError

T = TypeVar("T")


def held_out(subject: str, holdout: float) -> bool:
    """Whether a subject is held out: by its own hash, so always and everywhere the same."""
    if not 0 < holdout < 1:
        raise ZooError(f"holdout is {holdout}: it is a share of the subjects, between 0 and 1")
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8]) < holdout * 2**64


class Draw:
    """Random choices from raw bits, which NumPy promises to keep the same from version to version."""

    def __init__(self, *seed: int):
        if min(seed) < 0:
            raise ZooError(f"seed is {seed[0]}: it must be 0 or more")
        self._bits = np.random.Philox(np.random.SeedSequence(seed))

    def below(self, n: int) -> int:
        return int(self._bits.random_raw()) % n

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def order(self, items: Sequence[T]) -> list[T]:
        """All items in a random order."""
        keys = self._bits.random_raw(len(items))
        return [items[i] for i in np.argsort(keys, kind="stable")]
