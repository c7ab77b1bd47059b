"""PSNR, SSIM and MS-SSIM: loops over windows, other libraries, and meshes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from zoo.errors import ZooError
from zoo.metrics.images import SCALES, ms_ssim, psnr, ssim

GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "metrics.safetensors")
PSNR, SSIM, MS_SSIM = (
    jax.jit(function, static_argnames=("data_range", "weights")[: 1 + (function is ms_ssim)])
    for function in (psnr, ssim, ms_ssim)
)


def floats(name):
    return jnp.asarray(GOLDEN[name], jnp.float32) / 255


def windows(x, y, data_range):
    """Means over windows of SSIM and of its contrast-structure term, in float64: [C] each."""
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    weights = (weights / weights.sum())[..., None]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    full, structure = [], []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (weights * a).sum((0, 1)), (weights * b).sum((0, 1))
            var_a, var_b = (weights * (a - mean_a) ** 2).sum((0, 1)), (weights * (b - mean_b) ** 2).sum((0, 1))
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum((0, 1))
            structure.append((2 * covariance + c2) / (var_a + var_b + c2))
            full.append(structure[-1] * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1))
    return np.mean(full, 0), np.mean(structure, 0)


def halved(x):
    """Means of 2×2 pixels; an odd edge is repeated."""
    rows, columns = (np.minimum(np.arange(n + n % 2), n - 1) for n in x.shape[:2])
    x = x[rows][:, columns]
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def test_psnr_by_hand():
    """An error of a tenth of the range everywhere is 20 dB; a quarter of the pixels with it, 6.02 dB more."""
    x = jnp.full((3, 2, 2, 1), 0.5)
    y = x.at[0].add(0.1).at[1, 0, 0].add(-0.1)
    np.testing.assert_allclose(PSNR(x, y, data_range=1.0), [20, 20 + 10 * np.log10(4), np.inf], rtol=1e-5)
    np.testing.assert_allclose(PSNR(255 * x, 255 * y, data_range=255.0), PSNR(x, y, data_range=1.0), rtol=1e-5)
    np.testing.assert_allclose(PSNR(x, y, data_range=2.0)[0], 20 + 20 * np.log10(2), rtol=1e-5)


def test_psnr_and_ssim_are_those_of_scikit_image():
    left, right = floats("left"), floats("right")
    assert GOLDEN["psnr"].max() - GOLDEN["psnr"].min() > 5, "the pairs differ in quality"
    assert GOLDEN["ssim"].max() - GOLDEN["ssim"].min() > 0.3
    np.testing.assert_allclose(PSNR(left, right, data_range=1.0), GOLDEN["psnr"], rtol=1e-5)
    np.testing.assert_allclose(SSIM(left, right, data_range=1.0), GOLDEN["ssim"], atol=2e-6)


def test_live_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    left, right = (GOLDEN[name].astype(np.float64) for name in ("left", "right"))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255.0}
    expected = [
        metrics.structural_similarity(a, b, channel_axis=-1, **settings) for a, b in zip(left, right, strict=True)
    ]
    result = SSIM(*(jnp.asarray(x, jnp.float32) for x in (left, right)), data_range=255.0)
    np.testing.assert_allclose(result, expected, atol=2e-6)
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=255.0) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(PSNR(left.astype("f4"), right.astype("f4"), data_range=255.0), expected, rtol=1e-5)


def test_ssim_equals_loops_over_windows():
    """In [-1, 1], with means near zero, which the luminance term feels."""
    left, right = 2 * floats("left") - 1, 2 * floats("right") - 1
    expected = [windows(np.float64(a), np.float64(b), 2.0)[0].mean() for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(SSIM(left, right, data_range=2.0), expected, atol=3e-6)


def test_ssim_of_bright_images_keeps_its_digits():
    """Faint structure on a high level: E[x²] - E[x]² in float32 would be wrong in the second digit."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(1, 16, 16, 1)), rng.normal(size=(1, 16, 16, 1))
    x, y = np.float32(0.999 + 1e-3 * x), np.float32(0.999 + 1e-3 * (x + noise))
    expected = windows(np.float64(x[0]), np.float64(y[0]), 0.01)[0].mean()
    np.testing.assert_allclose(SSIM(x, y, data_range=0.01), expected, rtol=1e-4)


