"""How often a scene model is exactly right: its drawings by the oracle, its words by comparison."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from zoo.data.draw import Draw
from zoo.data.drawing import draw_scene
from zoo.data.oracle import read_scenes
from zoo.data.scenes import SPLITS, Scene, scene
from zoo.data.sentences import Told, Turn, ask, caption, describe, holds, text_of
from zoo.generate.scenes import SceneModel

EXAM = 10_000_000  # seed of the exam's scenes: rows of training draw theirs by other ones


@dataclass(frozen=True)
class Question:
    """A scene, something true of it, and a question about it with its kind."""

    scene: Scene
    told: Told
    kind: str
    turn: Turn


@dataclass(frozen=True)
class Scores:
    """Shares of all that were asked, each of 0 to 1."""

    draw: float
    """Drawings that hold all that their caption says."""
    describe: float
    """Descriptions of pictures that are word for word right."""
    answer: float
    """Answers about pictures."""
    tell: float
    """Answers about descriptions."""
    chain: float
    """Captions that were drawn rightly, and their drawings described and asked about without a mistake."""


def questions_of(split: str, things: int, count: int) -> list[Question]:
    """Examples 0 to count - 1 of the exam. Captions of two things say how they lie to each other."""
    found = []
    for i in range(count):
        seen = scene(split, EXAM + i, things)
        draw = Draw(SPLITS.index(split), EXAM, i, things)
        told = caption(seen, draw)
        while things == 2 and told.relation is None:
            told = caption(seen, draw)
        found.append(Question(seen, told, *ask(seen, draw)))
    return found


def examine(model: SceneModel, asked: Sequence[Question], seed: int = 0, readings: int = 1, **drawing: Any) -> Scores:
    """The scores of a model that chooses each description among so many; `drawing` are options of its `draw`."""
    images = np.stack([draw_scene(each.scene, model.size) for each in asked])
    told = [text_of(describe(each.scene)) for each in asked]
    questions, answers = zip(*(each.turn for each in asked), strict=True)
    drawn = model.draw([text_of(each.told) for each in asked], seed=seed, **drawing)[:, 0]
    read = [found for found, _ in read_scenes(drawn)]
    right = [found is not None and holds(each.told, found) for each, found in zip(asked, read, strict=True)]
    linked = chained(model, drawn, read, readings, seed)
    share = lambda found, wanted: float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))
    return Scores(
        draw=float(np.mean(right)),
        describe=share(model.describe(images, readings, seed), told),
        answer=share(model.answer(questions, images=images), answers),
        tell=share(model.answer(questions, texts=told), answers),
        chain=float(np.mean([a and b for a, b in zip(right, linked, strict=True)])),
    )


def chained(
    model: SceneModel, drawn: np.ndarray, read: Sequence[Scene | None], readings: int = 1, seed: int = 0
) -> list[bool]:
    """Whether each drawing is described, and a question about it answered, as by one who sees what the oracle reads."""
    nothing = ("how many things are there?", "no")
    turns = [ask(found, Draw(EXAM, i))[1] if found else nothing for i, found in enumerate(read)]
    said = model.describe(drawn, readings, seed)
    answers = model.answer([question for question, _ in turns], images=drawn)
    return [
        found is not None and text == text_of(describe(found)) and answer == turn[1]
        for found, text, answer, turn in zip(read, said, answers, turns, strict=True)
    ]


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each score."""
    return Scores(*(float(np.mean(values)) for values in zip(*map(astuple, scores), strict=True)))
