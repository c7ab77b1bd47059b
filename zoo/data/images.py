"""Labelled images from many sources, as one random-access type."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Annotated, Protocol

import numpy as np
import tyro

from zoo.data import arrays, folder, records, table
from zoo.data.pixels import Channels, Found, Part, content_keys, fit_all
from zoo.errors import ZooError, unknown


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    source: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "digits"
    """digits (scikit-learn's), scenes (made by code, of 32 or 64 pixels), idx:FOLDER (MNIST files), images:FOLDER
    (FOLDER/class/*.png|jpg), csv:FILE, npz:FILE, or tfds:NAME[@DIR] (prepared as array_record)."""
    size: int | None = None
    """Resize the shorter side to this and crop the middle square; by default images stay as they are."""
    channels: Channels = "auto"
    """Colour channels to read; auto keeps what the source has."""
    holdout: float = 0.2
    """Share of each class kept for evaluation, where the source has no test part of its own."""
    split_seed: int = 0
    """Seed of that split, which depends on nothing else but the images."""
    skip_broken: bool = False
    """Skip, count and list images that cannot be read, in place of stopping at the first."""
    classes: int | None = None
    """Number of classes, where labels are numbers and some class has no example."""
    image_column: str = "image"
    """Column of a csv file with the path or the pixels; without it, every column but the label is a pixel."""
    label_column: str = "label"
    """Column of a csv file with the class."""


class ImageSource(Protocol):
    """Random access to labelled images: `self[indices]` is {"image" uint8 [n, H, W, C], "label" int32 [n]}."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the reading, such as how many rows were dropped; not the same on both parts."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Images:
    """An `ImageSource` in memory: `image` uint8 [N, H, W, C], `label` int32 [N]."""

    image: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape[1:]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        return {"image": self.image[indices], "label": self.label[indices]}


def load_images(config: ImageConfig) -> tuple[ImageSource, ImageSource]:
    """The training and the test part of a source; in memory, but for tfds and scenes, which are made as asked for.

    Without a test part of its own, a source is split by the content of its images and `split_seed`,
    class by class; copies of one image stay on one side. Raises ZooError for whatever is wrong with
    the data, naming the file and the reason.
    """
    if not 0 < config.holdout < 1:
        raise ZooError(f"holdout is {config.holdout}: it is a share of the images, between 0 and 1")
    if config.size is not None and config.size < 1:
        raise ZooError(f"size is {config.size}: it must be at least 1 pixel")
    if config.classes is not None and config.classes < 1:
        raise ZooError(f"classes is {config.classes}: there must be at least 1")
    kind, _, rest = config.source.partition(":")
    if kind == "tfds" and rest:
        return records.load(rest, config)
    if config.source == "scenes":
        return _scenes(config)
    if config.source == "digits":
        name, found = "digits", _digits(config)
    elif kind in _READERS and rest:
        path = pathlib.Path(rest).expanduser()
        if not path.exists():
            raise ZooError(f"there is no {path}; {kind}: takes a path, relative to {pathlib.Path.cwd()}")
        try:
            name, found = path.stem, _READERS[kind](path, config)
        except OSError as error:
            raise ZooError(f"cannot read {error.filename or path}: {error.strerror}") from None
    else:
        known = ("digits", "scenes", "idx:FOLDER", "images:FOLDER", "csv:FILE", "npz:FILE", "tfds:NAME[@DIR]")
        raise unknown("image source", config.source, known)
    train, test = (found.train, found.test) if found.test else _split(found.train, config.holdout, config.split_seed)
    if not len(train.label) or not len(test.label):
        raise ZooError(
            f"{name} has {len(found.train.label)} images, too few to hold out {config.holdout:g} of each class; "
            "give more images or another --data.holdout"
        )
    unseen = np.setdiff1d(test.label, train.label)
    if len(unseen):
        raise ZooError(f"{name}: class {found.classes[unseen[0]]!r} is in the test part but not in the training part")
    return (
        Images(train.image, train.label, found.classes, name, found.notes),
        Images(test.image, test.label, found.classes, name),
    )


def _digits(config: ImageConfig) -> Found:
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    part = Part(fit_all(image, config.channels, config.size), digits.target.astype(np.int32), content_keys(image))
    return Found(part, None, tuple(str(i) for i in range(10)))


def _scenes(config: ImageConfig) -> tuple[ImageSource, ImageSource]:
    from zoo.data.drawing import check_size
    from zoo.data.scenes import Scenes

    size = config.size or 32
    check_size(size)
    if config.channels == "gray":
        raise ZooError("scenes are in colour; leave channels at auto")
    return Scenes("train", size), Scenes("test", size, length=2000)


def _split(part: Part, holdout: float, seed: int) -> tuple[Part, Part]:
    """Holds out the images of each class whose content hashes lowest under the seed."""
    rank = np.array([_hash(seed, key) for key in part.key.tolist()], np.uint64)
    held = np.zeros(len(rank), bool)
    for label in np.unique(part.label):
        members = np.flatnonzero(part.label == label)
        held[members[np.argsort(rank[members], kind="stable")[: round(holdout * len(members))]]] = True
    held = np.isin(rank, rank[held])  # copies of a held-out image, under whatever label, are held out too
    return part[~held], part[held]


def _hash(seed: int, key: int) -> int:
    digest = hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8, salt=str(seed).encode()[:16]).digest()
    return int.from_bytes(digest, "little")


_READERS: dict[str, Callable[[pathlib.Path, ImageConfig], Found]] = {
    "idx": arrays.read_idx,
    "npz": arrays.read_npz,
    "images": folder.read,
    "csv": table.read,
}