def test_ms_ssim_is_that_of_pytorch_msssim():
    left, right = floats("large_left"), floats("large_right")
    assert 0.3 < GOLDEN["ms_ssim"][0] < 0.98
    np.testing.assert_allclose(MS_SSIM(left, right, data_range=1.0), GOLDEN["ms_ssim"], atol=1e-6)


def test_live_pytorch_msssim():
    torch, library = pytest.importorskip("torch"), pytest.importorskip("pytorch_msssim")
    pair = [torch.from_numpy(GOLDEN[name] / 255).permute(0, 3, 1, 2) for name in ("large_left", "large_right")]
    expected = library.ms_ssim(*pair, data_range=1.0, size_average=False)
    np.testing.assert_allclose(
        MS_SSIM(floats("large_left"), floats("large_right"), data_range=1.0), expected, atol=1e-6
    )


def test_ms_ssim_of_odd_sizes_and_two_scales_equals_loops():
    left, right = floats("left")[:, :, :25], floats("right")[:, :, :25]
    first, second = (weight * sum(SCALES) / (SCALES[0] + SCALES[1]) for weight in SCALES[:2])
    expected = []
    for a, b in zip(np.float64(left), np.float64(right), strict=True):
        fine, coarse = windows(a, b, 1.0)[1], windows(halved(a), halved(b), 1.0)[0]
        expected.append(np.mean(fine**first * coarse**second))
    np.testing.assert_allclose(MS_SSIM(left, right, data_range=1.0, weights=SCALES[:2]), expected, atol=3e-6)


def test_equal_images_and_opposite_ones():
    x = floats("left")
    np.testing.assert_allclose(SSIM(x, x, data_range=1.0), 1, rtol=1e-6)
    assert np.all(SSIM(x, 1 - x, data_range=1.0) < 0)
    np.testing.assert_array_equal(MS_SSIM(x, 1 - x, data_range=1.0, weights=SCALES[:2]), 0)  # a negative base


def test_the_same_over_a_mesh():
    """One value an image, wherever it lies: 8 devices with one image each."""
    pairs = [jnp.tile(floats(name), (3, 1, 1, 1))[:8, :24, :24] for name in ("left", "right")]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in pairs]

    @jax.jit
    def both(x, y):
        return psnr(x, y, data_range=1.0), ms_ssim(x, y, data_range=1.0, weights=SCALES[:2])

    for result, expected in zip(both(*spread), both(*pairs), strict=True):
        assert (result.shape, result.dtype) == ((8,), jnp.float32)
        assert len(result.sharding.device_set) == 8
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_half_precision_is_judged_in_float32():
    x, y = floats("left").astype(jnp.bfloat16), floats("right").astype(jnp.bfloat16)
    expected = SSIM(x.astype(jnp.float32), y.astype(jnp.float32), data_range=1.0)
    result = SSIM(x, y, data_range=1.0)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: psnr(x, x[:, :-1], data_range=1), r"\[2, 12, 12, 1\] and \[2, 11, 12, 1\]"),
        (lambda x: psnr(x[0], x[0], data_range=1), r"\[B, H, W, C\]"),
        (lambda x: psnr(x, x.astype(jnp.uint8), data_range=255), "uint8; give floats"),
        (lambda x: ssim(x, x, data_range=0), "data_range of 0"),
        (lambda x: ssim(x[:, :10], x[:, :10], data_range=1), "images of 10×12 are smaller"),
        (lambda x: ms_ssim(x, x, data_range=1), "161×161"),
        (lambda x: ms_ssim(x, x, data_range=1, weights=()), "0 scales"),
        (lambda x: ms_ssim(x, x, data_range=1, weights=(0.5, -0.5)), "positive weights"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ZooError, match=message):
        call(jnp.zeros((2, 12, 12, 1)))
