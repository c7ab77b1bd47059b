"""Where batches come from: sources of images, scenes, text and dialogues, the step-indexed pipeline, augmentation.

Names load on first use, so that `import zoo.data` costs nothing and reading data needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.data.augment import AugmentConfig
    from zoo.data.chat import (
        Dialogue,
        Rows,
        encode_dialogue,
        encode_preferences,
        encode_prompt,
        end_ids,
        pack,
        read_dialogues,
        read_preferences,
        template_of,
    )
    from zoo.data.dialogues import dialogue_corpus, load_dialogues, load_preferences
    from zoo.data.images import ImageConfig, Images, ImageSource, load_images
    from zoo.data.pipeline import Batches, InOrder, Shuffled, Windows, in_order, windows_in_order
    from zoo.data.scenes import Scenes
    from zoo.data.sentencepiece import SentencePiece
    from zoo.data.sequences import SceneFactors, SceneMix, SceneRows, Vocabulary, fill
    from zoo.data.template import render
    from zoo.data.text import Text, TextConfig, codec_from_json, load_text
    from zoo.data.tokenizer import Stream, Subwords, train_bpe
    from zoo.data.tokenizer_files import load_tokenizer, tokenizer_from_gguf

_HOMES = {
    "augment": ("AugmentConfig",),  # the function shares its module's name: from zoo.data.augment import augment
    "chat": (
        "Dialogue",
        "Rows",
        "encode_dialogue",
        "encode_preferences",
        "encode_prompt",
        "end_ids",
        "pack",
        "read_dialogues",
        "read_preferences",
        "template_of",
    ),
    "dialogues": ("dialogue_corpus", "load_dialogues", "load_preferences"),
    "images": ("ImageConfig", "ImageSource", "Images", "load_images"),
    "pipeline": ("Batches", "InOrder", "Shuffled", "Windows", "in_order", "windows_in_order"),
    "scenes": ("Scenes",),
    "sentencepiece": ("SentencePiece",),
    "sequences": ("SceneFactors", "SceneMix", "SceneRows", "Vocabulary", "fill"),
    "template": ("render",),
    "text": ("Text", "TextConfig", "codec_from_json", "load_text"),
    "tokenizer": ("Stream", "Subwords", "train_bpe"),
    "tokenizer_files": ("load_tokenizer", "tokenizer_from_gguf"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AugmentConfig",
    "Batches",
    "Dialogue",
    "ImageConfig",
    "ImageSource",
    "Images",
    "InOrder",
    "Rows",
    "SceneFactors",
    "SceneMix",
    "SceneRows",
    "Scenes",
    "SentencePiece",
    "Shuffled",
    "Stream",
    "Subwords",
    "Text",
    "TextConfig",
    "Vocabulary",
    "Windows",
    "codec_from_json",
    "dialogue_corpus",
    "encode_dialogue",
    "encode_preferences",
    "encode_prompt",
    "end_ids",
    "fill",
    "in_order",
    "load_dialogues",
    "load_images",
    "load_preferences",
    "load_text",
    "load_tokenizer",
    "pack",
    "read_dialogues",
    "read_preferences",
    "render",
    "template_of",
    "tokenizer_from_gguf",
    "train_bpe",
    "windows_in_order",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
