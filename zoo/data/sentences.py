"""What is said of scenes: captions by a grammar that reads back what it writes, and questions with their answers.

A caption is the text of a `Told`: the things that it names, each with what it says of them, perhaps how two of them lie
to each other, and perhaps the background. `parse(text)` is its inverse, and `holds(told, scene)` says whether a scene
is one that it tells of, so a drawing is judged exactly.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.data.draw import Draw
from zoo.data.scenes import BACKGROUNDS, COLOURS, FIELDS, PLACES, SHAPES, SIZES, Scene, Thing
from zoo.errors import ZooError

NUMBERS = ("no", "one", "two", "three", "four")
ENDINGS = {"spotted": "with some spots", "striped": "with stripes"}
RELATIONS = ("to the left of", "to the right of", "above", "below")
Turn = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class Named:
    """A thing as a caption names it: what is None is not said. A place is an index of PLACES."""

    shape: str
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    shading: str | None = None
    quarter: int | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the thing is one that is named so."""
        said = ((name, getattr(self, name)) for name in (*FIELDS, "quarter"))
        return all(value is None or getattr(thing, name) == value for name, value in said)


@dataclass(frozen=True)
class Told:
    """All that a caption says. A relation is of the first two things: an index of RELATIONS."""

    things: tuple[Named, ...]
    relation: int | None = None
    background: str | None = None


def text_of(told: Told) -> str:
    """The caption."""
    named = [_phrase(thing) for thing in told.things]
    if told.relation is not None:
        text = f"{named[0]} {RELATIONS[told.relation]} {named[1]}"
    elif len(named) == 1:
        text = named[0]
    else:
        text = ", ".join(named[:-1]) + " and " + named[-1]
    return text + (f" on a {told.background} background" if told.background else "")


def parse(text: str) -> Told:
    """What a caption says. Raises ZooError, with the words it stumbles over, for what the grammar does not make."""
    rest = " ".join(text.lower().rstrip(". \n").split())
    background = None
    ending = re.search(r" on an? (\w+) background$", rest)
    if ending:
        background, rest = ending[1], rest[: ending.start()]
        if background not in BACKGROUNDS:
            raise ZooError(f"{text!r}: there is no background {background!r}; {', '.join(BACKGROUNDS)} are known")
    for i, relation in enumerate(RELATIONS):
        parts = rest.split(f" {relation} ")
        if len(parts) == 2:
            return Told((_named(parts[0], text), _named(parts[1], text)), i, background)
    phrases = re.split(r", | and (?=an? )", rest)
    if len(phrases) > 4:
        raise ZooError(f"{text!r} names {len(phrases)} things; a scene has at most 4")
    return Told(tuple(_named(phrase, text) for phrase in phrases), None, background)


def holds(told: Told, scene: Scene) -> bool:
    """Whether the scene has just the things that are named, each once, and lie as is said."""
    if len(told.things) != len(scene.things) or told.background not in (None, scene.background):
        return False
    return any(
        all(named.fits(thing) for named, thing in zip(told.things, order, strict=True))
        and (told.relation is None or related(told.relation, order[0], order[1]))
        for order in itertools.permutations(scene.things)
    )


def related(relation: int, first: Thing, second: Thing) -> bool:
    """Whether the first lies so to the second, by the columns or rows of their quarters."""
    a, b = (first.column, second.column) if relation < 2 else (first.row, second.row)
    return a > b if relation % 2 else a < b


def describe(scene: Scene, order: Sequence[Thing] = ()) -> Told:
    """All of a scene but where within its quarter a thing lies: what a description has to say to be complete.

    Things are told of in that order, by default that of their quarters.
    """
    named = order or scene.things
    things = (Named(**{name: getattr(x, name) for name in FIELDS}, quarter=x.quarter) for x in named)
    return Told(tuple(things), None, scene.background)


def caption(scene: Scene, draw: Draw, order: Sequence[Thing] = ()) -> Told:
    """Something true of a scene: every thing by colour and shape, and more or less else; by default in any order."""
    order = order or draw.order(scene.things)
    relation = None
    if len(order) == 2 and draw.below(3):
        relation = draw.pick([i for i in range(4) if related(i, order[0], order[1])])
    tell_size, tell_texture, tell_shading = (draw.below(4) > least for least in (0, 0, 2))
    tell_place = relation is None and draw.below(3) == 0
    named = tuple(
        Named(
            thing.shape,
            thing.colour,
            thing.size if tell_size else None,
            thing.texture if tell_texture else None,
            thing.shading if tell_shading else None,
            thing.quarter if tell_place else None,
        )
        for thing in order
    )
    return Told(named, relation, scene.background if draw.below(3) == 0 else None)


