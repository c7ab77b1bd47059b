"""Scenes as token sequences of one vocabulary, [special | words | image codes], for a decoder that draws and reads.

The data knows no image codes, since a tokenizer makes them from pictures on the device: a row carries pictures, and the
slots that their codes will stand in. `fill` puts them there.
"""

import bisect
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from zoo.data.damage import Hole, Noise, damaged, draw_damage, touched
from zoo.data.draw import Draw
from zoo.data.drawing import check_size, draw_scene
from zoo.data.scenes import BACKGROUNDS, COLOURS, SHADINGS, SHAPES, SIZES, SPLITS, TEXTURES, Scene, Thing, scene
from zoo.data.sentences import ask, caption, describe, questions, text_of
from zoo.errors import ZooError, unknown

# The end stands last, beside the words: what may follow in a text is then one range of ids, as the codes are.
SPECIALS = ("<pad>", "<begin>", "<image>", "<damaged>", "<caption>", "<describe>", "<question>", "<answer>", "<end>")
PAD, BEGIN, IMAGE, DAMAGED, CAPTION, DESCRIBE, QUESTION, ANSWER, END = range(len(SPECIALS))
FIRST_WORD = len(SPECIALS)
QUESTIONS = 3  # in a sequence, all different
UNTOLD = 10  # one in so many drawings, and plans, is of any scene
REDRAWN = 2  # one in so many pictures to be read is seen as the tokenizer draws it
TRIES = 5  # draws of a sequence that fits, before a row is left as it is
_ROW = 1  # keeps the random choices of a row apart from those of a scene


# The vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """Ids of specials (PAD, BEGIN, ...), of words from FIRST_WORD, of image codes from `first_code`, and of a hole."""

    codes: int
    """Image codes that there are."""
    grid: tuple[int, int]
    """Rows and columns of codes in a picture."""

    def __post_init__(self) -> None:
        """Raises ZooError for fewer than one of anything."""
        if min(self.codes, *self.grid) < 1:
            raise ZooError(f"{self.codes} codes on a grid of {self.grid}: each must be at least 1")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word_ids())

    @property
    def first_code(self) -> int:
        return FIRST_WORD + len(word_ids())

    @property
    def size(self) -> int:
        return self.hole + 1

    @property
    def hole(self) -> int:
        """Id of a cell that is lost: it stands in a picture, and so behind the codes."""
        return self.first_code + self.codes

    @property
    def cells(self) -> int:
        """Codes in a picture."""
        return self.grid[0] * self.grid[1]

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text; capitals and a full stop at the end do not matter. Raises ZooError for others."""
        known, found = word_ids(), split_words(text.lower().rstrip(". \n"))
        for word in found:
            if word not in known:
                raise unknown("word", word, known)
        return [known[word] for word in found]

    def decode(self, ids: Any) -> str:
        """The text of words, the inverse of `encode`; specials by their names, and image codes as #0, #1, ..."""
        names = (*SPECIALS, *self.words)
        name = lambda i: names[i] if i < len(names) else "<hole>" if i == self.hole else f"#{i - len(names)}"
        return " ".join(map(name, np.ravel(ids).tolist())).replace(" ,", ",").replace(" ?", "?")

    def code_ids(self, codes: Any) -> list[int]:
        """Ids of the codes of one picture, int [cells] or [rows, columns]. Raises ZooError for what are none."""
        found = np.asarray(codes).ravel()
        if found.size != self.cells or found.min() < 0 or found.max() >= self.codes:
            shape = list(np.shape(codes))
            raise ZooError(f"codes {shape} of a picture: give {self.cells}, each of 0 to {self.codes - 1}")
        return [self.first_code + int(code) for code in found]


def split_words(text: str) -> list[str]:
    """The words of a text; commas and question marks are words of their own."""
    return re.findall(r"[,?]|[^\s,?]+", text)


