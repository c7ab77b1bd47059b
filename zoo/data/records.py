"""Images of sets that TensorFlow Datasets has prepared as array_record, read lazily and without TensorFlow."""

import concurrent.futures
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zoo.data.pixels import Broken, decode, is_gray, one_line, open_image, settle, upright_shape
from zoo.errors import ZooError, unknown

if TYPE_CHECKING:
    from zoo.data.images import ImageConfig

DEFAULT_DIR = "~/tensorflow_datasets"  # where TensorFlow Datasets itself prepares
TEST_SPLITS = ("test", "validation")


class Records:
    """An `ImageSource` over prepared records, each read and decoded when it is asked for, by a pool of threads.

    `which` picks the records of `source`. A record that cannot be used raises ZooError with its number.
    """

    def __init__(
        self,
        source: Any,
        which: np.ndarray,
        shape: tuple[int, int, int],
        size: int | None,
        classes: tuple[str, ...],
        name: str,
    ):
        self.source = source
        self.which = which
        self.shape = shape
        self.size = size
        self.classes = classes
        self.name = name
        self.notes: tuple[str, ...] = ()
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "zoo-records")

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        numbers = self.which[indices].tolist()
        decoded = self._decode_all(numbers)
        settle({n: reason for n, (_, _, reason) in zip(numbers, decoded, strict=True) if reason}, self._where, False)
        image = np.array([image for image, _, _ in decoded], np.uint8).reshape(-1, *self.shape)
        return {"image": image, "label": np.array([label for _, label, _ in decoded], np.int32)}

    def skip_broken(self) -> None:
        """Reads every record once, drops those that cannot be used, and lists them in `notes`."""
        broken: dict[int, str] = {}
        for start in range(0, len(self.which), 256):
            numbers = self.which[start : start + 256].tolist()
            broken |= {
                n: reason for n, (_, _, reason) in zip(numbers, self._decode_all(numbers), strict=True) if reason
            }
        self.which = np.setdiff1d(self.which, list(broken))
        if not len(self.which):
            raise ZooError(
                f"none of {len(broken)} records of {self.name} can be used; the first: {broken[min(broken)]}"
            )
        self.notes += settle(broken, self._where, True)

    def _where(self, number: int) -> str:
        return f"record {number} of {self.name}"

    def _decode_all(self, numbers: list[int]) -> list[tuple[np.ndarray, int, str]]:
        return list(self._pool.map(self._decode, _fetch(self.source, numbers, self.name)))

    def _decode(self, record: dict[str, Any]) -> tuple[np.ndarray, int, str]:
        """Image, label, and why the record cannot be used, or nothing."""
        image, label = np.zeros(self.shape, np.uint8), int(record["label"])
        try:
            if not 0 <= label < len(self.classes):
                raise Broken(f"label {label} is out of range of the {len(self.classes)} classes")
            found = decode(record["image"], self.shape[-1] == 1, self.size)
            if found.shape != self.shape:
                (height, width), expected = found.shape[:2], self.shape
                raise Broken(
                    f"it is {width}x{height}, the first {expected[1]}x{expected[0]}; --data.size makes all alike"
                )
        except Broken as error:
            return image, label, str(error)
        return found, label, ""


