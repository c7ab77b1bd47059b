"""Augmentation on the device, inside the training step, with a key of its own for every example.

What happens to an example depends on the step's key and its row in the global batch, and so is the
same on every mesh. Each operation draws from its own stream: switching one on changes no other.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    flip: bool = False
    """Mirror half of the images left to right."""
    crop: int = 0
    """Pad with this many black pixels on each side and crop back at a random place."""
    rotate: float = 0.0
    """Rotate by an angle drawn from plus or minus this many degrees."""
    scale: float = 0.0
    """Zoom by a factor drawn log-uniformly between 1 / (1 + scale) and 1 + scale."""
    brightness: float = 0.0
    """Multiply by a factor drawn from 1 - brightness to 1 + brightness."""
    contrast: float = 0.0
    """Multiply the distance from the image's mean gray by a factor drawn from 1 - contrast to 1 + contrast."""
    cutout: int = 0
    """Blacken a square with sides of this many pixels around a random pixel (DeVries and Taylor, 2017)."""
    mixup: float = 0.0
    """Mix image and label with the next example's, by a share from Beta(mixup, mixup) (Zhang et al., 2018)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ZooError(f"augmentation {field.name} is {getattr(self, field.name)}: it must be 0 (off) or more")


def augment(
    config: AugmentConfig, key: jax.Array, image_bhwc: jax.Array, label_b: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Images float32 [B, H, W, C] in [0, 1] and soft labels float32 [B, classes] of a training batch.

    `image_bhwc` is uint8, or float in [0, 1]; `label_b` holds class numbers. Pure; call it in the step.
    """
    if jnp.issubdtype(image_bhwc.dtype, jnp.integer):
        image_bhwc = image_bhwc.astype(jnp.float32) * (1 / 255)
    image_bhwc = image_bhwc.astype(jnp.float32)
    label_bk = jax.nn.one_hot(label_b, classes, dtype=jnp.float32)
    if config == AugmentConfig():
        return image_bhwc, label_bk
    key_b = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(image_bhwc.shape[0]))
    image_bhwc = jax.vmap(lambda key, image: _augment_one(config, key, image))(key_b, image_bhwc)
    if config.mixup:
        share_b = jax.vmap(lambda key: jax.random.beta(_stream(key, "mixup"), config.mixup, config.mixup))(key_b)
        # Batches are shuffled, so a neighbour is a random partner, and rolling moves little between devices.
        image_bhwc = _mix(share_b[:, None, None, None], image_bhwc, jnp.roll(image_bhwc, -1, 0))
        label_bk = _mix(share_b[:, None], label_bk, jnp.roll(label_bk, -1, 0))
    return image_bhwc, label_bk


def crop_and_scale(image_hwc: jax.Array, down: jax.Array, right: jax.Array, factor: jax.Array | float) -> jax.Array:
    """What a window of the image's size shows that begins at the pixel (down, right), enlarged about its centre.

    Bilinear; zero outside of the image and of the window. One product with a matrix for rows, and one for columns: a
    TPU cuts every image out by itself otherwise, a loop over the batch.
    """
    height, width, _ = image_hwc.shape
    rows, columns = _shares(height, down, factor), _shares(width, right, factor)
    with jax.named_scope("as_product"):
        return jnp.einsum("ij,jkc,lk->ilc", rows, image_hwc, columns, precision="highest")


def _shares(size: int, first: jax.Array, factor: jax.Array | float) -> jax.Array:
    """How much of each pixel of a line is in each pixel of its window, float32 [size, size]."""
    at, middle = jnp.arange(size, dtype=jnp.float32), (size - 1) / 2
    within = (at - jnp.asarray(first, jnp.float32))[None]  # places of the image's pixels in the window
    shares = jnp.maximum(0, 1 - jnp.abs(((at - middle) / factor + middle)[:, None] - within))
    return jnp.where((within >= 0) & (within < size), shares, 0)