@functools.cache
def word_ids() -> dict[str, int]:
    """All words that captions, descriptions, questions and answers can have, sorted, each with its id."""
    texts = [text for scene in _examples() for turn in _turns(scene) for text in turn]
    texts += [text_of(describe(scene)) for scene in _examples()]
    words = sorted({word for text in texts for word in split_words(text)})
    return {word: FIRST_WORD + i for i, word in enumerate(words)}


@functools.cache
def _examples() -> tuple[Scene, ...]:
    """Scenes that between them have every value of every field, and every texture with every number of things."""
    pick = lambda values, i: values[i % len(values)]
    found = []
    for i in range(len(TEXTURES) * 4):
        things = tuple(
            Thing(pick(SHAPES, k), pick(COLOURS, k), pick(SIZES, k), pick(TEXTURES, i), pick(SHADINGS, k), quarter)
            for quarter, k in enumerate(range(i, i + 1 + i % 4))
        )
        found.append(Scene(pick(BACKGROUNDS, i), things))
    return tuple(found)


def _turns(scene: Scene) -> list[tuple[str, str]]:
    return list(itertools.chain(*questions(scene).values()))


# The sequences


@dataclass(frozen=True)
class Picture:
    """A scene to draw, whole or damaged."""

    scene: Scene
    damage: Hole | Noise | None = None
    redrawn: bool = False
    """Whether its codes are those of its reconstruction, as a model's own drawings have them."""

    def pixels(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        image = draw_scene(self.scene, size)
        return image if self.damage is None else damaged(image, self.damage)


@dataclass(frozen=True)
class Part:
    """Ids of specials, texts and pictures that follow one another in a sequence, given or to be learned."""

    items: tuple[int | str | Picture, ...]
    learned: bool


def given(*items: int | str | Picture) -> Part:
    return Part(items, False)


def learned(*items: int | str | Picture) -> Part:
    return Part(items, True)


def _draw(scene: Scene, draw: Draw) -> list[Part]:
    told = text_of(describe(scene, draw.order(scene.things))) if draw.below(UNTOLD) else ""
    return [given(BEGIN, told, IMAGE), learned(Picture(scene), END)]


def _plan(scene: Scene, draw: Draw) -> list[Part]:
    order = draw.order(scene.things)  # a plan keeps the caption's: what is said of a thing is then copied in one piece
    told = text_of(caption(scene, draw, order)) if draw.below(UNTOLD) else ""
    return [given(BEGIN, told, DESCRIBE), learned(text_of(describe(scene, order)), END)]


def _seen(scene: Scene, draw: Draw) -> Picture:
    """To be read: codes change when decoded and encoded again, so a model should know scenes by both."""
    return Picture(scene, redrawn=not draw.below(REDRAWN))


def _caption(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN, IMAGE, _seen(scene, draw), CAPTION), learned(text_of(caption(scene, draw)), END)]


def _describe(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN, IMAGE, _seen(scene, draw), DESCRIBE), learned(text_of(describe(scene)), END)]


def _answer(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN, IMAGE, _seen(scene, draw)), *_asked(scene, draw)]


def _tell(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN, text_of(describe(scene))), *_asked(scene, draw)]


def _clean(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN, DAMAGED, Picture(scene, draw_damage(draw)), IMAGE), learned(Picture(scene), END)]


def _text(scene: Scene, draw: Draw) -> list[Part]:
    return [given(BEGIN), learned(text_of(caption(scene, draw)), END)]


def _asked(scene: Scene, draw: Draw) -> list[Part]:
    turns: dict[str, str] = {}
    while len(turns) < QUESTIONS:
        _, (question, answer) = ask(scene, draw)
        turns[question] = answer
    return [part for q, a in turns.items() for part in (given(QUESTION, q, ANSWER), learned(a, END))]


_PARTS: dict[str, Callable[[Scene, Draw], list[Part]]] = {
    "draw": _draw,
    "plan": _plan,
    "caption": _caption,
    "describe": _describe,
    "answer": _answer,
    "tell": _tell,
    "clean": _clean,
    "text": _text,
}
TASKS = tuple(_PARTS)
_SHOWN = {"plan": 0, "clean": 2, "tell": 0, "text": 0}  # pictures in a sequence, where that is not one


