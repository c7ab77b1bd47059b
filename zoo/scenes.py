"""The front door to the scene model: draw, describe, answer and edit, on Pillow's images.

The model knows scenes of one to four things (`zoo.data.scenes`) at the one size that it was trained at. Other sizes are
resized, on the way in and on the way out.
"""

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageEnhance

from zoo.data.damage import EMPTY
from zoo.errors import ZooError, unknown

if TYPE_CHECKING:
    from zoo.generate.scenes import SceneModel

Source = str | os.PathLike[str]
HOW = ("", "noise", "enhance")
RANK = 8  # drawings or descriptions for each that is given back


def draw(
    text: str | None,
    *,
    model: Source = "scenes",
    width: int = 64,
    height: int = 64,
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    rank: int = RANK,
) -> list[Image.Image]:
    """n pictures of a text such as "a blue circle with some spots"; of anything, where it is None.

    `model` is a name, a run folder of scenes.py, or one that holds decoder and tokenizer. Guidance and temperature are
    the model's own if not given. With `rank`, so many pictures are drawn for each that is given back, and the model's
    own reading chooses. Raises ZooError for words that the model does not know, with the nearest that it does.
    """
    if min(width, height) < 1:
        raise ZooError(f"a picture of {width}×{height} pixels; both must be at least 1")
    loaded = scene_model(model)
    given = {"guidance": guidance, "temperature": temperature}
    options = {name: value for name, value in given.items() if value is not None}
    drawn = loaded.draw([text], n=n, seed=seed, rank=rank, **options)[0]
    return [resized(Image.fromarray(pixels), width, height) for pixels in drawn]


def describe(image: Image.Image, *, model: Source = "scenes", rank: int = RANK, seed: int = 0) -> str:
    """A sentence that tells all of a picture: of `rank` that are tried, the one that it is the likeliest drawn from."""
    loaded = scene_model(model)
    return loaded.describe(pixels_of(image, loaded.size)[None], rank, seed)[0]


def answer(
    question: str, *, image: Image.Image | None = None, text: str | None = None, model: Source = "scenes"
) -> str:
    """The answer to a question about a picture, or about a description. Raises ZooError unless just one is given."""
    loaded = scene_model(model)
    images = None if image is None else pixels_of(image, loaded.size)[None]
    return loaded.answer([question], images, None if text is None else [text])[0]


def edit(
    image: Image.Image,
    how: Literal["", "noise", "enhance"] = "",
    *,
    mask: Image.Image | np.ndarray | None = None,
    crop: Sequence[int] | None = None,
    resize: tuple[int, int] | None = None,
    rotate: float = 0.0,
    contrast: float = 1.0,
    sharpness: float = 1.0,
    colour: float = 1.0,
    model: Source = "scenes",
) -> Image.Image:
    """A picture changed by the model, then by Pillow; in the order of the arguments.

    "noise" draws the scene anew without its noise, at the picture's size; "enhance" does that at the model's own size
    at least. `mask`, an image or bool [height, width], is true where the picture is lost: only there it changes.
    `crop` is (left, top, right, bottom) in pixels, `resize` (width, height), `rotate` degrees against the clock;
    contrast, sharpness and colour are factors, 1 for none. Raises ZooError for a mask of another size, a box outside
    of the picture, and sizes or factors below their least.
    """
    if how not in HOW:
        raise unknown("edit", how, HOW[1:])
    image = image.convert("RGB")
    if mask is not None:
        image = _filled(image, np.asarray(mask), scene_model(model))
    if how:
        loaded = scene_model(model)
        clean = Image.fromarray(loaded.clean(pixels_of(image, loaded.size)[None])[0])
        least = loaded.size if how == "enhance" else 1
        image = resized(clean, max(image.width, least), max(image.height, least))
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise ZooError(f"crop {tuple(crop)} is no box inside of the picture of {image.width}×{image.height}")
        image = image.crop((left, top, right, bottom))
    if resize is not None:
        if min(resize) < 1:
            raise ZooError(f"resize to {resize[0]}×{resize[1]} pixels; both must be at least 1")
        image = resized(image, *resize)
    if rotate:
        image = image.rotate(rotate, Image.Resampling.BICUBIC, expand=True)
    factors = {"contrast": contrast, "sharpness": sharpness, "colour": colour}
    if wrong := [f"{name} {factor}" for name, factor in factors.items() if not factor >= 0]:
        raise ZooError(f"{', '.join(wrong)}: factors must be 0 or more, and 1 changes nothing")
    for enhance, factor in (
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Sharpness, sharpness),
        (ImageEnhance.Color, colour),
    ):
        if factor != 1:
            image = enhance(image).enhance(factor)
    return image


def scene_model(source: Source = "scenes") -> "SceneModel":
    """The decoder and the tokenizer of a name or folder, loaded once."""
    return _loaded(str(source))


@functools.lru_cache(maxsize=2)
def _loaded(source: str) -> "SceneModel":
    from zoo.generate.scenes import SceneModel
    from zoo.models.decoder import Decoder
    from zoo.models.tokenizer import Tokenizer
    from zoo.weights.files import load, part_of

    decoder, tokenizer = load(source), load(part_of(source, "tokenizer"))
    if not isinstance(decoder, Decoder) or not isinstance(tokenizer, Tokenizer):
        raise ZooError(f"{source} does not hold a decoder with its tokenizer; give a run folder of scenes.py")
    return SceneModel(decoder, tokenizer)


def pixels_of(image: Image.Image, size: int) -> np.ndarray:
    """A picture as the model sees it: uint8 [size, size, 3]. Raises ZooError for one that is not square."""
    if image.width != image.height:
        raise ZooError(f"the picture is {image.width}×{image.height}; the model sees squares, so crop it to one first")
    return np.asarray(resized(image.convert("RGB"), size, size))


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """By the means of squares where it becomes smaller by a whole number; small pictures that become larger by one
    keep their pixels as squares, which such means give back; else smoothly."""
    if image.size == (width, height):
        return image
    whole = image.width % width == 0 and image.height % height == 0
    repeats = width % image.width == 0 and height % image.height == 0 and image.width < 64
    how = Image.Resampling.BOX if whole or repeats else Image.Resampling.LANCZOS
    return image.resize((width, height), how)


def _filled(image: Image.Image, mask: np.ndarray, model: "SceneModel") -> Image.Image:
    mask = np.asarray(mask.any(axis=-1) if mask.ndim == 3 else mask, bool)
    if mask.shape != (image.height, image.width):
        raise ZooError(f"the mask is {'×'.join(map(str, mask.shape[::-1]))}, the picture {image.width}×{image.height}")
    lost = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((model.size,) * 2, Image.Resampling.BOX)) > 0
    seen = np.where(lost[..., None], np.uint8(EMPTY), pixels_of(image, model.size))
    found = resized(Image.fromarray(model.clean(seen[None], lost[None])[0]), image.width, image.height)
    return Image.fromarray(np.where(mask[..., None], np.asarray(found), np.asarray(image)))
