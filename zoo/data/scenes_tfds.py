"""Scenes as a prepared data set of TensorFlow Datasets, as array_record and without TensorFlow.

`prepare(folder)` writes it; `python experiments/cnn.py --data tfds:zoo_scenes@FOLDER` reads it. Nothing has to be
prepared to train on scenes, since `Scenes` makes any example from its index: this is for other people's loaders.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zoo.data.draw import Draw
from zoo.data.drawing import boxes, check_size, draw_scene, masks
from zoo.data.scenes import SHAPES, SPLITS, scene
from zoo.data.sentences import ask, caption, describe, text_of
from zoo.errors import ZooError

CAPTIONS, QUESTIONS = 3, 5  # of an example, after the complete description


class ZooScenes(tfds.core.GeneratorBasedBuilder):
    """Examples of a picture with its exact scene, captions, questions with answers, boxes, masks and a class."""

    VERSION = tfds.core.Version("1.0.0")
    name = "zoo_scenes"
    url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded; the base class would look for a package's files

    def __init__(self, *, size: int = 32, examples: int = 1000, **options: Any):
        """`examples` of each split, of `size` pixels."""
        check_size(size)
        if examples < 1:
            raise ZooError(f"{examples} examples of each split: give at least 1")
        self.size, self.examples = size, examples
        super().__init__(**options)

    def _info(self) -> Any:
        text, shape = tfds.features.Text(), (self.size, self.size)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(*shape, 3)),
                    "label": tfds.features.ClassLabel(names=SHAPES),
                    "scene": text,
                    "captions": tfds.features.Sequence(text),
                    "turns": tfds.features.Sequence({"kind": text, "question": text, "answer": text}),
                    "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.int32),
                    "masks": tfds.features.Tensor(shape=(None, *shape), dtype=np.uint8),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(self.examples):
            yield i, example(split, i, self.size)


def example(split: str, index: int, size: int = 32) -> dict[str, Any]:
    """All that is told of an example.

    `scene` is JSON; `captions` the complete description and then others; `turns` questions with their kind and answer;
    `boxes` and `masks` of the things in the order of the scene.
    """
    found, draw = scene(split, index), Draw(SPLITS.index(split), index, 10)
    told = [describe(found), *(caption(found, draw) for _ in range(CAPTIONS))]
    turns = [ask(found, draw) for _ in range(QUESTIONS)]
    return {
        "image": Image.fromarray(draw_scene(found, size)),
        "label": SHAPES.index(found.things[0].shape),
        "scene": json.dumps(asdict(found)),
        "captions": [text_of(each) for each in told],
        "turns": [{"kind": kind, "question": question, "answer": answer} for kind, (question, answer) in turns],
        "boxes": boxes(found, size),
        "masks": masks(found, size).astype(np.uint8),
    }


def prepare(folder: str | Path, size: int = 32, examples: int = 1000) -> Any:
    """Writes the data set below a folder, unless it is there, and returns its builder."""
    builder = ZooScenes(size=size, examples=examples, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return builder
