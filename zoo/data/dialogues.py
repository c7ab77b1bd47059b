"""A small world to talk about, made by code: sums, comparisons, and scenes of coloured shapes.

Every answer is short and exactly right or wrong. What is held out is fixed by content, whatever the seed: a scene
(however told), a pair of numbers to compare, or the wording of a sum. A sum that is held out in one wording can be
trained on in another, as a table of sums has no rule that a small model would find.
"""

import collections
import re
from collections.abc import Sequence
from typing import Any

from zoo.data.draw import Draw, held_out
from zoo.data.template import MARKS, TURNS
from zoo.errors import ZooError

Row = dict[str, Any]
Turn = tuple[str, str]  # a question and its answer

# So many that a scene is easier to read than to learn by heart.
COLOURS = ("black", "blue", "gold", "green", "pink", "red", "teal", "white")
SHAPES = ("ball", "cone", "cross", "cube", "disk", "heart", "ring", "star")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDES = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MOST = 9  # the largest number that is added
# So many that what is held out in one wording is trained on in most others.
ASKING = ("What is {}?", "How much is {}?", "And what is {}?", "What does {} make?")
EVASIVE = ("I am not sure.", "That is hard to say.", "It depends on how you see it.")
VERBOSE = (
    "Well, let me think about that. The answer to your question is {}, I believe.",
    "What a nice question! If you ask me, it could well be {}.",
)
_NAMES = re.compile(rf"\b(\d+|{'|'.join(COLOURS + SHAPES + WORDS)})\b")
CHARACTERS = "".join(sorted({*map(chr, range(32, 127)), "\n", *MARKS[TURNS]}))
"""All characters of this world and of the turns around them: the alphabet of a `Characters` codec."""


def load_dialogues(seed: int = 0, size: int = 6000, holdout: float = 0.15) -> tuple[list[Row], list[Row]]:
    """Training and held-out dialogues of one to four questions, {"messages": [{"role", "content"}, ...]}.

    `size` of both together, all different. About `holdout` of them are held out.
    """
    draw = Draw(seed, 0)
    found: dict[str, tuple[list[Row], bool]] = {}
    for _ in range(50 * size):
        if len(found) == size:
            break
        held, messages = _dialogue(draw, holdout)
        found.setdefault("\n".join(m["content"] for m in messages), (messages, held))
    else:
        raise ZooError(f"size is {size}: there are not that many different dialogues; {len(found)} were found")
    train, test = ([{"messages": m} for m, held in found.values() if held == part] for part in (False, True))
    return train, test


def load_preferences(seed: int = 0, size: int = 2000, holdout: float = 0.15) -> tuple[list[Row], list[Row]]:
    """Training and held-out pairs {"prompt", "chosen", "rejected"} of messages.

    The chosen answer is right and terse. The rejected one is wrong, evasive, or right with many words, each a third
    of the time. The same subjects are held out as in `load_dialogues`.
    """
    draw = Draw(seed, 1)
    train: list[Row] = []
    test: list[Row] = []
    seen: set[str] = set()
    for _ in range(50 * size):
        if len(seen) == size:
            break
        held, messages = _dialogue(draw, holdout)
        *prompt, chosen = messages
        key = "\n".join(message["content"] for message in prompt)
        right = chosen["content"]
        kind = draw.below(3)
        bad = (
            _wrong(draw, right) if kind == 0 else draw.pick(EVASIVE) if kind == 1 else draw.pick(VERBOSE).format(right)
        )
        if key not in seen:
            seen.add(key)
            row = {"prompt": prompt, "chosen": [chosen], "rejected": [_says("assistant", bad)]}
            (test if held else train).append(row)
    else:
        raise ZooError(f"size is {size}: there are not that many different questions; {len(seen)} were found")
    return train, test


def dialogue_corpus(seed: int = 0, lines: int = 4000, holdout: float = 0.15) -> str:
    """Text about the same world, to train on before any dialogue: statements, and tales of who asked what.

    Whatever is held out does not occur, but that the result of every sum is stated.
    """
    draw = Draw(seed, 2)
    text: list[str] = []
    while len(text) < lines:
        kind = draw.below(6)
        if kind > 2:
            held, messages = _dialogue(draw, holdout)
            turns = zip(messages[::2], messages[1::2], strict=True)
            if not held:
                text.append(" ".join(f"One asks: {q['content']} The answer: {a['content']}." for q, a in turns))
        elif kind == 0:
            a, b, c, adds, in_words = _numbers(draw)
            x, y, z = (WORDS[n] if in_words else str(n) for n in (a, b, c))
            text.append(f"So {x} {'plus' if adds else 'minus'} {y} is {z}.")
        elif kind == 1:
            a, b = draw.below(100), draw.below(99)
            b += b >= a
            if not held_out(_pair(a, b), holdout):
                text.append(f"{a} is {'larger' if a > b else 'smaller'} than {b}.")
        else:
            scene = _Scene(draw)
            if not held_out(scene.subject, holdout):
                a_, relation, b_ = draw.pick(scene.facts)
                told = (f"The {a_} is {relation} the {b_}.", f"The {a_} is {SIDES[relation]}.")
                text.append(" ".join((scene.text, *draw.order(told))))
    return "\n".join(text) + "\n"