def load(spec: str, config: "ImageConfig") -> tuple[Records, Records]:
    """NAME[@DIR] as training and test part: its splits train and test (or validation), else one held out by seed."""
    name, _, place = spec.partition("@")
    folder = _prepared(name, pathlib.Path(place or DEFAULT_DIR).expanduser())
    try:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ZooError(
            f"tfds: needs a package that is missing ({error}); pip install tensorflow-datasets array_record"
        ) from None
    try:
        builder = tfds.builder_from_directory(folder)
        # Encoded images, so that the same careful decoder reads them as reads files.
        skip = {"image": tfds.decode.SkipDecoding()}
        sources = {split: builder.as_data_source(split, decoders=skip) for split in builder.info.splits}
        # The lengths above are what dataset_info.json claims; these are what the files hold.
        shards = {split: [str(path) for path in info.filepaths] for split, info in builder.info.splits.items()}
        held = {split: sum(ArrayRecordReader(path).num_records() for path in shards[split]) for split in shards}
    except Exception as error:
        raise ZooError(f"cannot read the prepared data in {folder}: {one_line(error)}; prepare it again") from None
    for split, source in sources.items():
        if not len(source) == builder.info.splits[split].num_examples == held[split]:
            raise ZooError(
                f"{folder}: split {split} holds {held[split]} records, but should hold "
                f"{builder.info.splits[split].num_examples}; prepare it again"
            )
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ZooError(f"{folder} has the features {', '.join(sorted(features))}; image and label are needed")
    if "train" not in sources or not len(sources["train"]):
        raise ZooError(
            f"{folder} has no split named train with records in it, only {', '.join(sorted(sources)) or 'none'}"
        )
    names = getattr(features["label"], "names", None) or [str(i) for i in range(config.classes or 0)]
    if not names:
        raise ZooError(f"{folder} does not say how many classes there are; pass --data.classes")

    first = _first_header(sources["train"], name, config.skip_broken)
    height, width = (config.size, config.size) if config.size else upright_shape(first)
    channels = features["image"].shape[-1]
    gray = config.channels == "gray"
    if config.channels == "auto":
        gray = is_gray(first) if channels is None else channels == 1

    def part(split: str, which: np.ndarray) -> Records:
        shape = (height, width, 1 if gray else 3)
        records = Records(sources[split], which, shape, config.size, tuple(names), name)
        if config.skip_broken:
            records.skip_broken()
        return records

    # Sets of contests hide the labels of their test split: all are -1.
    tests = [split for split in TEST_SPLITS if split in sources and len(sources[split])]
    test = next((split for split in tests if _fetch(sources[split], [0], name)[0]["label"] >= 0), None)
    if test:
        return part("train", np.arange(len(sources["train"]))), part(test, np.arange(len(sources[test])))
    count = len(sources["train"])
    order = np.argsort(np.random.Philox(config.split_seed).random_raw(count), kind="stable")
    test_count = round(config.holdout * count)
    if not 0 < test_count < count:
        raise ZooError(f"{name} has {count} images, too few to hold out {config.holdout:g} of them")
    return part("train", np.sort(order[test_count:])), part("train", np.sort(order[:test_count]))


def _fetch(source: Any, numbers: list[int], name: str) -> list[dict[str, Any]]:
    try:
        return source.__getitems__(numbers) if numbers else []
    except Exception as error:  # of several kinds, where a file is damaged
        raise ZooError(f"cannot read records of {name}: {one_line(error)}; prepare the data again") from None


def _first_header(source: Any, name: str, skip_broken: bool) -> Image.Image:
    """The image, unread, that gives the shape of all."""
    for number in range(len(source)):
        try:
            image = open_image(_fetch(source, [number], name)[0]["image"])
            upright_shape(image)
            return image
        except Broken as error:
            settle({number: str(error)}, lambda number: f"record {number} of {name}", skip_broken)
    raise ZooError(f"none of the {len(source)} records of {name} is an image that can be read")


def _prepared(name: str, place: pathlib.Path) -> pathlib.Path:
    """The folder of the newest version of a prepared set, checked to be array_record."""
    root = place / name.replace(":", "/")
    infos = [info for depth in ("", "*/", "*/*/") for info in root.glob(depth + "dataset_info.json")]
    how = (
        'to prepare it, on any machine: pip install tensorflow tensorflow-datasets, then python -c "import '
        f"tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={str(place)!r}, "
        "file_format='array_record').download_and_prepare()\""
    )
    if not infos:
        known = sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []
        near = f"; {unknown('set', name, known)}" if known else ""
        raise ZooError(f"{name} is not prepared in {place}{near}; {how}")
    homes = sorted({info.parent.parent for info in infos})
    if len(homes) > 1:
        raise ZooError(
            f"{root} holds several configurations; name one of {', '.join(f'{name}/{h.name}' for h in homes)}"
        )
    newest = max((info.parent for info in infos), key=_version)
    try:
        form = json.loads((newest / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise ZooError(f"cannot read {newest / 'dataset_info.json'}: {error}; {how}") from None
    if form != "array_record":
        raise ZooError(f"{newest} is prepared as {form}, and only array_record is read without TensorFlow; {how}")
    return newest


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
