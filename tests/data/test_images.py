"""Images from arrays and tables: digits, IDX, npz and csv, the held-out split, and every kind of bad input."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest
import tyro
from PIL import Image

from zoo.data.images import ImageConfig, _split, load_images
from zoo.data.pixels import Part, content_keys
from zoo.data.text import TextConfig
from zoo.errors import ZooError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)
LABEL = np.arange(30, dtype=np.uint8) % 3


def error(source, **kw):
    with pytest.raises(ZooError) as caught:
        load_images(ImageConfig(str(source), **kw))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(source, **kw):
    """Images and labels of both parts as one list of pairs, in an order of their own."""
    train, test = load_images(ImageConfig(str(source), **kw))
    return sorted((image.tobytes(), int(label)) for part in (train, test) for image, label in _rows(part))


def _rows(part):
    batch = part[np.arange(len(part))]
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["image"].shape == (len(part), *part.shape)
    return zip(batch["image"], batch["label"], strict=True)


EXPECTED = sorted((image.tobytes(), int(label)) for image, label in zip(PIXELS, LABEL, strict=True))


# Digits and the split


def test_digits_are_scikit_learns_split_in_five():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test = load_images(ImageConfig())
    assert (len(train), len(test), train.shape) == (1438, 359, (8, 8, 1))
    assert train.classes == tuple("0123456789")
    expected = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert both("digits") == sorted((i.tobytes(), int(t)) for i, t in zip(expected, digits.target, strict=True))
    assert (expected.min(), expected.max()) == (0, 255)
    known = {i.tobytes() for i in train[np.arange(len(train))]["image"]}
    assert not any(i.tobytes() in known for i in test[np.arange(len(test))]["image"])
    counts = np.bincount(test[np.arange(len(test))]["label"])
    assert counts.min() >= 34
    assert counts.max() <= 38  # every class gives its fifth


def test_digits_resize_and_colour_keep_the_split():
    small, _ = load_images(ImageConfig())
    large, _ = load_images(ImageConfig(size=20, channels="rgb"))
    assert large.shape == (20, 20, 3)
    a, b = small[np.arange(40)], large[np.arange(40)]
    np.testing.assert_array_equal(a["label"], b["label"])
    np.testing.assert_array_equal(b["image"][..., 0], b["image"][..., 2])
    as_pillow = Image.fromarray(a["image"][3, ..., 0]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(b["image"][3, ..., 1], np.asarray(as_pillow))


def test_the_split_is_fixed_by_content_and_seed():
    image = np.concatenate([PIXELS, PIXELS[:3]])[..., None]  # three copies
    label = np.concatenate([LABEL, (LABEL[:3] + 1) % 3]).astype(np.int32)  # under another label

    def held(order, seed=0):
        part = Part(image, label, content_keys(image))[order]
        train, test = _split(part, 0.3, seed)
        assert len(train.label) + len(test.label) == len(image)
        train_set, test_set = ({i.tobytes() for i in part.image} for part in (train, test))
        assert not train_set & test_set
        return test_set

    order = np.arange(len(image))
    first = held(order)
    assert 8 <= len(first) <= 12
    assert held(order[::-1]) == first
    assert all(held(order, seed) != first for seed in (1, 2, 3))


def test_both_spellings_of_the_flag():
    @dataclasses.dataclass(frozen=True)
    class Pictures:
        data: ImageConfig = dataclasses.field(default_factory=ImageConfig)

    @dataclasses.dataclass(frozen=True)
    class Words:
        data: TextConfig = dataclasses.field(default_factory=TextConfig)

    for config in (Pictures, Words):
        for flag in ("--data", "--data.source"):
            assert tyro.cli(config, args=[flag, "npz:x"]).data.source == "npz:x"
    assert tyro.cli(Pictures, args=["--data", "npz:x", "--data.skip-broken", "--data.size", "8"]).data == ImageConfig(
        "npz:x", size=8, skip_broken=True
    )


def test_bad_configurations_are_named(tmp_path):
    assert "did you mean digits" in error("digit")
    assert "unknown image source 'jpgs:x'" in error("jpgs:x")
    assert "unknown image source 'idx:'" in error("idx:")
    assert f"there is no {tmp_path}/none" in error(f"images:{tmp_path}/none")
    assert "holdout is 1" in error("digits", holdout=1.0)
    assert "size is 0" in error("digits", size=0)
    assert "classes is 0" in error("digits", classes=0)
    assert "too few to hold out 0.0001" in error("digits", holdout=0.0001)


# IDX


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, images=PIXELS, label=LABEL, part="train", dot=False, gz=False):
    for kind, array in (("images-idx3", images), ("labels-idx1", label)):
        data = array if isinstance(array, bytes) else idx(array)
        name = f"{part}-{kind.replace('-', '.') if dot else kind}-ubyte{'.gz' if gz else ''}"
        (folder / name).write_bytes(gzip.compress(data) if gz else data)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("gz", [False, True])
def test_idx_gzip_or_not_dots_or_not(tmp_path, dot, gz):
    write_idx(tmp_path, PIXELS[:24], LABEL[:24], dot=dot, gz=gz)
    write_idx(tmp_path, PIXELS[24:], LABEL[24:], "t10k", dot=dot, gz=gz)
    train, test = load_images(ImageConfig(f"idx:{tmp_path}"))
    assert (len(train), len(test), train.shape, train.classes) == (24, 6, (4, 4, 1), ("0", "1", "2"))
    np.testing.assert_array_equal(test[np.arange(6)]["image"][..., 0], PIXELS[24:])
    np.testing.assert_array_equal(test[np.array([5, 0])]["label"], LABEL[[29, 24]])


def test_idx_without_test_files_is_split(tmp_path):
    write_idx(tmp_path)
    assert both(f"idx:{tmp_path}") == EXPECTED
    assert len(load_images(ImageConfig(f"idx:{tmp_path}"))[1]) == 6


@pytest.mark.parametrize(
    ("images", "label", "message"),
    [
        (b"", idx(LABEL), "train-images-idx3-ubyte is not an IDX file of bytes: it begins with nothing"),
        (b"\x89PNG....", idx(LABEL), "begins with 89504e47, not 00000803 or 00000804"),
        (idx(LABEL), idx(LABEL), "begins with 00000801, not 00000803"),
        (b"\x00\x00\x0d\x03" + idx(PIXELS)[4:], idx(LABEL), "begins with 00000d03"),
        (idx(PIXELS)[:9], idx(LABEL), "its header gives the dimensions []"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, idx(LABEL), "4294967295], which cannot be right"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 0, 4, 4), idx(LABEL), "[0, 4, 4], which cannot be right"),
        (idx(PIXELS)[:-5], idx(LABEL), "[30, 4, 4] need 480 bytes of data, and there are only 475"),
        (idx(PIXELS) + b"x", idx(LABEL), "need 480 bytes of data, and there are more"),
        (gzip.compress(idx(PIXELS))[:-30], idx(LABEL), "cannot read"),
        (gzip.compress(idx(PIXELS))[:-8] + bytes(8), idx(LABEL), "cannot read"),
        (idx(PIXELS), idx(LABEL[:29]), "holds 30 images, but"),
        (idx(PIXELS), idx(np.where(np.arange(30) == 7, 200, LABEL).astype(np.uint8)), "label 7: label 200 is out of"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, images, label, message):
    write_idx(tmp_path, images, label)
    text = error(f"idx:{tmp_path}")
    assert message in text
    assert str(tmp_path) in text


def test_missing_idx_files_are_named(tmp_path):
    assert "it holds nothing" in error(f"idx:{tmp_path}")
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(PIXELS))
    assert "and the same two with t10k; it holds t10k-images-idx3-ubyte, train" in error(f"idx:{tmp_path}")
    assert "is a file; idx: takes the folder" in error(f"idx:{tmp_path}/train-images-idx3-ubyte")


def test_test_labels_must_be_classes_of_the_training_part(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, label=np.where(LABEL == 2, 3, LABEL).astype(np.uint8), part="t10k")
    assert "t10k-labels-idx1-ubyte, label 2: label 3 is out of range: the classes are 0, 1, 2" in error(
        f"idx:{tmp_path}"
    )
    write_idx(tmp_path, np.zeros((30, 5, 4), np.uint8), part="t10k")
    assert "training images are [4, 4, 1], test images [5, 4, 1]" in error(f"idx:{tmp_path}")


# npz


@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels"), ("x", "y"), ("x_train", "y_train")])
@pytest.mark.parametrize("form", ["uint8", "int64", "unit", "whole", "flat", "last", "column"])
def test_npz_in_every_form(tmp_path, names, form):
    pixels = {
        "int64": PIXELS.astype(np.int64),
        "unit": PIXELS.astype(np.float32) / 255,
        "whole": PIXELS.astype(np.float64),
        "flat": PIXELS.reshape(30, 16),
        "last": PIXELS[..., None],
    }.get(form, PIXELS)
    label = LABEL.astype(np.float64)[:, None] if form == "column" else LABEL
    np.savez(tmp_path / "set.npz", **dict(zip(names, (pixels, label), strict=True)))
    assert both(f"npz:{tmp_path}/set.npz") == EXPECTED


def test_npz_with_a_test_part_names_and_colour(tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 3), np.uint8)
    names = np.array(["cat", "ant", "bee"])[LABEL]
    path = tmp_path / "set.npz"
    np.savez(path, x_train=colour[:20], y_train=names[:20], x_test=colour[20:], y_test=names[20:])
    train, test = load_images(ImageConfig(f"npz:{path}"))
    assert train.classes == ("ant", "bee", "cat")
    np.testing.assert_array_equal(test[np.arange(10)]["image"], colour[20:])
    np.testing.assert_array_equal(test[np.arange(10)]["label"], np.array([2, 0, 1])[LABEL[20:]])
    gray, _ = load_images(ImageConfig(f"npz:{path}", channels="gray"))
    luma = np.round(colour[:20].astype(float) @ [0.299, 0.587, 0.114])
    assert np.abs(gray[np.arange(20)]["image"][..., 0] - luma).max() <= 1


def test_labels_may_begin_at_one_or_leave_gaps_when_counted(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x=PIXELS, y=LABEL + 1)
    train, _ = load_images(ImageConfig(f"npz:{path}"))
    assert train.classes == ("1", "2", "3")
    np.savez(path, x=PIXELS, y=LABEL * 2)
    assert (
        "train example 1: label 2 is out of range: numbers count up from 0 or 1 without a gap, unless --data"
        in error(f"npz:{path}")
    )
    train, _ = load_images(ImageConfig(f"npz:{path}", classes=6))
    assert train.classes == tuple("012345")
    assert set(train[np.arange(len(train))]["label"].tolist()) == {0, 2, 4}
    assert "train example 2: label 4 is out of range: the classes are 0, 1, 2, 3" in error(f"npz:{path}", classes=4)


def replaced(array, index, value, dtype=None):
    array = np.array(array, dtype)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("pixels", "label", "message"),
    [
        (replaced(PIXELS / 255, (7, 1, 1), np.nan), LABEL, "train example 7: NaN or infinite pixels"),
        (replaced(PIXELS, (7, 1, 1), 256, np.int32), LABEL, "train example 7: pixels from"),
        (replaced(PIXELS, (7, 1, 1), -1, np.int32), LABEL, "train example 7: pixels from -1 to"),
        (replaced(PIXELS, (7, 1, 1), 0.5, float), LABEL, "train example 7: pixels that are neither whole numbers"),
        (PIXELS.astype(complex), LABEL, "pixels are of type complex128"),
        (PIXELS.astype(str), LABEL, "pixels are of type <U"),
        (PIXELS[:, :, :, None, None], LABEL, "images of shape [30, 4, 4, 1, 1]"),
        (PIXELS.reshape(30, 1, 4, 4), LABEL, "channels last"),
        (PIXELS.reshape(30, 2, 8)[:, :1].reshape(30, 8), LABEL, "8 pixels are not a square image"),
        (PIXELS[:0], LABEL[:0], "images of shape [0, 4, 4, 1]"),
        (PIXELS, LABEL[:29], "train images of shape [30, 4, 4], but labels of shape [29]"),
        (PIXELS, np.float64(3), "labels of shape []"),
        (PIXELS, np.eye(3)[LABEL], "labels of type float64 and shape [30, 3]"),
        (PIXELS, replaced(LABEL, 4, 1.5, float), "train example 4: label 1.5 is not a whole number"),
        (PIXELS, replaced(LABEL, 4, np.nan, float), "train example 4: label nan is not a whole number"),
        (PIXELS, replaced(LABEL, 4, np.inf, float), "train example 4: label inf is not a whole number"),
        (PIXELS, replaced(LABEL, 4, -1, int), "train example 4: label -1 is out of range"),
        (PIXELS, replaced(LABEL, 4, 10**12, int), "train example 4: label 1000000000000 is out of range"),
        (PIXELS, LABEL.astype(object), "without objects"),
        (PIXELS.astype(object), LABEL, "without objects"),
    ],
)
def test_bad_arrays_are_named(tmp_path, pixels, label, message):
    np.savez(tmp_path / "set.npz", x=pixels, y=label)
    text = error(f"npz:{tmp_path}/set.npz")
    assert message in text
    assert f"{tmp_path}/set.npz" in text


def test_broken_rows_of_arrays_can_be_skipped(tmp_path):
    bad = replaced(PIXELS, (7, 1, 1), -5, np.int32)
    np.savez(tmp_path / "set.npz", x=replaced(bad, (9, 0, 0), 300), y=LABEL)
    train, test = load_images(ImageConfig(f"npz:{tmp_path}/set.npz", skip_broken=True))
    assert len(train) + len(test) == 28
    assert len(train.notes) == 1
    assert train.notes[0].startswith(f"2 broken images skipped: {tmp_path}/set.npz, train example 7: pixels from -5 to")
    assert both(f"npz:{tmp_path}/set.npz", skip_broken=True) == sorted(
        (i.tobytes(), int(t)) for n, (i, t) in enumerate(zip(PIXELS, LABEL, strict=True)) if n not in (7, 9)
    )
    np.savez(tmp_path / "set.npz", x=bad - 1000, y=LABEL)
    assert "none of 30 images can be used" in error(f"npz:{tmp_path}/set.npz", skip_broken=True)


@pytest.mark.parametrize("bad", [-1, 7, 1.5, np.nan])
def test_labels_out_of_range_can_be_skipped(tmp_path, bad):
    path = tmp_path / "set.npz"
    np.savez(path, x=PIXELS, y=replaced(LABEL, 4, bad, float))
    assert "train example 4: label" in error(f"npz:{path}")
    train, _ = load_images(ImageConfig(f"npz:{path}", skip_broken=True))
    assert train.classes == ("0", "1", "2")
    assert train.notes[0].startswith(f"1 broken image skipped: {path}, train example 4: label ")
    kept = [row for n, row in enumerate(zip(PIXELS, LABEL, strict=True)) if n != 4]
    assert both(f"npz:{path}", skip_broken=True) == sorted((i.tobytes(), int(t)) for i, t in kept)


def test_labels_written_out_are_numbers_or_names(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x=PIXELS, y=np.array(["01", "02", "10"])[LABEL])
    assert "label 10 is out of range" in error(f"npz:{path}")
    np.savez(path, x=PIXELS, y=np.array(["01", "02", "03"])[LABEL])
    assert load_images(ImageConfig(f"npz:{path}"))[0].classes == ("1", "2", "3")
    np.savez(path, x=PIXELS, y=np.array(["01", "02", "A"])[LABEL])
    assert load_images(ImageConfig(f"npz:{path}"))[0].classes == ("01", "02", "A")


def test_files_that_are_no_npz_are_named(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez(path, a=PIXELS, y=LABEL)
    assert "needs arrays x_train or train_images or images or image or x and" in error(f"npz:{path}")
    assert "it holds a, y" in error(f"npz:{path}")
    np.savez(path, x=PIXELS, y=LABEL, x_test=PIXELS)
    assert "needs arrays x_test or test_images and y_test or test_labels" in error(f"npz:{path}")
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:-40], np.lib.format.magic(1, 0), replaced_byte(whole, 300)):
        path.write_bytes(data)
        assert f"cannot read {path} as npz" in error(f"npz:{path}")
    np.savez(path, x=PIXELS, y=LABEL)
    monkeypatch.setattr("zoo.data.arrays.MOST_BYTES", 400)
    assert "unpacks to" in error(f"npz:{path}")


def replaced_byte(data, at):
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


# csv


def write_csv(path, header, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n", encoding="utf-8")


def test_csv_with_a_column_per_pixel(tmp_path):
    path = tmp_path / "set.csv"
    header = ["label", *(f"pixel{i}" for i in range(16))]
    write_csv(path, header, [[t, *i.ravel()] for i, t in zip(PIXELS, LABEL, strict=True)])
    assert both(f"csv:{path}") == EXPECTED
    assert load_images(ImageConfig(f"csv:{path}"))[0].shape == (4, 4, 1)


def test_csv_with_pixels_in_one_column_and_named_classes(tmp_path):
    path = tmp_path / "faces.csv"
    names = ["happy", "sad", "calm, really"]
    rows = [[f'"{names[t]}"', " ".join(map(str, i.ravel())), "x"] for i, t in zip(PIXELS, LABEL, strict=True)]
    write_csv(path, ["emotion", "pixels", "usage"], rows)
    config = {"label_column": "emotion", "image_column": "pixels"}
    train, _ = load_images(ImageConfig(f"csv:{path}", **config))
    assert train.classes == ("calm, really", "happy", "sad")
    numbers = np.array([1, 2, 0])[LABEL]
    assert both(f"csv:{path}", **config) == sorted((i.tobytes(), int(t)) for i, t in zip(PIXELS, numbers, strict=True))


def test_csv_with_paths(tmp_path):
    (tmp_path / "pictures").mkdir()
    for n, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{n}.png")
    path = tmp_path / "set.csv"
    write_csv(path, ["image", "label"], [[f"pictures/{n}.png", t] for n, t in enumerate(LABEL)])
    assert both(f"csv:{path}") == EXPECTED
    (tmp_path / "pictures" / "4.png").write_bytes(b"no image")
    (tmp_path / "pictures" / "5.png").unlink()
    text = error(f"csv:{path}")
    assert f"{tmp_path}/pictures/4.png ({path}, line 6): it is not a PNG or JPEG image" in text
    train, test = load_images(ImageConfig(f"csv:{path}", skip_broken=True))
    assert len(train) + len(test) == 28
    assert "2 broken images skipped" in train.notes[0]
    assert f"pictures/5.png ({path}, line 7): No such file or directory" in train.notes[0]
    gone = [r for n, r in enumerate(zip(PIXELS, LABEL, strict=True)) if n not in (4, 5)]
    assert both(f"csv:{path}", skip_broken=True) == sorted((i.tobytes(), int(t)) for i, t in gone)


@pytest.mark.parametrize("hole", ["", " ", "NaN", "NA", "null"])
def test_csv_rows_with_missing_values_are_dropped_and_counted(tmp_path, hole):
    rows = [[t, *i.ravel()] for i, t in zip(PIXELS, LABEL, strict=True)]
    rows[3][0] = hole
    rows[5][9] = hole
    rows = [[f"{row[0]}.0" if row[0] != hole else hole, *row[1:]] for row in rows]  # as tables with gaps write numbers
    path = tmp_path / "set.csv"
    write_csv(path, ["label", *range(16)], rows)
    train, _ = load_images(ImageConfig(f"csv:{path}"))
    assert train.notes == ("2 rows with missing values dropped",)
    assert train.classes == ("0", "1", "2")
    assert both(f"csv:{path}") == sorted(
        (i.tobytes(), int(t)) for n, (i, t) in enumerate(zip(PIXELS, LABEL, strict=True)) if n not in (3, 5)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: unknown column 'label'"),
        (
            "7,0,255,3\n1,2,3,4\n",
            "line 1: unknown column 'label'; known: 0, 255, 3, 7; the first line names the columns",
        ),
        ("lable,a\n1,2\n", "did you mean lable?"),
        ("label\n1\n", "'label' is the only column"),
        ("label,a,b,c,d\n", "no row with an image and a label (0 with missing"),
        ("label,a,b,c,d\n,1,2,3,4\n", "no row with an image and a label (1 with missing"),
        ("label,a,b,c,d\n1,2,3,4,5\n1,2,3\n", "line 3: 3 fields, but the header has 5"),
        ("label,a,b,c,d\n1,2,3,4,5\n\n1,2,x,3,4\n", "line 4: not a pixel: could not convert string to float: 'x'"),
        ("label,file\n1,a.png\n", "if a column holds image paths, name it by --data.image-column"),
        ("label,a,b,c,d\n0,2,3,4,5\n1.5,2,3,4,5\n", "line 3: label 1.5 is not a whole number"),
        ("label,a,b,c,d\n0,2,3,4,5\n-1,2,3,4,5\n", "line 3: label -1 is out of range"),
        ("label,a,b,c,d\n0,2,3,4,5\n0,2,3,4,256\n", "line 3: pixels from 2 to 256"),
        ("label,a,b,c,d\n0,2,3,4,5\n0,2,3,4,inf\n", "line 3: NaN or infinite pixels"),
        ("label,a,b,c,d,e\n0,1,2,3,4,5\n", "line 2: 5 pixels are not a square"),
        ("label,image\n0,1 2 3 4\n0,1 2 3\n", "line 3: 3 pixels, but line 2 has 4"),
        ("label,image\n0,1 2 3 4\n0,a.png\n", "line 3: not a pixel"),
        ('label,image\n0,"1 2\n', "line 2: 2 pixels are not a square"),
        ("label,image\n0," + "1 " * 70000 + "\n", "line 2: field larger than field limit"),
    ],
)
def test_bad_tables_are_named_with_the_line(tmp_path, text, message):
    path = tmp_path / "set.csv"
    path.write_text(text)
    found = error(f"csv:{path}")
    assert message in found
    assert str(path) in found


def test_broken_lines_can_be_skipped(tmp_path):
    path = tmp_path / "set.csv"
    rows = [[t, *i.ravel()] for i, t in zip(PIXELS, LABEL, strict=True)]
    rows[3] = rows[3][:-1]
    rows[5][2] = "x"
    rows[7][2] = 999
    rows[9][0] = 50
    rows[11][4] = ""
    write_csv(path, ["label", *range(16)], rows)
    train, test = load_images(ImageConfig(f"csv:{path}", skip_broken=True))
    dropped, lines, examples = train.notes
    assert dropped == "1 row with missing values dropped"
    assert lines.startswith(
        f"2 broken images skipped: {path}, line 5: 16 fields, but the header has 17; {path}, line 7: not"
    )
    assert examples.startswith(f"2 broken images skipped: {path}, line 9: pixels from ")
    assert f"{path}, line 11: label 50 is out of range" in examples
    assert test.notes == ()
    kept = [row for n, row in enumerate(zip(PIXELS, LABEL, strict=True)) if n not in (3, 5, 7, 9, 11)]
    assert both(f"csv:{path}", skip_broken=True) == sorted((i.tobytes(), int(t)) for i, t in kept)


def test_arrays_too_large_to_resize_in_memory_are_named(monkeypatch):
    monkeypatch.setattr("zoo.data.pixels.MOST_BYTES", 1797 * 16 * 16 - 1)
    assert "1797 images of 16x16 would take 0.0 GiB of memory; lower --data.size" in error("digits", size=16)


def test_a_table_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "set.csv").write_bytes(b"label,image\n\xff\xfe,1 2 3 4\n")
    assert f"{tmp_path}/set.csv is not UTF-8" in error(f"csv:{tmp_path}/set.csv")
    assert error(f"csv:{tmp_path}") == f"cannot read {tmp_path}: Is a directory"
