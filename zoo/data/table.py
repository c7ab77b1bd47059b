"""Images listed in a csv file: by path, or pixel by pixel."""

import csv
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from zoo.data import folder
from zoo.data.arrays import part_of
from zoo.data.pixels import Broken, Found, Part, number, settle
from zoo.errors import ZooError, unknown

if TYPE_CHECKING:
    from zoo.data.images import ImageConfig

MISSING = frozenset(("", "na", "NA", "n/a", "N/A", "nan", "NaN", "NAN", "null", "NULL", "<NA>"))


def read(path: pathlib.Path, config: "ImageConfig") -> Found:
    """A header, then a row per image: a label column, and an image column or one column per pixel.

    The image column holds paths relative to the csv file, or pixels separated by spaces. Rows with a
    missing value are dropped and counted in the notes.
    """
    rows = _rows(path)
    header = next(rows, (1, []))[1]
    if config.label_column not in header:
        error = unknown("column", config.label_column, header)
        raise ZooError(f"{path}, line 1: {error}; the first line names the columns, --data.label-column the class")
    label_at = header.index(config.label_column)
    by_column = config.image_column in header
    image_at = [header.index(config.image_column)] if by_column else [i for i in range(len(header)) if i != label_at]
    if not image_at:
        raise ZooError(f"{path}, line 1: {config.label_column!r} is the only column; the images need one too")

    lines: list[int] = []
    labels: list[str] = []
    files: list[pathlib.Path] = []
    pixels: list[np.ndarray] = []
    broken: dict[int, str] = {}  # by line
    dropped = 0
    for line, row in rows:
        try:
            if len(row) != len(header):
                raise Broken(f"{len(row)} fields, but the header has {len(header)}")
            label, image = row[label_at].strip(), [row[i] for i in image_at]
            if label in MISSING or not MISSING.isdisjoint(image):
                dropped += 1
                continue
            if by_column and (files or not (pixels or _are_numbers(image[0]))):
                files.append(path.parent / image[0])
            else:
                values = _pixels(image[0].split() if by_column else image, config)
                if pixels and len(values) != len(pixels[0]):
                    raise Broken(f"{len(values)} pixels, but line {lines[0]} has {len(pixels[0])}")
                pixels.append(values)
            lines.append(line)
            labels.append(label)
        except Broken as error:
            broken[line] = str(error)
            settle({line: broken[line]}, lambda line: f"{path}, line {line}", config.skip_broken)
    if not lines:
        raise ZooError(f"{path} has no row with an image and a label ({dropped} with missing values)")

    def where(i: int) -> str:
        return f"{path}, line {lines[i]}"

    notes: tuple[str, ...] = (f"{dropped} row{'s' * (dropped > 1)} with missing values dropped",) if dropped else ()
    notes += settle(broken, lambda line: f"{path}, line {line}", config.skip_broken)
    if pixels:
        part, classes, skipped = part_of(np.stack(pixels), np.array(labels), where, config)
        return Found(part, None, classes, notes + skipped)
    label_array, classes, broken_labels = number(np.array(labels), where, config.classes)
    notes += settle(broken_labels, where, config.skip_broken)
    good = np.setdiff1d(np.arange(len(files)), list(broken_labels))
    names = [f"{files[i]} ({path}, line {lines[i]})" for i in good]
    images, keys, kept, skipped = folder.read_files([files[i] for i in good], config, names)
    return Found(Part(images, label_array[good][kept], keys), None, classes, notes + skipped)


def _rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise ZooError(f"{path}, line {reader.line_num}: {error}") from None
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise ZooError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def _are_numbers(text: str) -> bool:
    """Whether a field holds pixels and not a path."""
    try:
        return len([float(value) for value in text.split()]) > 1
    except ValueError:
        return False


def _pixels(values: list[str], config: "ImageConfig") -> np.ndarray:
    try:
        return np.array(values, np.float32)
    except ValueError as error:
        raise Broken(
            f"not a pixel: {error}; if a column holds image paths, name it by --data.image-column "
            f"(now {config.image_column!r})"
        ) from None
