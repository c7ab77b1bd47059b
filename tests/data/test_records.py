"""Prepared array_record sets, written and read without TensorFlow."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from zoo.data.images import ImageConfig, load_images
from zoo.data.pipeline import Shuffled, in_order
from zoo.errors import ZooError

tfds = pytest.importorskip("tensorflow_datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), np.uint8)
NAMES = ["ant", "bee", "cat"]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file


def prepare(place, name, splits, shape=(None, None, 3), label=None):
    """A set of (image, label) examples under `place`; an image is an array, or bytes that are stored as they are."""
    label = label or tfds.features.ClassLabel(names=NAMES)

    def info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def examples(self, rows):
        for n, (image, number) in enumerate(rows):
            yield (
                n,
                {"image": io.BytesIO(image) if isinstance(image, bytes) else Image.fromarray(image), "label": number},
            )

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {split: self._generate_examples(rows) for split, rows in splits.items()},
        "_generate_examples": examples,
    }
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)(data_dir=place, file_format="array_record")
    builder.download_and_prepare()
    return place


@pytest.fixture(scope="module", autouse=True)
def no_tensorflow():
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("prepared")
    rows = [(image, n % 3) for n, image in enumerate(PIXELS)]
    prepare(place, "Pair", {"train": rows[:30], "test": rows[30:]})
    prepare(place, "Single", {"train": rows})
    damaged = [*rows[:5], (b"no image at all", 1), *rows[6:20], (png(PIXELS[0][:5]).getvalue(), 2)]
    prepare(place, "Damaged", {"train": damaged, "test": rows[30:]})
    prepare(place, "Counted", {"train": rows}, label=tfds.features.Scalar(np.int64))
    return place


def load(place, name, **kw):
    return load_images(ImageConfig(f"tfds:{name}@{place}", **kw))


def error(place, name, **kw):
    with pytest.raises(ZooError) as caught:
        load(place, name, **kw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(batch):
    return sorted((i.tobytes(), int(t)) for i, t in zip(batch["image"], batch["label"], strict=True))


EXPECTED = [(image.tobytes(), n % 3) for n, image in enumerate(PIXELS)]


def test_splits_of_the_set_are_used(place):
    train, test = load(place, "pair")
    assert (len(train), len(test), train.shape) == (30, 10, (6, 8, 3))
    assert (train.classes, train.name, train.notes) == (("ant", "bee", "cat"), "pair", ())
    assert pairs(train[np.arange(30)]) == sorted(EXPECTED[:30])
    assert pairs(test[np.arange(10)]) == sorted(EXPECTED[30:])
    one = train[np.array([7, 3, 7])]
    np.testing.assert_array_equal(one["image"][0], one["image"][2])
    assert train[np.array([], int)]["image"].shape == (0, 6, 8, 3)


def test_a_single_split_is_held_out_by_seed(place):
    train, test = load(place, "single", holdout=0.25)
    assert (len(train), len(test)) == (30, 10)
    a, b = pairs(train[np.arange(30)]), pairs(test[np.arange(10)])
    assert sorted(a + b) == sorted(EXPECTED)
    assert pairs(load(place, "single", holdout=0.25)[1][np.arange(10)]) == b
    assert pairs(load(place, "single", holdout=0.25, split_seed=1)[1][np.arange(10)]) != b
    assert "too few to hold out 0.001" in error(place, "single", holdout=0.001)


def test_records_feed_the_pipeline(place):
    train, test = load(place, "pair", size=4, channels="gray")
    assert train.shape == (4, 4, 1)
    batches = Shuffled(train, 10)
    with_thread = list(batches.stream(0, 3, lambda b, step: b.rows(step)))
    assert sum(len(batch["image"]) for batch in with_thread) == 30
    assert sorted(i.tobytes() for batch in with_thread for i in batch["image"]) == sorted(
        i.tobytes() for i in train[np.arange(30)]["image"]
    )
    assert sum(batch["weight"].sum() for batch in in_order(test, 4)) == 10


def test_broken_records_are_named_or_skipped(place):
    train, _ = load(place, "damaged")
    assert len(train) == 21
    texts = []
    for n in range(21):
        try:
            train[np.array([n])]
        except ZooError as caught:
            texts.append(str(caught))
    assert len(texts) == 2
    assert any(
        "of damaged: it is not a PNG or JPEG image; mend it or pass --data.skip-broken" in text for text in texts
    )
    assert any("of damaged: it is 8x5, the first 8x6; --data.size makes all alike" in text for text in texts)
    train, test = load(place, "damaged", skip_broken=True)
    assert (len(train), len(test)) == (19, 10)
    assert train.notes[0].startswith("2 broken images skipped: record ")
    assert test.notes == ()
    assert pairs(train[np.arange(19)]) == sorted(EXPECTED[:5] + EXPECTED[6:20])
    assert len(load(place, "damaged", skip_broken=True, size=4)[0]) == 20


def test_labels_without_names_need_a_count(place):
    assert "does not say how many classes there are; pass --data.classes" in error(place, "counted")
    train, _ = load(place, "counted", classes=3)
    assert train.classes == ("0", "1", "2")
    train, _ = load(place, "counted", classes=2)
    with pytest.raises(ZooError, match=r"record \d+ of counted: label 2 is out of range of the 2 classes"):
        train[np.arange(len(train))]


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    rows = [(image, n % 3) for n, image in enumerate(PIXELS)]
    hidden = [(image, -1) for image in PIXELS[:4]]
    prepare(tmp_path, "Contest", {"train": rows[:30], "validation": rows[30:], "test": hidden})
    _, test = load(tmp_path, "contest")
    assert pairs(test[np.arange(10)]) == sorted(EXPECTED[30:])


def test_a_set_of_nothing_but_broken_records_is_an_error(tmp_path):
    prepare(tmp_path, "Junk", {"train": [(b"no image", 0)] * 4})
    assert "cannot use record 0 of junk: it is not a PNG or JPEG image" in error(tmp_path, "junk")
    assert "none of the 4 records of junk is an image" in error(tmp_path, "junk", skip_broken=True)
    prepare(tmp_path, "Strays", {"train": [(PIXELS[0], 2)] * 10}, label=tfds.features.Scalar(np.int64))
    text = error(tmp_path, "strays", skip_broken=True, classes=2)
    assert "records of strays can be used; the first: label 2 is out of range of the 2 classes" in text


def test_what_is_not_prepared_says_how_to_prepare_it(place, tmp_path):
    text = error(tmp_path, "mnist")
    assert f"mnist is not prepared in {tmp_path}; to prepare it" in text
    assert "pip install tensorflow tensorflow-datasets" in text
    assert f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()" in text
    assert "did you mean pair?" in error(place, "pairs")


def test_damaged_preparations_are_named(place, tmp_path):
    def copy(name):
        shutil.copytree(place / "pair", tmp_path / name)
        return tmp_path / name / "1.0.0"

    info = copy("foreign") / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert f"{info.parent} is prepared as tfrecord, and only array_record" in error(tmp_path, "foreign")
    (copy("garbled") / "dataset_info.json").write_text("{")
    assert "cannot read" in error(tmp_path, "garbled")
    (copy("bare") / "features.json").unlink()
    assert f"cannot read the prepared data in {tmp_path}/bare/1.0.0" in error(tmp_path, "bare")
    for count in (29, 31):  # lost or invented records
        info = copy(f"short{count}") / "dataset_info.json"
        text = json.loads(info.read_text())
        next(split for split in text["splits"] if split["name"] == "train")["shardLengths"] = [str(count)]
        info.write_text(json.dumps(text))
        assert f"split train holds 30 records, but should hold {count}; prepare" in error(tmp_path, f"short{count}")
    shard = next(copy("cut").glob("*train.array_record*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "split train holds 0 records, but should hold 30; prepare" in error(tmp_path, "cut")
    shard.write_bytes(b"")
    assert "prepare it again" in error(tmp_path, "cut")
    shard.write_bytes(whole[:200] + bytes(3000) + whole[3200:])
    with pytest.raises(ZooError, match=r"cannot read records of cut: .*prepare the data again"):
        load(tmp_path, "cut")


def test_the_newest_version_is_read_and_configurations_are_told_apart(place, tmp_path):
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        shutil.copytree(place / "pair" / "1.0.0", tmp_path / "pair" / version)
        info = tmp_path / "pair" / version / "dataset_info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"version": version}))
    for version in ("1.0.0", "1.9.0"):  # unreadable: only the newest may be opened
        (tmp_path / "pair" / version / "features.json").unlink()
    assert len(load(tmp_path, "pair")[0]) == 30
    assert "cannot read the prepared data in" in error(tmp_path, "pair:1.9.0")
    for config in ("large", "small"):
        shutil.copytree(place / "pair" / "1.0.0", tmp_path / "many" / config / "1.0.0")
    assert "several configurations; name one of many/large, many/small" in error(tmp_path, "many")