@dataclass(frozen=True)
class Layout:
    """A sequence of T positions: `tokens` int32 [T], `slots` int32 [T] (the position of a code among those of its own
    pictures, -1 for other tokens), `learned` bool [T], and the pictures."""

    tokens: np.ndarray
    slots: np.ndarray
    learned: np.ndarray
    pictures: tuple[Picture, ...]


def lay_out(parts: Sequence[Part], vocabulary: Vocabulary, size: int = 32) -> Layout:
    """The positions of a sequence whose pictures have `size` pixels."""
    tokens: list[int] = []
    slots: list[int] = []
    learn: list[bool] = []
    pictures: list[Picture] = []
    for part in parts:
        for item in part.items:
            if isinstance(item, Picture):
                first = len(pictures) * vocabulary.cells
                hidden = _hidden(item, vocabulary, size)
                tokens += [vocabulary.hole if lost else PAD for lost in hidden]
                slots += [-1 if lost else first + cell for cell, lost in enumerate(hidden)]
                pictures.append(item)
            else:
                tokens += vocabulary.encode(item) if isinstance(item, str) else [item]
                slots += [-1] * (len(tokens) - len(slots))
            learn += [part.learned] * (len(tokens) - len(learn))
    return Layout(np.array(tokens, np.int32), np.array(slots, np.int32), np.array(learn), tuple(pictures))


def _hidden(picture: Picture, vocabulary: Vocabulary, size: int) -> list[bool]:
    """Which cells of a picture a hole touches."""
    if isinstance(picture.damage, Hole):
        return touched(picture.damage.mask(size), vocabulary.grid).ravel().tolist()
    return [False] * vocabulary.cells


def longest(vocabulary: Vocabulary, things: int | None = None) -> dict[str, int]:
    """The most tokens that a sequence of each task can take, for scenes of so many things."""
    count = lambda text: len(vocabulary.encode(text))
    scenes = [each for each in _examples() if things in (None, len(each.things))]
    told = max(count(text_of(describe(each))) for each in scenes)
    turn = max(count(question) + count(answer) for each in scenes for question, answer in _turns(each))
    cells, asked = vocabulary.cells, QUESTIONS * (turn + 3)
    return {
        "draw": told + cells + 3,
        "plan": 2 * told + 3,
        "caption": told + cells + 4,
        "describe": told + cells + 4,
        "answer": cells + 2 + asked,
        "tell": told + 1 + asked,
        "clean": 2 * cells + 4,
        "text": told + 2,
    }


# The rows


@dataclass(frozen=True)
class SceneMix:
    """How often a sequence is drawn of each task. The shares need not sum to 1."""

    draw: float = 0.42
    """From a description, or now and then from none, to a picture."""
    plan: float = 0.08
    """From a caption, or now and then from none, to a description of a scene that it tells of."""
    caption: float = 0.06
    """From a picture to something true of it."""
    describe: float = 0.14
    """From a picture to all of it."""
    answer: float = 0.12
    """Questions about a picture."""
    tell: float = 0.12
    """Questions about a description."""
    clean: float = 0.04
    """From a damaged picture to the whole one."""
    text: float = 0.02
    """Captions alone."""

    def __post_init__(self) -> None:
        """Raises ZooError for shares below 0, or all 0."""
        shares = astuple(self)
        if not all(0 <= share < math.inf for share in shares) or not sum(shares):
            raise ZooError(f"{self}: shares must be 0 or more, and one of them above 0")


@dataclass(frozen=True)
class SceneFactors:
    """What the loss of a sequence, a mean over what is learned of it, is multiplied with by task."""

    draw: float = 1.0
    """Of a drawing's codes."""
    plan: float = 1.0
    """Of the words of a plan."""
    caption: float = 1.0
    """Of a caption's words."""
    describe: float = 1.0
    """Of a description's words."""
    answer: float = 1.0
    """Of the answers about a picture."""
    tell: float = 1.0
    """Of the answers about a description."""
    clean: float = 1.0
    """Of a mended picture's codes."""
    text: float = 1.0
    """Of the words of a caption alone."""


