"""The world of dialogues: every answer is right, what is held out stays held out, and a seed gives the same again."""

import json
import re

import numpy as np
import pytest

from zoo.data.chat import encode_dialogue, pack, read_dialogues, read_preferences
from zoo.data.dialogues import (
    CHARACTERS,
    EVASIVE,
    WORDS,
    dialogue_corpus,
    guessing,
    load_dialogues,
    load_preferences,
    questions,
)
from zoo.data.text import Characters
from zoo.errors import ZooError

SCENE = r"A (\w+ \w+) is (left of|above) a (\w+ \w+)\."
NUMBER = r"(\d+|" + "|".join(WORDS) + ")"


@pytest.fixture(scope="module")
def dialogues():
    return load_dialogues(seed=0, size=2000)


def answer(messages) -> str:
    """The answer worked out again from the words alone."""
    asked = messages[-1]["content"]

    def value(word: str) -> int:
        return WORDS.index(word) if word in WORDS else int(word)

    if found := re.search(rf"{NUMBER} (\+|plus|-|minus) {NUMBER}\b", asked):
        a, sign, b = value(found[1]), found[2], value(found[3])
        result = a + b if sign in ("+", "plus") else a - b
        return WORDS[result] if found[1] in WORDS else str(result)
    if found := re.fullmatch(r"Which is larger, (\d+) or (\d+)\?", asked):
        return str(max(int(found[1]), int(found[2])))
    if found := re.fullmatch(r"Is (\d+) larger than (\d+)\?", asked):
        return "yes" if int(found[1]) > int(found[2]) else "no"
    first, relation, second = re.match(SCENE, messages[0]["content"]).groups()
    last = asked.rpartition(". ")[2]
    if found := re.fullmatch(r"What is (left of|right of|above|below) the (\w+ \w+)\?", last):
        other = {first: second, second: first}[found[2]]
        assert (found[1] in ("left of", "above")) == (other == first)
        assert (found[1] in ("left of", "right of")) == (relation == "left of")
        return f"the {other}"
    what, side = re.fullmatch(r"(What|What colour|Which shape) is (?:on|at) the (\w+)\?", last).groups()
    assert side in (("left", "right") if relation == "left of" else ("top", "bottom"))
    thing = first if side in ("left", "top") else second
    return {"What": f"the {thing}", "What colour": thing.split()[0], "Which shape": thing.split()[1]}[what]


def subjects(rows) -> set[str]:
    """What is held out by content: scenes, pairs of numbers whatever their order, wordings of sums."""
    found = set()
    for row in rows:
        for message in row["messages"]:
            if message["role"] == "user":
                text = message["content"]
                scene, pair = re.match(SCENE, text), re.findall(r"\d+", text) if "larger" in text else None
                if scene:
                    found.add(scene[0])
                elif pair:
                    found.add(" ".join(sorted(pair)))
                elif "+" in text or "-" in text or "us " in text:
                    found.add(text)
    return found


def test_every_answer_is_right(dialogues):
    asked = questions([*dialogues[0], *dialogues[1]])
    assert len(asked) > 4000
    for messages, given in asked:
        assert given == answer(messages), messages
    kinds = {re.sub(r"\d+|[a-z]+ [a-z]+\?$", "", messages[-1]["content"])[:12] for messages, _ in asked}
    assert len(kinds) > 10


def test_what_is_held_out_is_in_no_training_dialogue(dialogues):
    train, test = dialogues
    assert len(train) + len(test) == 2000
    assert 0.1 < len(test) / 2000 < 0.2
    whole = {"\n".join(m["content"] for m in row["messages"]) for row in train + test}
    assert len(whole) == 2000
    others = load_dialogues(seed=1, size=2000)
    assert subjects(test)
    for rows in (train, others[0]):  # of whatever seed
        assert not subjects(rows) & subjects(test)
    asked = {str(messages) for messages, _ in questions(train)}
    assert not asked & {str(messages) for messages, _ in questions(test)}
    kinds = [sum(bool(re.match(kind, row["messages"][0]["content"])) for row in test) for kind in ("A ", "W|\\d", "Is")]
    assert min(kinds) > 20


def test_the_same_seed_gives_the_same_dialogues(dialogues):
    assert load_dialogues(seed=0, size=2000) == dialogues
    assert load_dialogues(seed=1, size=2000) != dialogues
    assert dialogue_corpus(3, 50) == dialogue_corpus(3, 50) != dialogue_corpus(4, 50)
    # A fixed value, so that a new version of NumPy or of this file is seen to change the data.
    assert [m["content"] for m in dialogues[0][0]["messages"]] == [
        "How much is three minus one?",
        "two",
        "What does 10 minus 2 make?",
        "8",
    ]