def questions(dialogues: Sequence[Row]) -> list[tuple[list[Row], str]]:
    """Every question with all that went before it, and its right answer."""
    return [
        (row["messages"][:i], message["content"])
        for row in dialogues
        for i, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]


def guessing(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Share of held-out questions that are right by chance.

    By the commonest answer to questions of the same wording, whatever the numbers, colours and shapes in it.
    """

    def wording(messages: Sequence[Row]) -> str:
        return _NAMES.sub("_", messages[-1]["content"].rpartition(". ")[2])

    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for messages, answer in questions(train):
        answers[wording(messages)][answer] += 1
    best = {asked: counts.most_common(1)[0][0] for asked, counts in answers.items()}
    right = [answer == best.get(wording(messages)) for messages, answer in questions(test)]
    return sum(right) / len(right)


class _Scene:
    """Two objects of different colours and shapes, and how one stands to the other."""

    def __init__(self, draw: Draw):
        pairs = zip(draw.order(COLOURS), draw.order(SHAPES), strict=True)
        self.objects = [f"{colour} {shape}" for colour, shape in pairs][:2]
        a, b = self.objects
        relation = draw.pick(("left of", "above"))
        self.facts = [(a, relation, b), (b, INVERSE[relation], a)]
        self.text = f"A {a} is {relation} a {b}."
        self.subject = "scene " + " ".join(min(self.facts))

    def question(self, draw: Draw) -> Turn:
        a, relation, b = draw.pick(self.facts)
        colour, shape = a.split()
        return draw.pick(
            (
                (f"What is {relation} the {b}?", f"the {a}"),
                (f"What is {SIDES[relation]}?", f"the {a}"),
                (f"What colour is {SIDES[relation]}?", colour),
                (f"Which shape is {SIDES[relation]}?", shape),
            )
        )


def _dialogue(draw: Draw, holdout: float) -> tuple[bool, list[Row]]:
    """A dialogue about what is held out, or about what is not; and which of both."""
    kind, count = draw.below(10), 1 + draw.below(4)
    if kind < 4:
        scene = _Scene(draw)
        held = held_out(scene.subject, holdout)
        turns = list(dict(scene.question(draw) for _ in range(count)).items())  # the same question only once
        turns[0] = (f"{scene.text} {turns[0][0]}", turns[0][1])
    else:
        ask = _sum if kind < 8 else _comparison
        subject, turn = ask(draw)
        held, turns = held_out(subject, holdout), [turn]
        while len(turns) < count:
            subject, turn = ask(draw)
            if held_out(subject, holdout) == held:
                turns.append(turn)
    return held, [_says(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]


def _sum(draw: Draw) -> tuple[str, Turn]:
    """The subject of a sum, which is its wording; and question and answer."""
    a, b, c, adds, in_words = _numbers(draw)
    x, y, z = (WORDS[n] if in_words else str(n) for n in (a, b, c))
    spoken = f"{x} {'plus' if adds else 'minus'} {y}"
    forms = [form.format(spoken) for form in ASKING]
    question = draw.pick(forms if in_words else [f"{x} {'+' if adds else '-'} {y} = ?", *forms])
    return f"sum {question}", (question, z)


def _comparison(draw: Draw) -> tuple[str, Turn]:
    """The subject of a comparison, which is the pair of numbers; and question and answer."""
    a, b = draw.below(100), draw.below(99)
    b += b >= a
    turns = (
        (f"Which is larger, {a} or {b}?", str(max(a, b))),
        (f"Is {a} larger than {b}?", "yes" if a > b else "no"),
    )
    return _pair(a, b), draw.pick(turns)


def _numbers(draw: Draw) -> tuple[int, int, int, bool, bool]:
    """a + b = c or a - b = c, which of both, and whether in words, as some with small numbers are."""
    in_words, adds = draw.below(4) == 0, draw.below(2) == 0
    most = 5 if in_words else MOST
    a, b = draw.below(most + 1), draw.below(most + 1)
    return (a, b, a + b, adds, in_words) if adds else (a + b, b, a, adds, in_words)


def _pair(a: int, b: int) -> str:
    return f"pair {min(a, b)} {max(a, b)}"


def _wrong(draw: Draw, right: str) -> str:
    """A terse answer of the same kind that is not right."""
    numbers = tuple(str(n) for n in range(100))
    objects = tuple(f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES)
    kind = next(k for k in (("yes", "no"), COLOURS, SHAPES, objects, WORDS, numbers) if right in k)
    return draw.pick([answer for answer in kind if answer != right])


def _says(role: str, text: str) -> Row:
    return {"role": role, "content": text}