class SceneRows:
    """Sequences packed into rows, as a source of the pipeline: row i is a function of (split, seed, i).

    `self[indices]` is, for n rows of L positions:
    "tokens" int32 [n, L], PAD where a code will stand and behind the last sequence;
    "slots" int32 [n, L], which of the row's codes [pictures · cells] stands there, -1 where none does;
    "documents" int32 [n, L], 1, 2, ... by sequence, 0 behind the last; "positions" int32 [n, L], from 0 in each;
    "given" bool [n, L], what of each sequence comes before the first token to be learned;
    "weights" float32 [n, L], for each token to be learned (at its own place, not the one before it) the factor of its
    task over how many there are in its sequence, 0 for others; "kinds" int32 [n, L], its task in TASKS, -1 for others;
    "image" uint8 [n, pictures, size, size, 3] in the order of the slots, zeros behind the last;
    "redrawn" bool [n, pictures], whether its codes are to be those of its reconstruction.

    Where the next sequence does not fit, further ones are drawn, five in all, so that the end of a row has rather a
    short one: the longer rows are, the nearer the shares come to those of `mix`.
    """

    def __init__(
        self,
        split: str,
        vocabulary: Vocabulary,
        length: int = 256,
        pictures: int = 3,
        mix: SceneMix = SceneMix(),
        seed: int = 0,
        size: int = 32,
        things: int | None = None,
        factors: SceneFactors = SceneFactors(),
        rows: int = 1_000_000,
    ):
        """Raises ZooError for an unknown split, and where some sequence could not fit into an empty row."""
        scene(split, 0, things)
        check_size(size)
        touched(np.zeros((size, size), bool), vocabulary.grid)
        if min(seed, rows - 1) < 0:
            raise ZooError(f"seed {seed} and {rows} rows: the seed must be at least 0, and the rows 1")
        most = longest(vocabulary, things)
        for task, share in zip(TASKS, astuple(mix), strict=True):
            shown = _SHOWN.get(task, 1)
            if share and (length < most[task] or pictures < shown):
                raise ZooError(
                    f"rows of {length} tokens and {pictures} pictures: {task} takes up to {most[task]} and {shown}; "
                    f"give longer rows or a share of 0 for {task}"
                )
        self.split, self.vocabulary, self.length, self.pictures = split, vocabulary, length, pictures
        self.seed, self.size, self.things, self.rows = seed, size, things, rows
        self.factors = astuple(factors)
        self._bounds = list(itertools.accumulate(astuple(mix)))

    def __len__(self) -> int:
        return self.rows

    def sequences(self, index: int) -> list[tuple[str, Layout]]:
        """The tasks and layouts of a row."""
        if index < 0:
            raise ZooError(f"row {index}: the index must be at least 0")
        draw = Draw(SPLITS.index(self.split), self.seed, index, _ROW)
        found: list[tuple[str, Layout]] = []
        room, pictures, tries = self.length, self.pictures, TRIES
        while tries:
            tries -= 1
            task = TASKS[bisect.bisect_right(self._bounds, draw.below(10**9) / 10**9 * self._bounds[-1])]
            shown = _SHOWN.get(task, 1)
            if shown > pictures or shown * self.vocabulary.cells > room:  # told before a scene is made
                continue
            seen = scene(self.split, draw.below(2**32), self.things)
            layout = lay_out(_PARTS[task](seen, draw), self.vocabulary, self.size)
            if len(layout.tokens) <= room:
                found.append((task, layout))
                room, pictures, tries = room - len(layout.tokens), pictures - shown, TRIES
        return found

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        shape, cells = (len(indices), self.length), self.vocabulary.cells
        tokens_nt, documents_nt, positions_nt = np.zeros((3, *shape), np.int32)
        slots_nt, kinds_nt = np.full((2, *shape), -1, np.int32)
        given_nt, weights_nt = np.zeros(shape, bool), np.zeros(shape, np.float32)
        image = np.zeros((len(indices), self.pictures, self.size, self.size, 3), np.uint8)
        redrawn = np.zeros((len(indices), self.pictures), bool)
        for row, index in enumerate(indices):
            start, shown = 0, 0
            for document, (task, layout) in enumerate(self.sequences(int(index)), start=1):
                at, kind = (row, slice(start, start + len(layout.tokens))), TASKS.index(task)
                tokens_nt[at] = layout.tokens
                slots_nt[at] = np.where(layout.slots < 0, -1, layout.slots + shown * cells)
                documents_nt[at] = document
                positions_nt[at] = np.arange(len(layout.tokens))
                given_nt[at] = ~np.logical_or.accumulate(layout.learned)
                weights_nt[at] = layout.learned * (self.factors[kind] / layout.learned.sum())
                kinds_nt[at] = np.where(layout.learned, kind, -1)
                for i, picture in enumerate(layout.pictures, start=shown):
                    image[row, i], redrawn[row, i] = picture.pixels(self.size), picture.redrawn
                start, shown = start + len(layout.tokens), shown + len(layout.pictures)
        return {
            "tokens": tokens_nt,
            "slots": slots_nt,
            "documents": documents_nt,
            "positions": positions_nt,
            "given": given_nt,
            "weights": weights_nt,
            "kinds": kinds_nt,
            "image": image,
            "redrawn": redrawn,
        }


