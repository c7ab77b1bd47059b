"""Writes metrics.safetensors: images and features with their scores by other libraries.

Run with scikit-image, pytorch-msssim, torch-fidelity, clean-fid and prdc: python tests/golden/make_metrics.py
"""

from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance
from prdc import compute_prdc
from pytorch_msssim import ms_ssim
from safetensors.numpy import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_poly, mmd2

rng = np.random.default_rng(0)


def picture(height, width, channels):
    """Waves, an edge and noise, uint8."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (3 + c)) * np.cos(y / (5 + c)) for c in range(channels)], -1)
    edge = (x > width // 2)[..., None] * 40.0
    return np.clip(110 + 60 * waves + edge + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)


def disturbed(image, noise):
    return np.clip(0.9 * image + 12 + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


left = np.stack([picture(31, 26, 3) for _ in range(3)])
right = np.stack([disturbed(image, noise) for image, noise in zip(left, (2, 10, 60), strict=True)])
large_left = np.stack([picture(176, 176, 1)])  # divisible by 16: libraries pad odd sizes in different ways
large_right = np.stack([disturbed(image, 25) for image in large_left])
pairs = [(a / 255, b / 255) for a, b in zip(left, right, strict=True)]
wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1, "data_range": 1.0}
tensors = [torch.from_numpy(x / 255).permute(0, 3, 1, 2) for x in (large_left, large_right)]

mix = rng.normal(size=(6, 6))
real = np.maximum(rng.normal(size=(150, 6)) @ mix + 1, 0).astype(np.float32)
fake = np.maximum(1.2 * rng.normal(size=(150, 6)) @ mix + 0.6, 0).astype(np.float32)
x, y = real.astype(np.float64), fake.astype(np.float64)
moments = [(z.mean(0), np.cov(z, rowvar=False)) for z in (x, y)]
statistics = [{"mu": mu, "sigma": sigma} for mu, sigma in moments]
fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
kernel = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
logits = rng.normal(size=(150, 10)) * 3
neighbours = {k: compute_prdc(x, y, k) for k in (3, 5)}

save_file(
    {
        "left": left,
        "right": right,
        "psnr": np.array([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]),
        "ssim": np.array([structural_similarity(a, b, **wang) for a, b in pairs]),
        "large_left": large_left,
        "large_right": large_right,
        "ms_ssim": ms_ssim(*tensors, data_range=1.0, size_average=False).numpy(),
        "real": real,
        "fake": fake,
        "frechet": np.array([fid, frechet_distance(*moments[0], *moments[1])]),
        "mmd2": np.array(mmd2(*(kernel_poly(a, b, **kernel) for a, b in ((x, x), (x, y), (y, y))))),
        "precision_recall": np.array([neighbours[3][name] for name in ("precision", "recall")]),
        "density_coverage": np.array([neighbours[5][name] for name in ("density", "coverage")]),
        "logits": logits,
        "inception_score": np.array(
            [
                isc_features_to_metric(torch.from_numpy(logits), n, shuffle=False)["inception_score_mean"]
                for n in (1, 10)
            ]
        ),
    },
    Path(__file__).with_name("metrics.safetensors"),
)