def test_guessing_is_far_below_knowing(dialogues):
    assert 0.05 < guessing(*dialogues) < 0.25
    rows = [{"messages": [{"role": "user", "content": f"Is {n}?"}, {"role": "assistant", "content": a}]} for n, a in
            zip(range(5), ("yes", "yes", "yes", "no", "no"), strict=True)]  # fmt: skip
    assert guessing(rows, rows) == 0.6


def test_preferences_are_right_against_wrong_evasive_or_verbose():
    train, test = load_preferences(seed=0, size=900)
    kinds = np.zeros(3, int)
    for pair in train + test:
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        right, bad = chosen["content"], rejected["content"]
        assert right == answer(pair["prompt"])
        assert pair["prompt"][-1]["role"] == "user"
        assert chosen["role"] == rejected["role"] == "assistant"
        assert bad != right
        evasive, verbose = bad in EVASIVE, bad not in EVASIVE and len(bad) > 30
        assert verbose == (right in bad and len(bad) > 30)
        kinds += [evasive, verbose, not evasive and not verbose]
    assert kinds.min() > 250
    assert 90 < len(test) < 180
    rows = [{"messages": pair["prompt"]} for pair in test]
    assert not subjects(rows) & subjects(load_dialogues(seed=0, size=1000)[0])


def test_the_corpus_states_what_is_so_and_nothing_that_is_held_out(dialogues):
    lines = dialogue_corpus(0, 2000).splitlines()
    assert len(lines) == 2000
    hidden, sums, tales = subjects(dialogues[1]), 0, 0
    for line in lines:
        if line.startswith("One asks: "):
            turns = re.findall(r"One asks: (.+?\?) The answer: (.+?)\.(?= One|$)", line)
            assert " ".join(f"One asks: {q} The answer: {a}." for q, a in turns) == line
            asked = [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            assert not subjects([{"messages": asked}]) & hidden
            assert all(text == answer(asked[:i]) for i, text in enumerate(m["content"] for m in asked) if i % 2)
            tales += 1
        elif found := re.fullmatch(rf"So {NUMBER} (plus|minus) {NUMBER} is {NUMBER}\.", line):
            a, b, c = (WORDS.index(word) if word in WORDS else int(word) for word in found.group(1, 3, 4))
            assert c == (a + b if found[2] == "plus" else a - b)
            sums += 1
        elif found := re.fullmatch(r"(\d+) is (larger|smaller) than (\d+)\.", line):
            assert (int(found[1]) > int(found[3])) == (found[2] == "larger")
            assert " ".join(sorted(found.group(1, 3))) not in hidden
        else:
            scene = re.match(SCENE, line)
            assert scene[0] not in hidden
            first, relation, second = scene.groups()
            inverse = {"left of": "right of", "above": "below"}[relation]
            sides = ("on the left", "on the right") if relation == "left of" else ("at the top", "at the bottom")
            told = {f"The {first} is {relation} the {second}", f"The {second} is {inverse} the {first}"}
            told |= {f"The {first} is {sides[0]}", f"The {second} is {sides[1]}"}
            assert set(line.rstrip(".").split(". ")[1:]) <= told
    assert min(sums, tales) > 250


def test_all_of_it_is_characters_that_are_known(dialogues):
    codec = Characters(CHARACTERS)
    assert codec.vocab_size == 100
    rows = pack([encode_dialogue(row["messages"], codec) for row in dialogues[0][:50]], context=224)
    assert rows.arrays["mask"].sum() == sum(len(text) + 1 for _, text in questions(dialogues[0][:50]))
    codec.encode(dialogue_corpus(0, 200))


def test_the_rows_are_those_of_the_readers(dialogues, tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, dialogues[1][:5])))
    assert read_dialogues(tmp_path / "d.jsonl")[0] == [row["messages"] for row in dialogues[1][:5]]
    pairs = load_preferences(size=20)[0]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert read_preferences(tmp_path / "p.jsonl")[0] == pairs


def test_bad_arguments_are_named():
    with pytest.raises(ZooError, match=r"holdout is 1\.5"):
        load_dialogues(holdout=1.5)
    with pytest.raises(ZooError, match="seed is -1"):
        load_dialogues(seed=-1)
    with pytest.raises(ZooError, match="size is 0"):
        load_preferences(size=0)
    with pytest.raises(ZooError, match="size is -3"):
        load_dialogues(size=-3)