def _phrase(named: Named) -> str:
    words = [named.size, named.shading, "plain" if named.texture == "plain" else None, named.colour, named.shape]
    text = " ".join(word for word in words if word)
    text = _one(text)
    if named.texture in ENDINGS:
        text += f" {ENDINGS[named.texture]}"
    return text + (f" at the {PLACES[named.quarter]}" if named.quarter is not None else "")


def _named(phrase: str, text: str) -> Named:
    """A thing by its phrase; the exact inverse of `_phrase`."""
    quarter, texture, rest = None, None, phrase
    for i, place in enumerate(PLACES):
        if rest.endswith(f" at the {place}"):
            quarter, rest = i, rest.removesuffix(f" at the {place}")
    for name, ending in ENDINGS.items():
        if rest.endswith(f" {ending}"):
            texture, rest = name, rest.removesuffix(f" {ending}")
    words = rest.split()
    if not words or words[0] not in ("a", "an"):
        raise ZooError(f"{text!r}: {phrase!r} should name a thing, such as 'a blue circle with some spots'")
    found: dict[str, str] = {} if texture is None else {"texture": texture}
    kinds = {"size": SIZES, "shading": ("flat", "shaded"), "texture": ("plain",), "colour": COLOURS, "shape": SHAPES}
    for word in words[1:]:
        kind = next((name for name, values in kinds.items() if word in values), None)
        if kind is None or kind in found:
            raise ZooError(f"{text!r}: cannot read {word!r}; known are {', '.join((*SIZES, *COLOURS, *SHAPES))}")
        found[kind] = word
    if "shape" not in found:
        raise ZooError(f"{text!r}: {phrase!r} has no shape; give one of {', '.join(SHAPES)}")
    return Named(**found, quarter=quarter)


KINDS = ("count", "colour", "shape", "size", "texture", "where", "what", "yes or no", "background")


def questions(scene: Scene) -> dict[str, list[Turn]]:
    """All questions that a scene answers, by kind (KINDS). A thing is asked for by what no other one has."""
    found: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    things = scene.things
    found["count"].append(("how many things are there?", NUMBERS[len(things)]))
    for shape in SHAPES:
        plural = "crosses" if shape == "cross" else f"{shape}s"
        found["count"].append((f"how many {plural} are there?", _count(things, shape=shape)))
    for colour in COLOURS:
        found["count"].append((f"how many {colour} things are there?", _count(things, colour=colour)))
    for thing in things:
        names = []
        if _only(things, shape=thing.shape):
            names.append(f"the {thing.shape}")
            found["colour"].append((f"what colour is {names[-1]}?", thing.colour))
        if _only(things, colour=thing.colour):
            names.append(f"the {thing.colour} thing")
            found["shape"].append((f"what shape is {names[-1]}?", thing.shape))
        for name in names:
            found["size"].append((f"what size is {name}?", thing.size))
            found["texture"].append((f"is {name} plain, spotted or striped?", thing.texture))
            found["where"].append((f"where is {name}?", PLACES[thing.quarter]))
            for i, relation in enumerate(RELATIONS):
                there = [other for other in things if related(i, other, thing)]
                if len(there) == 1:
                    found["what"].append((f"what is {relation} {name}?", _one(f"{there[0].colour} {there[0].shape}")))
                for other in things:
                    if other != thing and _only(things, shape=other.shape):
                        answer = "yes" if related(i, other, thing) else "no"
                        found["yes or no"].append((f"is the {other.shape} {relation} {name}?", answer))
    there_are = {(thing.colour, thing.shape) for thing in things}
    for colour, shape in itertools.product(COLOURS, SHAPES):
        answer = "yes" if (colour, shape) in there_are else "no"
        found["yes or no"].append((f"is there {_one(f'{colour} {shape}')}?", answer))
    found["background"].append(("what colour is the background?", scene.background))
    return found


def ask(scene: Scene, draw: Draw) -> tuple[str, Turn]:
    """A kind of question, and one of that kind; of questions with "yes", "no" and numbers each answer is as likely."""
    asked = _asked(scene)
    kind = draw.pick(list(asked))
    answer = draw.pick(sorted(asked[kind]))
    return kind, draw.pick(asked[kind][answer])


@functools.lru_cache(maxsize=16)  # the same scene is asked several things in a row
def _asked(scene: Scene) -> dict[str, dict[str, list[Turn]]]:
    """All questions of a scene by kind and answer; kinds that it has none of are left out."""
    found: dict[str, dict[str, list[Turn]]] = {}
    for kind, turns in questions(scene).items():
        for turn in turns:
            found.setdefault(kind, {}).setdefault(turn[1], []).append(turn)
    return found


def _one(name: str) -> str:
    """The name behind its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _count(things: tuple[Thing, ...], **wanted: str) -> str:
    return NUMBERS[sum(all(getattr(x, name) == value for name, value in wanted.items()) for x in things)]


def _only(things: tuple[Thing, ...], **wanted: str) -> bool:
    return _count(things, **wanted) == "one"
