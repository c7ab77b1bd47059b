"""Where batches come from: sources of images and text, the step-indexed pipeline, augmentation.

Names load on first use, so that `import zoo.data` costs nothing and reading data needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.data.augment import AugmentConfig
    from zoo.data.images import ImageConfig, Images, ImageSource, load_images
    from zoo.data.pipeline import Batches, InOrder, Shuffled, Windows, in_order, windows_in_order
    from zoo.data.text import Text, TextConfig, codec_from_json, load_text

_HOMES = {
    "augment": ("AugmentConfig",),  # the function shares its module's name: from zoo.data.augment import augment
    "images": ("ImageConfig", "ImageSource", "Images", "load_images"),
    "pipeline": ("Batches", "InOrder", "Shuffled", "Windows", "in_order", "windows_in_order"),
    "text": ("Text", "TextConfig", "codec_from_json", "load_text"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AugmentConfig",
    "Batches",
    "ImageConfig",
    "ImageSource",
    "Images",
    "InOrder",
    "Shuffled",
    "Text",
    "TextConfig",
    "Windows",
    "codec_from_json",
    "in_order",
    "load_images",
    "load_text",
    "windows_in_order",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
