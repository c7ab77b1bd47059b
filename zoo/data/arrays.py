"""Images that come as arrays: IDX files, as MNIST's, and npz files."""

import gzip
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from zoo.data.pixels import MOST_BYTES, Found, Part, as_images, content_keys, fit_all, number, one_line, settle
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.data.images import ImageConfig

Raw = tuple[np.ndarray, np.ndarray, Callable[[int], str]]  # images, labels, and what errors call example i
IDX_NAMES = "train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz], and the same two with t10k"
NPZ_NAMES = {  # part: (names of the images, names of the labels)
    "train": (("x_train", "train_images", "images", "image", "x"), ("y_train", "train_labels", "labels", "label", "y")),
    "test": (("x_test", "test_images"), ("y_test", "test_labels")),
}


def read_idx(path: pathlib.Path, config: "ImageConfig") -> Found:
    """A folder with MNIST's four files, or the two for training; gzip or not, "-idx3" or ".idx3"."""
    if not path.is_dir():
        raise ZooError(f"{path} is a file; idx: takes the folder that holds {IDX_NAMES}")
    train, test = _idx_pair(path, "train"), _idx_pair(path, "t10k")
    if len(train) < 2 or len(test) == 1:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ZooError(f"{path} must hold {IDX_NAMES}; it holds {held}")
    return _found(_read_pair(*train), _read_pair(*test) if test else None, config)


def read_npz(path: pathlib.Path, config: "ImageConfig") -> Found:
    """Arrays x_train, y_train and perhaps x_test, y_test; also image(s)/label(s), x/y or train_images/train_labels."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise ZooError(f"{path} unpacks to {size / 2**30:.1f} GiB; convert it to array_record and read it by tfds:")
        with np.load(path, allow_pickle=False) as file:
            held = sorted(file.files)
            arrays = {
                part: [next((file[name] for name in names if name in held), None) for names in kinds]
                for part, kinds in NPZ_NAMES.items()
            }
    except ZooError:
        raise
    except Exception as error:  # NumPy and zipfile raise many types for what is malformed
        raise ZooError(
            f"cannot read {path} as npz: {one_line(error)}; write it with numpy.savez, without objects"
        ) from None

    def part(name: str) -> Raw:
        images, labels = arrays[name]
        if images is None or labels is None:
            wanted = " and ".join(" or ".join(names) for names in NPZ_NAMES[name])
            raise ZooError(f"{path} needs arrays {wanted}; it holds {', '.join(held) or 'none'}")
        if not images.ndim or not labels.ndim or len(images) != len(labels):
            raise ZooError(
                f"{path}: {name} images of shape {list(images.shape)}, but labels of shape {list(labels.shape)}"
            )
        return images, labels, lambda i: f"{path}, {name} example {i}"

    has_test = any(array is not None for array in arrays["test"])
    return _found(part("train"), part("test") if has_test else None, config)


def part_of(
    pixels: np.ndarray,
    labels: np.ndarray,
    where: Callable[[int], str],
    config: "ImageConfig",
    classes: tuple[str, ...] | None = None,
) -> tuple[Part, tuple[str, ...], tuple[str, ...]]:
    """One part from arrays: the examples, their class names (or those given), and notes on what was skipped."""
    images, broken_images = as_images(pixels, where)
    label, classes, broken_labels = number(labels, where, config.classes, classes)
    broken = broken_labels | broken_images
    notes = settle(broken, where, config.skip_broken)
    if len(broken) == len(images):
        raise ZooError(f"none of {len(images)} images can be used; the first, {where(0)}: {broken[0]}")
    if broken:
        keep = np.setdiff1d(np.arange(len(images)), list(broken))
        images, label = images[keep], label[keep]
    return Part(fit_all(images, config.channels, config.size), label, content_keys(images)), classes, notes


def _found(train: Raw, test: Raw | None, config: "ImageConfig") -> Found:
    train_part, classes, notes = part_of(*train, config)
    if test is None:
        return Found(train_part, None, classes, notes)
    test_part, _, test_notes = part_of(*test, config, classes)
    if train_part.image.shape[1:] != test_part.image.shape[1:]:
        raise ZooError(
            f"training images are {list(train_part.image.shape[1:])}, test images {list(test_part.image.shape[1:])} "
            "(height, width, channels); pass --data.size and --data.channels to make them alike"
        )
    return Found(train_part, test_part, classes, notes + test_notes)


def _idx_pair(path: pathlib.Path, part: str) -> list[pathlib.Path]:
    """The images and the labels file of a part, as far as they are there."""
    pair = []
    for kind in ("images-idx3", "labels-idx1"):
        names = [f"{part}-{k}-ubyte{end}" for k in (kind, kind.replace("-", ".")) for end in ("", ".gz")]
        pair += [path / name for name in names if (path / name).is_file()][:1]
    return pair


def _read_pair(images: pathlib.Path, labels: pathlib.Path) -> Raw:
    pixels, label = _read_idx(images, (3, 4)), _read_idx(labels, (1,))
    if len(pixels) != len(label):
        raise ZooError(f"{images} holds {len(pixels)} images, but {labels} {len(label)} labels")
    return pixels, label, lambda i: f"{labels}, label {i}"


def _read_idx(path: pathlib.Path, ndims: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an IDX file: two zero bytes, type, number of dimensions, each as big-endian uint32, data."""
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in ndims:
                expected = " or ".join(f"000008{n:02x}" for n in ndims)
                raise ZooError(
                    f"{path} is not an IDX file of bytes: it begins with {magic.hex() or 'nothing'}, not {expected}"
                )
            header = file.read(4 * magic[3])
            shape = tuple(np.frombuffer(header, ">u4").tolist()) if len(header) == 4 * magic[3] else ()
            size = int(np.prod(shape, dtype=object)) if shape else 0
            if not size or size > MOST_BYTES:
                raise ZooError(f"{path}: its header gives the dimensions {list(shape)}, which cannot be right")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:  # gzip's errors are among them
        raise ZooError(f"cannot read {path}: {error}; fetch it again") from None
    if len(data) != size:
        what = f"only {len(data)}" if len(data) < size else "more"
        raise ZooError(
            f"{path}: dimensions {list(shape)} need {size} bytes of data, and there are {what}; fetch it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
