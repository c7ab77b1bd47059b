"""Weights by a formula, so that a golden file for a large network holds only its logits."""

import numpy as np


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 weights of a torchvision ResNet: the same for the same name and shape, everywhere."""
    rate = 1 + 0.001 * sum(i * byte for i, byte in enumerate(name.encode(), 1))
    wave = np.sin(rate * np.arange(1, np.prod(shape) + 1) ** 1.5).reshape(shape)
    if name.endswith("running_var"):
        return (1 + 0.5 * wave).astype(np.float32)
    if len(shape) == 1:
        return ((0.0 if name.endswith(("bias", "mean")) else 1.0) + 0.3 * wave).astype(np.float32)
    return (wave * np.sqrt(4 / np.prod(shape[1:]))).astype(np.float32)
