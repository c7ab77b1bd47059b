"""From untrusted files and arrays to uint8 pixels and class numbers, or one clear reason why not."""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from zoo.errors import ZooError

Channels = Literal["auto", "gray", "rgb"]
GRAY = ("1", "L", "LA", "La", "I", "F")  # Pillow's modes without colour, and all whose name begins with I;16
MOST_BYTES = 4 << 30  # of decoded images to hold in memory


class Broken(Exception):
    """Why an image cannot be used; the reader adds which one."""

    def __init__(self, reason: str, cause: Exception | None = None):
        super().__init__(f"{reason} ({one_line(cause)})" if cause else reason)


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples as read: `image` uint8 [N, H, W, C], `label` int32 [N], and `key` uint64 [N], a hash of the content."""

    image: np.ndarray
    label: np.ndarray
    key: np.ndarray

    def __getitem__(self, which: np.ndarray) -> "Part":
        return Part(self.image[which], self.label[which], self.key[which])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a source holds. `test` is None where it has no test part of its own."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def settle(broken: dict[int, str], where: Callable[[int], str], skip_broken: bool) -> tuple[str, ...]:
    """The note that counts and lists what is left out, if anything; without `skip_broken`, an error about the first."""
    if not broken:
        return ()
    if not skip_broken:
        first = min(broken)
        raise ZooError(f"cannot use {where(first)}: {broken[first]}; mend it or pass --data.skip-broken")
    listed = "; ".join(f"{where(i)}: {reason}" for i, reason in sorted(broken.items()))
    return (f"{len(broken)} broken image{'s' * (len(broken) > 1)} skipped: {listed}",)


def check_memory(count: int, height: int, width: int, channels: int) -> None:
    """Raises ZooError where so many decoded images would take more than `MOST_BYTES`."""
    size = count * height * width * channels
    if size > MOST_BYTES:
        raise ZooError(
            f"{count} images of {width}x{height} would take {size / 2**30:.1f} GiB of memory; lower --data.size, "
            "or prepare them as array_record and read them with tfds:NAME@DIR"
        )


def open_image(data: bytes) -> Image.Image:
    """A PNG or JPEG file, header read and pixels not. Raises Broken for all else and for decompression bombs.

    The two readers are called by name: `Image.open` would try every format Pillow knows on untrusted bytes.
    """
    if not data:
        raise Broken("the file is empty")
    image: Image.Image
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        elif data.startswith(b"\xff\xd8"):
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        else:
            raise Broken("it is not a PNG or JPEG image")
    except Broken:
        raise
    except Exception as error:  # Pillow raises many types for what is malformed
        raise Broken("its header is damaged", error) from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise Broken(
            f"{image.width}x{image.height} pixels are more than Pillow's limit of {limit}: a decompression bomb"
        )
    return image


def is_gray(image: Image.Image) -> bool:
    return image.mode in GRAY or image.mode.startswith("I;16")


def decode(data: bytes, gray: bool, size: int | None) -> np.ndarray:
    """The pixels of a PNG or JPEG file, uint8 [H, W, 1 or 3], upright; `size` as in `fit`. Raises Broken.

    16 bits are scaled to 8, transparency is laid over white.
    """
    image = open_image(data)
    try:
        if _has_orientation(image):
            image = ImageOps.exif_transpose(image)
        if image.mode == "I" or image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255.
            image = Image.fromarray((np.asarray(image, np.uint32) // 257).clip(0, 255).astype(np.uint8))
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = fit(image.convert("L" if gray else "RGB"), size)
    except Exception as error:  # as above
        raise Broken("it cannot be decoded", error) from None
    return np.array(image).reshape(image.height, image.width, -1)


def upright_shape(image: Image.Image) -> tuple[int, int]:
    """Height and width that `decode` will find, from the header alone."""
    try:
        turned = _has_orientation(image) and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise Broken("its header is damaged", error) from None
    return (image.width, image.height) if turned else (image.height, image.width)


def _has_orientation(image: Image.Image) -> bool:
    # Pillow would decode a whole PNG in search of what it may hold behind the pixels.
    return "exif" in image.info


def fit(image: Image.Image, size: int | None) -> Image.Image:
    """The shorter side resized to `size` (bilinear, antialiased), the middle square cropped; None changes nothing."""
    if size is None or image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def fit_all(images: np.ndarray, channels: Channels, size: int | None) -> np.ndarray:
    """uint8 [N, H, W, C] with the channels and the size asked for."""
    gray = images.shape[-1] == 1 if channels == "auto" else channels == "gray"
    if gray == (images.shape[-1] == 1) and (size is None or images.shape[1:3] == (size, size)):
        return images
    height, width = (size, size) if size else images.shape[1:3]
    check_memory(len(images), height, width, 1 if gray else 3)
    fitted = np.zeros((len(images), height, width, 1 if gray else 3), np.uint8)
    for i, image in enumerate(images):
        pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L" if gray else "RGB")
        fitted[i] = np.asarray(fit(pillow, size)).reshape(fitted.shape[1:])
    return fitted


def as_images(pixels: np.ndarray, where: Callable[[int], str]) -> tuple[np.ndarray, dict[int, str]]:
    """Arrays as uint8 [N, H, W, C], and the reason for each index that is broken (its pixels are then zero).

    Takes [N, H, W], [N, H, W, 1 or 3], or flattened squares [N, P]; whole numbers of 0..255, or floats
    in [0, 1], which are scaled. `where(i)` names example i in errors.
    """
    if pixels.dtype.kind not in "uifb":
        raise ZooError(f"{where(0)}: pixels are of type {pixels.dtype}; they must be whole numbers or floats")
    if pixels.ndim == 2:
        pixels = pixels.reshape(len(pixels), *square(pixels.shape[1], where(0)))
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ZooError(
            f"{where(0)}: images of shape {list(pixels.shape)}; they must be [N, height, width] or "
            "[N, height, width, 1 or 3], channels last"
        )
    if pixels.dtype == np.uint8:
        return pixels, {}
    flat = pixels.reshape(len(pixels), -1)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255), {}
    broken: dict[int, str] = {}
    finite = np.isfinite(flat).all(1)
    low, high = flat.min(1), flat.max(1)
    scale = pixels.dtype.kind == "f" and bool(finite.any()) and float(high[finite].max()) <= 1
    whole = np.ones(len(flat), bool) if scale or pixels.dtype.kind != "f" else (flat == np.round(flat)).all(1)
    for i in np.flatnonzero(~finite | (low < 0) | (high > 255) | ~whole):
        if not finite[i]:
            broken[int(i)] = "NaN or infinite pixels"
        elif low[i] < 0 or high[i] > 255:
            broken[int(i)] = f"pixels from {low[i]:g} to {high[i]:g}, outside [0, 1] and 0..255"
        else:
            broken[int(i)] = "pixels that are neither whole numbers of 0..255 nor within [0, 1]"
    pixels = np.where(np.isin(np.arange(len(flat)), list(broken))[:, None, None, None], 0, pixels)
    return np.round(pixels * 255 if scale else pixels).astype(np.uint8), broken


def square(pixels: int, where: str) -> tuple[int, int, int]:
    """Shape [H, W, C] of a flattened square image with one or three channels."""
    for channels in (1, 3):
        side = round((pixels / channels) ** 0.5)
        if pixels and side * side * channels == pixels:
            return side, side, channels
    raise ZooError(f"{where}: {pixels} pixels are not a square image of one or three channels")


def content_key(content: np.ndarray | bytes) -> int:
    """A 64-bit hash of one example."""
    data = content.tobytes() if isinstance(content, np.ndarray) else content
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def content_keys(images: np.ndarray) -> np.ndarray:
    """`content_key` of each image, uint64 [N]."""
    return np.array([content_key(image) for image in images], np.uint64)


def number(
    labels: np.ndarray, where: Callable[[int], str], count: int | None = None, classes: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...], dict[int, str]]:
    """Labels as int32 [N] class numbers, the class names, and the reason for each index whose label is none (0 there).

    Names (strings) are numbered in sorted order. Numbers must be whole and, so that a stray one is
    noticed, count up from 0 or 1 without a gap; with `count` they may be any of 0..count-1. A test
    part passes the `classes` of its training part. `where(i)` names label i in errors.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "uifbU":
        raise ZooError(
            f"{where(0)}: labels of type {labels.dtype} and shape {list(labels.shape)}; "
            "they must be one whole number or one name per image"
        )
    if labels.dtype.kind == "U" and (classes is None or all(name.isdecimal() for name in classes)):
        with contextlib.suppress(ValueError):  # then they are names
            labels = labels.astype(np.float64)  # as a table with gaps writes "3.0" for 3
    broken: dict[int, str] = {}
    names: list[str] = []
    for i, label in enumerate(labels.tolist()):
        if isinstance(label, float) and not label.is_integer():
            broken[i] = f"label {label} is not a whole number"
        names.append(label if isinstance(label, str) else "" if i in broken else str(int(label)))
    rule = "the classes are "
    if classes is None and count is not None and labels.dtype.kind != "U":
        classes = tuple(str(i) for i in range(count))
    elif classes is None and labels.dtype.kind != "U":
        values = {int(name) for i, name in enumerate(names) if i not in broken}
        last = first = 0 if 0 in values else 1
        while last in values:
            last += 1
        classes = tuple(str(i) for i in range(first, last))
        rule = (
            "numbers count up from 0 or 1 without a gap, unless --data.classes says how many there are; here they are "
        )
    elif classes is None:
        classes = tuple(sorted(set(names)))
    index = {name: i for i, name in enumerate(classes)}
    few = ", ".join(classes if len(classes) <= 12 else (*classes[:10], "...", classes[-1])) or "none"
    for i, name in enumerate(names):
        if name not in index:
            broken.setdefault(i, f"label {name} is out of range: {rule}{few}")
    return np.array([index.get(name, 0) for name in names], np.int32), classes, broken
