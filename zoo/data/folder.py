"""Image files: a folder per class, or any list of paths."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoo.data.pixels import (
    Broken,
    Found,
    Part,
    check_memory,
    content_key,
    decode,
    is_gray,
    open_image,
    settle,
    upright_shape,
)
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.data.images import ImageConfig

SUFFIXES = (".png", ".jpg", ".jpeg")
TEST_NAMES = ("test", "val", "valid", "validation")


def read(path: pathlib.Path, config: "ImageConfig") -> Found:
    """PATH/class/*.png|jpg|jpeg, or PATH/train/class and PATH/test/class (or val); classes are the sorted folders."""
    if not path.is_dir():
        raise ZooError(f"{path} is a file; images: takes a folder that holds one folder per class")
    tests = [path / name for name in TEST_NAMES if (path / "train").is_dir() and (path / name).is_dir()]
    root = path / "train" if tests and _folders(path / "train") else path
    train, notes = _list(root, config.skip_broken)
    classes = tuple(train)
    test: dict[str, list[pathlib.Path]] = {}
    if root != path:
        test, test_notes = _list(tests[0], config.skip_broken)
        notes += test_notes
        for name in test:
            if name not in classes:
                raise ZooError(f"{tests[0] / name} is a class that {root} does not have")
    files = [file for part in (train, test) for name in part for file in part[name]]
    images, keys, kept, skipped = read_files(files, config, [str(file) for file in files])
    part = Part(images, np.array([classes.index(file.parent.name) for file in files], np.int32)[kept], keys)
    if not test:
        return Found(part, None, classes, notes + skipped)
    is_train = kept < sum(len(listed) for listed in train.values())
    return Found(part[is_train], part[~is_train], classes, notes + skipped)


def read_files(
    files: Sequence[pathlib.Path], config: "ImageConfig", names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 [n, H, W, C], their content keys, the indices of the files that could be read, and notes.

    `names` is what errors call the files.
    """
    broken: dict[int, str] = {}

    def give_up(i: int, error: Broken) -> None:
        broken[i] = str(error)
        settle({i: broken[i]}, names.__getitem__, config.skip_broken)

    # Headers first: they settle the shape of all, and how much memory it takes, before a pixel is decoded.
    shapes: dict[tuple[int, int], str] = {}
    gray = True
    for i, file in enumerate(files):
        try:
            header = open_image(_bytes(file))
            shapes.setdefault(upright_shape(header), names[i])
            gray &= is_gray(header)
        except Broken as error:
            give_up(i, error)
    if not shapes:
        raise ZooError(f"none of {len(files)} images can be read; the first, {names[0]}: {broken[0]}")
    if config.size is None and len(shapes) > 1:
        (one, two), (first, second) = list(shapes)[:2], list(shapes.values())[:2]
        raise ZooError(
            f"images differ in size: {first} is {one[1]}x{one[0]} and {second} is {two[1]}x{two[0]}; "
            "pass --data.size to resize all"
        )
    gray = gray if config.channels == "auto" else config.channels == "gray"
    height, width = (config.size, config.size) if config.size else next(iter(shapes))
    shape = (len(files) - len(broken), height, width, 1 if gray else 3)
    check_memory(*shape)
    images = np.zeros(shape, np.uint8)
    keys: list[int] = []
    kept: list[int] = []
    for i, file in enumerate(files):
        if i in broken:
            continue
        try:
            data = _bytes(file)
            images[len(kept)] = decode(data, gray, config.size)
            keys.append(content_key(data))
            kept.append(i)
        except Broken as error:
            give_up(i, error)
    if not kept:
        raise ZooError(f"none of {len(files)} images can be read; the first, {names[0]}: {broken[0]}")
    notes = settle(broken, names.__getitem__, config.skip_broken)
    return images[: len(kept)], np.array(keys, np.uint64), np.array(kept, np.int64), notes


def _folders(path: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _list(path: pathlib.Path, skip_empty: bool) -> tuple[dict[str, list[pathlib.Path]], tuple[str, ...]]:
    """The image files of each class folder, in a fixed order, and a note about empty ones."""
    found = {name: sorted(filter(_is_image_name, (path / name).iterdir())) for name in _folders(path)}
    empty = [str(path / name) for name, files in found.items() if not files]
    if empty and not skip_empty:
        raise ZooError(
            f"class folder {empty[0]} holds no {', '.join(SUFFIXES)} file; fill or remove it or pass --data.skip-broken"
        )
    if len(found) == len(empty):
        raise ZooError(f"{path} holds no class folder with images; they lie in {path}/CLASS/*.png|jpg|jpeg")
    notes = (f"{len(empty)} empty class folder{'s' * (len(empty) > 1)} skipped: {'; '.join(empty)}",) if empty else ()
    return {name: files for name, files in found.items() if files}, notes


def _is_image_name(file: pathlib.Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")


def _bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Broken(error.strerror or str(error)) from None