def rotate_and_scale(image_hwc: jax.Array, degrees: jax.Array, factor: jax.Array) -> jax.Array:
    """Turned counter-clockwise and enlarged about the centre, by one bilinear sampling; zero outside."""
    height, width, channels = image_hwc.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - middle_y
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - middle_x
    sin, cos = jnp.sin(jnp.deg2rad(degrees)) / factor, jnp.cos(jnp.deg2rad(degrees)) / factor
    # Where each pixel comes from: the inverse map, with y pointing down.
    from_y = cos * y + sin * x + middle_y
    from_x = cos * x - sin * y + middle_x
    top, left = jnp.floor(from_y), jnp.floor(from_x)
    # A border of zeros, two wide, makes every corner of every sample a plain lookup.
    flat = jnp.pad(image_hwc, ((2, 2), (2, 2), (0, 0))).reshape(-1, channels)
    row = jnp.clip(top, -2, height).astype(jnp.int32) + 2
    column = jnp.clip(left, -2, width).astype(jnp.int32) + 2
    at = row * (width + 4) + column
    low, across = (from_y - top)[..., None], (from_x - left)[..., None]
    upper = _mix(1 - across, flat[at], flat[at + 1])
    lower = _mix(1 - across, flat[at + width + 4], flat[at + width + 5])
    return _mix(1 - low, upper, lower)


def change_contrast(image_hwc: jax.Array, factor: jax.Array) -> jax.Array:
    """factor · image + (1 - factor) · its mean gray (ITU-R 601 luma), clipped to [0, 1]."""
    luma = jnp.array([0.299, 0.587, 0.114], jnp.float32) if image_hwc.shape[-1] == 3 else jnp.ones(1, jnp.float32)
    return jnp.clip(_mix(factor, image_hwc, jnp.sum(jnp.mean(image_hwc, (0, 1)) * luma)), 0, 1)


def cut_out(image_hwc: jax.Array, size: int, y: jax.Array, x: jax.Array) -> jax.Array:
    """Zero in the size × size square whose pixel (size // 2, size // 2) lies at (y, x); the border clips it."""
    height, width, _ = image_hwc.shape
    rows = jnp.arange(height) - y + size // 2
    columns = jnp.arange(width) - x + size // 2
    inside = ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))[None, :]
    return jnp.where(inside[..., None], 0.0, image_hwc)


def _augment_one(config: AugmentConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    height, width, _ = image.shape

    def uniform(name: str, low: float, high: float) -> jax.Array:
        return jax.random.uniform(_stream(key, name), (), jnp.float32, low, high)

    def two(name: str, below: tuple[int, int]) -> jax.Array:
        return jax.random.randint(_stream(key, name), (2,), 0, jnp.array(below))

    if config.flip:
        image = jnp.where(uniform("flip", 0, 1) < 0.5, image[:, ::-1], image)
    zoom = math.log1p(config.scale)
    factor = jnp.exp(uniform("scale", -zoom, zoom)) if config.scale else 1.0
    if config.crop or (config.scale and not config.rotate):
        first = two("crop", (2 * config.crop + 1, 2 * config.crop + 1)) - config.crop
        image = crop_and_scale(image, first[0], first[1], 1.0 if config.rotate else factor)
    if config.rotate:
        degrees = uniform("rotate", -config.rotate, config.rotate)
        image = rotate_and_scale(image, degrees, jnp.asarray(factor))
    if config.brightness:
        image = jnp.clip(image * uniform("brightness", max(0, 1 - config.brightness), 1 + config.brightness), 0, 1)
    if config.contrast:
        image = change_contrast(image, uniform("contrast", max(0, 1 - config.contrast), 1 + config.contrast))
    if config.cutout:
        image = cut_out(image, config.cutout, *two("cutout", (height, width)))
    return image


_STREAMS = ("flip", "crop", "rotate", "scale", "brightness", "contrast", "cutout", "mixup")


def _stream(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, _STREAMS.index(name))


def _mix(share: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    return share * one + (1 - share) * other
