"""How near one image is to another: PSNR, SSIM and MS-SSIM, one float32 value an image.

Images are floats [B, H, W, C]. `data_range` is the distance between the lowest and the highest value that a pixel can
have, and never guessed: 1 for images in [0, 1], 2 for [-1, 1], 255 for pixels cast to float. All of it is plain jax,
for use inside `jit` and over a mesh.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError

SIGMA, RADIUS = 1.5, 5  # Wang et al. 2004: an 11×11 gaussian window
K1, K2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest


def psnr(x_bhwc: jax.Array, y_bhwc: jax.Array, *, data_range: float) -> jax.Array:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range² / mean squared error): float32 [B].

    Infinite for equal images. Averages over a set are of these values, not of the squared errors.
    Raises ZooError for images that are no floats, or of different shapes.
    """
    _check(x_bhwc, y_bhwc, data_range)
    error = x_bhwc.astype(jnp.float32) - y_bhwc.astype(jnp.float32)
    return 20 * jnp.log10(jnp.float32(data_range)) - 10 * jnp.log10(jnp.mean(jnp.square(error), axis=(1, 2, 3)))


def ssim(x_bhwc: jax.Array, y_bhwc: jax.Array, *, data_range: float) -> jax.Array:
    """Structural similarity (Wang et al. 2004, equation 13), 1 for equal images: float32 [B].

    With the settings of the paper: gaussian weights of sigma 1.5 in windows of 11×11 that lie wholly inside the image,
    variances divided by N and not by N - 1, K1 = 0.01, K2 = 0.03. The mean is over windows and channels. Raises
    ZooError for images smaller than a window, that are no floats, or of different shapes.
    """
    _check(x_bhwc, y_bhwc, data_range)
    if min(x_bhwc.shape[1:3]) < 2 * RADIUS + 1:
        raise ZooError(f"images of {_size(x_bhwc)} are smaller than SSIM's window of 11×11; enlarge them")
    full_bc, _ = _similarity(x_bhwc.astype(jnp.float32), y_bhwc.astype(jnp.float32), data_range)
    return jnp.mean(full_bc, axis=-1)


def ms_ssim(x_bhwc: jax.Array, y_bhwc: jax.Array, *, data_range: float, weights: Sequence[float] = SCALES) -> jax.Array:
    """Multi-scale structural similarity (Wang et al. 2003, equation 7), 1 for equal images: float32 [B].

    The product over scales of contrast and structure, each to the power of its weight, and of luminance at the coarsest
    scale; then the mean over channels. From scale to scale 2×2 pixels become their mean, and an odd edge is repeated.
    Terms below zero count as zero. The five weights of the paper need images of 161×161 or more: for smaller ones pass
    fewer weights, such as `SCALES[:2]` for 28×28, which are scaled to the sum of the five (1.0001). Scores of different
    weights do not compare. Raises ZooError for images smaller than that, that are no floats, or of different shapes.
    """
    _check(x_bhwc, y_bhwc, data_range)
    least = 2 * RADIUS * 2 ** max(0, len(weights) - 1) + 1
    if not weights or min(weights) <= 0 or min(x_bhwc.shape[1:3]) < least:
        raise ZooError(
            f"images of {_size(x_bhwc)}, and {len(weights)} scales, which need positive weights and {least}×{least};"
            " enlarge the images, or pass fewer weights: SCALES[:2] for 21×21, SCALES[:3] for 41×41"
        )
    x, y = x_bhwc.astype(jnp.float32), y_bhwc.astype(jnp.float32)
    result: jax.Array | float = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        full_bc, structure_bc = _similarity(x, y, data_range)
        term = full_bc if scale == len(weights) - 1 else structure_bc
        result = result * jnp.maximum(term, 0) ** (weight * sum(SCALES) / sum(weights))
    return jnp.mean(result, axis=-1)


def _similarity(x: jax.Array, y: jax.Array, data_range: float) -> tuple[jax.Array, jax.Array]:
    """Means over windows of luminance · contrast · structure, and of contrast · structure: float32 [B, C]."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # A variance does not change with the level, but E[x²] - E[x]² loses its digits to a high one.
    level_x, level_y = (jnp.mean(z, axis=(1, 2), keepdims=True) for z in (x, y))
    x, y = x - level_x, y - level_y
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x * mean_x, _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + level_x, mean_y + level_y
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return jnp.mean(luminance * structure, axis=(1, 2)), jnp.mean(structure, axis=(1, 2))


def _blur(x_bhwc: jax.Array) -> jax.Array:
    """Gaussian means over the windows that lie inside: [B, H - 10, W - 10, C].

    Sums of shifted images, which compile to one loop, in float32 also where convolutions round to bfloat16.
    """
    kernel = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).tolist()
    height, width = x_bhwc.shape[1] - 2 * RADIUS, x_bhwc.shape[2] - 2 * RADIUS
    rows = sum((weight * x_bhwc[:, i : i + height] for i, weight in enumerate(kernel)), jnp.float32(0))
    return sum((weight * rows[:, :, i : i + width] for i, weight in enumerate(kernel)), jnp.float32(0))


def _halve(x_bhwc: jax.Array) -> jax.Array:
    b, h, w, c = x_bhwc.shape
    x = jnp.pad(x_bhwc, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return jnp.mean(x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c), axis=(2, 4))


def _check(x: jax.Array, y: jax.Array, data_range: float) -> None:
    if x.ndim != 4 or x.shape != y.shape:
        raise ZooError(f"images are {list(x.shape)} and {list(y.shape)}; give two of one shape [B, H, W, C]")
    if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(y.dtype, jnp.floating)):
        raise ZooError(f"images are {x.dtype} and {y.dtype}; give floats, such as pixels / 255 with data_range=1")
    if not data_range > 0:
        raise ZooError(f"a data_range of {data_range}; give the width of the range of the values, such as 1 for [0, 1]")


def _size(x: jax.Array) -> str:
    return f"{x.shape[1]}×{x.shape[2]}"
