"""Pictures of pictures: images side by side, as uint8 pixels that a run folder writes as PNG."""

import numpy as np

GAP = 2  # pixels between images


def to_pixels(images: np.ndarray, low: float = 0.0) -> np.ndarray:
    """uint8 [..., C] of floats in [low, 1], clipped: `low` is 0, or -1 for the outputs of tanh."""
    scaled = (np.asarray(images, np.float32) - low) / (1 - low)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def picture_grid(images: np.ndarray, columns: int, zoom: int = 1) -> np.ndarray:
    """One picture uint8 [H, W, 3] of images uint8 [N, h, w, 1 or 3], row by row, each pixel `zoom` wide."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    images = np.broadcast_to(images, (n, h, w, 3)).repeat(zoom, axis=1).repeat(zoom, axis=2)
    h, w = h * zoom + GAP, w * zoom + GAP
    sheet = np.full((rows * h + GAP, columns * w + GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * h, GAP + i % columns * w
        sheet[top : top + h - GAP, left : left + w - GAP] = image
    return sheet
