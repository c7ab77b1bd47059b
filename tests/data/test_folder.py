"""Image files: formats are converted as they should be, and every kind of bad file is named with the reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from zoo.data.images import ImageConfig, load_images
from zoo.data.pixels import Broken, decode, open_image
from zoo.errors import ZooError

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)


def encoded(image, form="PNG", **kw):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **kw)
    return file.getvalue()


def fill(root, images=COLOUR, classes=("cat", "dog", "eel")):
    """Images in turn into class folders."""
    for n, image in enumerate(images):
        folder = root / classes[n % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n:02}.png").write_bytes(encoded(image))
    return root


def error(root, **kw):
    with pytest.raises(ZooError) as caught:
        load_images(ImageConfig(f"images:{root}", **kw))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(*parts):
    batches = [part[np.arange(len(part))] for part in parts]
    return sorted((i.tobytes(), int(t)) for b in batches for i, t in zip(b["image"], b["label"], strict=True))


# Layouts


def test_a_folder_per_class(tmp_path):
    train, test = load_images(ImageConfig(f"images:{fill(tmp_path / 'zoo')}", holdout=0.25))
    assert (train.classes, train.name, train.shape, train.notes) == (("cat", "dog", "eel"), "zoo", (6, 8, 3), ())
    assert (len(train), len(test)) == (9, 3)
    assert sorted(test[np.arange(3)]["label"].tolist()) == [0, 1, 2]
    assert pairs(train, test) == sorted((image.tobytes(), n % 3) for n, image in enumerate(COLOUR))


def test_the_split_does_not_depend_on_names_or_size(tmp_path):
    one = fill(tmp_path / "one")
    two = fill(tmp_path / "two", COLOUR[[9, 10, 11, 0, 1, 2, 6, 7, 8, 3, 4, 5]])
    held = [pairs(load_images(ImageConfig(f"images:{root}", holdout=0.5))[1]) for root in (one, two)]
    assert held[0] == held[1]
    small = load_images(ImageConfig(f"images:{one}", holdout=0.5, size=4))[1]
    resized = [
        (decode(encoded(np.frombuffer(i, np.uint8).reshape(6, 8, 3)), False, 4).tobytes(), t) for i, t in held[0]
    ]
    assert pairs(small) == sorted(resized)


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_given_test_folder_is_used(tmp_path, name):
    fill(tmp_path / "train", COLOUR[:9])
    fill(tmp_path / name, COLOUR[9:])
    train, test = load_images(ImageConfig(f"images:{tmp_path}"))
    assert train.classes == ("cat", "dog", "eel")
    assert pairs(test) == sorted((image.tobytes(), n % 3) for n, image in enumerate(COLOUR[9:]))
    fill(tmp_path / name, COLOUR[:1], ("fox",))
    assert f"{tmp_path}/{name}/fox is a class that {tmp_path}/train does not have" in error(tmp_path)


def test_size_resizes_the_shorter_side_and_crops_the_middle(tmp_path):
    wide = np.repeat(np.repeat(np.arange(10, dtype=np.uint8)[None] * 20, 6, 0), 1, 1)  # 6 high, 10 wide
    np.testing.assert_array_equal(decode(encoded(wide), True, 6)[..., 0], wide[:, 2:8])
    np.testing.assert_array_equal(decode(encoded(wide.T), True, 6)[..., 0], wide.T[2:8])
    halved = decode(encoded(np.kron(COLOUR[0], np.ones((4, 4, 1), np.uint8))), False, 6)
    assert halved.shape == (6, 6, 3)
    fill(tmp_path, [*COLOUR[:6], *COLOUR[6:].transpose(0, 2, 1, 3)])
    text = error(tmp_path)
    assert "images differ in size" in text
    assert f"{tmp_path}/cat/00.png is 8x6 and {tmp_path}/cat/06.png is 6x8; pass --data.size" in text
    assert load_images(ImageConfig(f"images:{tmp_path}", size=5))[0].shape == (5, 5, 3)


def test_channels_are_those_of_the_files_or_as_asked(tmp_path):
    gray = fill(tmp_path / "gray", COLOUR[..., 0])
    assert load_images(ImageConfig(f"images:{gray}"))[0].shape == (6, 8, 1)
    assert load_images(ImageConfig(f"images:{gray}", channels="rgb"))[0].shape == (6, 8, 3)
    mixed = fill(tmp_path / "mixed", [*COLOUR[:3, ..., 0], *COLOUR[3:9], *COLOUR[9:, ..., 0]])
    train, test = load_images(ImageConfig(f"images:{mixed}"))
    assert train.shape == (6, 8, 3)
    as_colour = [i if 3 <= n < 9 else np.repeat(i[..., :1], 3, -1) for n, i in enumerate(COLOUR)]
    assert pairs(train, test) == sorted((i.tobytes(), n % 3) for n, i in enumerate(as_colour))
    luma = np.round(COLOUR[7].astype(float) @ [0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(COLOUR[7]), True, None)[..., 0] - luma).max() <= 1


# Formats


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 256, 257], [32896, 65278, 65535]], np.uint16)
    found = decode(encoded(values), True, None)[..., 0]
    np.testing.assert_array_equal(found, [[0, 0, 1], [128, 254, 255]])


def test_palettes_give_their_colours():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    np.testing.assert_array_equal(decode(encoded(image), False, None), expected)
    seen = decode(encoded(image, transparency=1), False, None)
    np.testing.assert_array_equal(seen, [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]])


def test_transparency_is_laid_over_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    np.testing.assert_allclose(
        decode(encoded(rgba), False, None), [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]], atol=1
    )
    gray_alpha = np.array([[[100, 255], [100, 0]]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(gray_alpha), True, None)[..., 0], [[100, 255]])


def test_black_and_white_jpeg_cmyk_and_exif():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encoded(bits), True, None)[..., 0], [[0, 255], [255, 0]])
    smooth = np.broadcast_to(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (16, 16, 3))
    jpeg = encoded(np.ascontiguousarray(smooth), "JPEG", quality=95)
    assert np.abs(decode(jpeg, False, None).astype(int) - smooth).max() < 12
    red = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decode(red, False, None).astype(int) - [255, 0, 0]).max() < 12
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    turned = encoded(COLOUR[0], "PNG", exif=exif)
    np.testing.assert_array_equal(decode(turned, False, None), np.rot90(COLOUR[0], -1))


def test_turned_photos_count_by_their_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    fill(tmp_path, COLOUR[:9])
    for n in (0, 3):
        (tmp_path / "cat" / f"{n:02}.png").write_bytes(encoded(np.rot90(COLOUR[n], -1), exif=exif))
    train, test = load_images(ImageConfig(f"images:{tmp_path}", holdout=0.4))
    assert pairs(train, test) == sorted((image.tobytes(), n % 3) for n, image in enumerate(COLOUR[:9]))


# Bad files


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


WHOLE = encoded(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8))
JPEG = encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
HUGE = (
    b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", b"")
)
NOISE = zlib.compress(bytes(10**8))  # 100 MB of text in a comment
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, I am a picture", "it is not a PNG or JPEG image"),
    "gif": (encoded(COLOUR[0], "GIF"), "it is not a PNG or JPEG image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is not a PNG or JPEG image"),
    "header": (WHOLE[:20], "its header is damaged"),
    "truncated": (WHOLE[:-60], "it cannot be decoded (image file is truncated"),
    "crc": (WHOLE[:29] + b"\x00\x00\x00\x00" + WHOLE[33:], "its header is damaged"),
    "jpeg_header": (JPEG[:40], "its header is damaged"),
    "jpeg_truncated": (JPEG[: len(JPEG) // 2], "it cannot be decoded (image file is truncated"),
    "bomb": (HUGE, "60000x60000 pixels are more than Pillow's limit"),
    "comment_bomb": (WHOLE[:33] + png_chunk(b"zTXt", b"a\0\0" + NOISE) + WHOLE[33:], "its header is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_or_skipped(tmp_path, kind):
    data, reason = BAD[kind]
    fill(tmp_path)
    (tmp_path / "dog" / "bad.png").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one message, and no Pillow warning beside it
        text = error(tmp_path, size=6)
        assert text.startswith(f"cannot use {tmp_path}/dog/bad.png: {reason}")
        assert text.endswith("mend it or pass --data.skip-broken")
        train, test = load_images(ImageConfig(f"images:{tmp_path}", size=6, skip_broken=True))
    assert len(train) + len(test) == 12
    assert len(train.notes) == 1
    assert train.notes[0].startswith(f"1 broken image skipped: {tmp_path}/dog/bad.png: {reason}")


def test_pillows_warning_limit_is_an_error(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in (47, 30, 20):  # up to twice the limit Pillow only warns
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(Broken, match=f"8x6 pixels are more than Pillow's limit of {limit}"):
                open_image(WHOLE)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48)
        assert open_image(WHOLE).size == (8, 6)


def test_several_broken_files_are_all_listed(tmp_path):
    fill(tmp_path)
    for name in ("x.png", "y.jpg", "z.JPEG"):
        (tmp_path / "cat" / name).write_bytes(b"no")
    note = load_images(ImageConfig(f"images:{tmp_path}", skip_broken=True))[0].notes[0]
    assert note.startswith("3 broken images skipped: ")
    assert all(f"{tmp_path}/cat/{name}: it is not" in note for name in ("x.png", "y.jpg", "z.JPEG"))


def test_nothing_but_broken_files_is_an_error(tmp_path):
    fill(tmp_path, [])
    for kind in ("header", "truncated"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(BAD[kind][0])
    assert "none of 2 images can be read" in error(tmp_path, skip_broken=True)


def test_empty_folders_are_named_or_skipped(tmp_path):
    assert f"{tmp_path} holds no class folder with images" in error(tmp_path)
    fill(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert f"class folder {tmp_path}/empty holds no .png, .jpg, .jpeg file" in error(tmp_path)
    train, test = load_images(ImageConfig(f"images:{tmp_path}", skip_broken=True))
    assert train.classes == ("cat", "dog", "eel")
    assert train.notes == (f"1 empty class folder skipped: {tmp_path}/empty",)
    assert test.notes == ()
    assert "is a file; images: takes a folder" in error(tmp_path / "empty" / "notes.txt")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    assert error(tmp_path) == f"cannot read {tmp_path}: Permission denied"


def test_hidden_files_and_other_types_are_passed_over(tmp_path):
    fill(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._00.png").write_bytes(b"what some systems leave")
    (tmp_path / "cat" / "readme.txt").write_text("not an image")
    train, test = load_images(ImageConfig(f"images:{tmp_path}"))
    assert len(train) + len(test) == 12


def test_more_than_memory_allows_points_to_records(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.setattr("zoo.data.pixels.MOST_BYTES", 12 * 6 * 8 * 3 - 1)
    text = error(tmp_path)
    assert "12 images of 8x6 would take 0.0 GiB" in text
    assert "lower --data.size" in text
    assert "tfds:NAME@DIR" in text
    assert load_images(ImageConfig(f"images:{tmp_path}", size=5))[0].shape == (5, 5, 3)


def test_a_class_that_lost_all_training_images_is_named(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    for file in (tmp_path / "train" / "eel").iterdir():
        file.write_bytes(b"no")
    text = error(tmp_path, skip_broken=True)
    assert "class 'eel' is in the test part but not in the training part" in text
