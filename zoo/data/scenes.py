"""Scenes of one to four things, made by code: an endless data set of pictures, sentences, questions and answers.

Example i of a split is a function of i alone, so nothing has to be prepared or stored. A scene is told by what its
things are (shape, colour, size, texture, shading) and which quarter of the picture each lies in. What is held out is
fixed by content: `test` has combinations of whole scenes that never occur in `train`, and `compositional` has pairs of
colour and shape that do not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.data.draw import Draw, held_out
from zoo.errors import ZooError, unknown

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "spotted", "striped")
SHADINGS = ("flat", "shaded")
BACKGROUNDS = ("black", "gray", "brown", "navy")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # by quarter: 2 · row + column
SPLITS = ("train", "test", "compositional")
HOLDOUT = 0.1  # of scenes, by the attributes of their things
COUNTS = (1, 1, 1, 1, 2, 2, 2, 2, 3, 4)  # how many things, each as likely
REACH = {"small": 3, "large": 1}  # pixels of 32 by which a thing may lie off the middle of its quarter


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `quarter` is an index of PLACES, `dx` and `dy` are in pixels of 32."""

    shape: str
    colour: str
    size: str
    texture: str
    shading: str
    quarter: int
    dx: int = 0
    dy: int = 0

    @property
    def row(self) -> int:
        return self.quarter // 2

    @property
    def column(self) -> int:
        return self.quarter % 2


@dataclass(frozen=True)
class Scene:
    """Things in the order of their quarters, each quarter with one at most, on a plain background."""

    background: str
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        """Raises ZooError for what is no scene."""
        if self.background not in BACKGROUNDS:
            raise unknown("background", self.background, BACKGROUNDS)
        for thing in self.things:
            for name, values in FIELDS.items():
                if getattr(thing, name) not in values:
                    raise unknown(name, getattr(thing, name), values)
            reach = REACH[thing.size]
            if thing.quarter not in range(4) or max(abs(thing.dx), abs(thing.dy)) > reach:
                raise ZooError(
                    f"{thing} lies outside of its quarter: 0 to 3, and at most {reach} pixels off its middle"
                )
        quarters = [thing.quarter for thing in self.things]
        if not quarters or quarters != sorted(set(quarters)):
            raise ZooError(f"quarters {quarters}: a scene has 1 to 4 things, in the order of different quarters")

    @property
    def subject(self) -> str:
        """What decides whether it is held out: what the things are, wherever they lie."""
        told = (f"{x.size} {x.texture} {x.colour} {x.shape}" for x in self.things)
        return "scene " + ", ".join(sorted(told))

    @property
    def split(self) -> str:
        """The only split that it occurs in."""
        if any(rare(thing) for thing in self.things):
            return "compositional"
        return "test" if held_out(self.subject, HOLDOUT) else "train"


FIELDS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "shading": SHADINGS}


def rare(thing: Thing) -> bool:
    """Whether its colour and shape never occur together in `train`: each colour and each shape misses one other."""
    return (SHAPES.index(thing.shape) + 3 * COLOURS.index(thing.colour)) % len(SHAPES) == 0


def scene(split: str, index: int, things: int | None = None) -> Scene:
    """The scene of an example; with `things`, of so many. Raises ZooError for an unknown split or a negative index."""
    if split not in SPLITS:
        raise unknown("split of scenes", split, SPLITS)
    if index < 0 or things not in (None, 1, 2, 3, 4):
        raise ZooError(f"example {index} of {things} things: the index must be at least 0, and things 1 to 4")
    draw = Draw(SPLITS.index(split), index, things or 0)
    while True:
        found = _draw_scene(draw, things or draw.pick(COUNTS))
        if found.split == split:
            return found


def _draw_scene(draw: Draw, count: int) -> Scene:
    things = []
    for quarter in sorted(draw.order(range(4))[:count]):
        what = {name: draw.pick(values) for name, values in FIELDS.items()}
        reach = REACH[what["size"]]
        dx, dy = (draw.below(2 * reach + 1) - reach for _ in range(2))
        things.append(Thing(**what, quarter=quarter, dx=dx, dy=dy))
    return Scene(draw.pick(BACKGROUNDS), tuple(things))


class Scenes:
    """A split as a source of the pipeline: `self[indices]` is {"image" uint8 [n, S, S, 3], "label" int32 [n]}.

    The label is that of the first thing's shape. `scenes[i]` may be asked for any i below `len`.
    """

    classes = SHAPES

    def __init__(self, split: str = "train", size: int = 32, length: int = 100_000, things: int | None = None):
        if length < 1:
            raise ZooError(f"{length} scenes: give at least 1")
        scene(split, 0, things)
        self.split, self.size, self.length, self.things = split, size, length, things
        self.name, self.notes = f"scenes {split}", ()
        self.shape = (size, size, 3)

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        return scene(self.split, index, self.things)

    def __getitem__(self, indices: np.ndarray) -> dict[str, Any]:
        from zoo.data.drawing import draw_scene

        found = [self.scene(int(i)) for i in indices]
        images = np.stack([draw_scene(each, self.size) for each in found]) if found else np.zeros((0, *self.shape))
        labels = [SHAPES.index(each.things[0].shape) for each in found]
        return {"image": images.astype(np.uint8), "label": np.array(labels, np.int32)}