def fill(tokens_nt: Any, slots_nt: Any, codes: Any, first_code: int) -> Any:
    """The tokens int32 [n, L] with the codes int [n, pictures, cells] in their slots; arrays of NumPy or of JAX."""
    xp = codes.__array_namespace__()
    ids = codes.reshape(len(codes), -1).astype(tokens_nt.dtype) + first_code
    return xp.where(slots_nt < 0, tokens_nt, xp.take_along_axis(ids, slots_nt.clip(0), axis=1))


# Prompts: what is given of a sequence, for a trained model to go on from


def draw_prompt(ids: Sequence[int] = ()) -> list[int]:
    """What a picture comes after: the ids of its description; of any scene, without them."""
    return [BEGIN, *ids, IMAGE]


def plan_prompt(vocabulary: Vocabulary, text: str | None = None) -> list[int]:
    """What a description of a scene comes after that the text tells of; of any scene, without a text."""
    return [BEGIN, *vocabulary.encode(text or ""), DESCRIBE]


def caption_prompt(vocabulary: Vocabulary, codes: Any) -> list[int]:
    return [BEGIN, IMAGE, *vocabulary.code_ids(codes), CAPTION]


def describe_prompt(vocabulary: Vocabulary, codes: Any) -> list[int]:
    return [BEGIN, IMAGE, *vocabulary.code_ids(codes), DESCRIBE]


def answer_prompt(vocabulary: Vocabulary, question: str, codes: Any = None, text: str | None = None) -> list[int]:
    """A question about a picture or about a description. Raises ZooError unless just one of them is given."""
    if (codes is None) == (text is None):
        raise ZooError("a question is about a picture or a text: give codes, or text")
    seen = vocabulary.encode(text) if text is not None else [IMAGE, *vocabulary.code_ids(codes)]
    return [BEGIN, *seen, QUESTION, *vocabulary.encode(question.rstrip(" ?") + "?"), ANSWER]


def clean_prompt(vocabulary: Vocabulary, codes: Any, holes: Any = None) -> list[int]:
    """A damaged picture's codes, but for the cells that a hole touches: `holes` bool [cells] or [rows, columns].

    Raises ZooError for holes of another shape.
    """
    lost = np.zeros(vocabulary.cells, bool) if holes is None else np.asarray(holes, bool).ravel()
    if lost.size != vocabulary.cells:
        raise ZooError(f"holes {list(np.shape(holes))}: a picture has {vocabulary.cells} cells")
    ids = vocabulary.code_ids(codes)
    return [BEGIN, DAMAGED, *(vocabulary.hole if gone else i for i, gone in zip(ids, lost, strict=True)), IMAGE]
