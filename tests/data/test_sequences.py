"""Sequences of scenes: every position of every task by hand, what rows hold, prompts and the vocabulary."""

import collections
import hashlib
import itertools
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data import ImageConfig, Shuffled, load_images, sequences
from zoo.data.damage import EMPTY, Hole
from zoo.data.draw import Draw
from zoo.data.drawing import draw_scene
from zoo.data.scenes import FIELDS, Scene, Scenes, Thing, scene
from zoo.data.sentences import Named, Told, caption, describe, holds, parse, questions, text_of
from zoo.data.sequences import (
    FIRST_WORD,
    SPECIALS,
    TASKS,
    SceneFactors,
    SceneMix,
    SceneRows,
    Vocabulary,
    answer_prompt,
    caption_prompt,
    clean_prompt,
    describe_prompt,
    draw_prompt,
    fill,
    given,
    lay_out,
    longest,
    plan_prompt,
)
from zoo.errors import ZooError

SMALL = Vocabulary(codes=5, grid=(2, 2))
LARGE = Vocabulary(codes=1024, grid=(8, 8))
STAR = Scene("black", (Thing("star", "red", "small", "plain", "flat", 0),))
HOLE = Hole(0, 0, 8, 10, ellipse=False)  # within the first of 2 × 2 cells
TURNS = [("what colour is the star?", "red"), ("where is the star?", "top left"), ("is there a blue ring?", "no")]
SPLITS = ("train", "test", "compositional")

# Every position as token:mark. #k is the slot of the row's code k. g is given; a fraction is the weight of a token
# that is learned; - is neither.
BY_HAND = {
    "draw": """
        <begin>:g a:g small:g flat:g plain:g red:g star:g at:g the:g top:g left:g on:g a:g black:g background:g
        <image>:g #0:1/5 #1:1/5 #2:1/5 #3:1/5 <end>:1/5""",
    "plan": """
        <begin>:g a:g red:g star:g <describe>:g
        a:1/15 small:1/15 flat:1/15 plain:1/15 red:1/15 star:1/15 at:1/15 the:1/15 top:1/15 left:1/15
        on:1/15 a:1/15 black:1/15 background:1/15 <end>:1/15""",
    "caption": """
        <begin>:g <image>:g #0:g #1:g #2:g #3:g <caption>:g a:1/4 red:1/4 star:1/4 <end>:1/4""",
    "describe": """
        <begin>:g <image>:g #0:g #1:g #2:g #3:g <describe>:g
        a:1/15 small:1/15 flat:1/15 plain:1/15 red:1/15 star:1/15 at:1/15 the:1/15 top:1/15 left:1/15
        on:1/15 a:1/15 black:1/15 background:1/15 <end>:1/15""",
    "answer": """
        <begin>:g <image>:g #0:g #1:g #2:g #3:g
        <question>:g what:g colour:g is:g the:g star:g ?:g <answer>:g red:1/7 <end>:1/7
        <question>:- where:- is:- the:- star:- ?:- <answer>:- top:1/7 left:1/7 <end>:1/7
        <question>:- is:- there:- a:- blue:- ring:- ?:- <answer>:- no:1/7 <end>:1/7""",
    "tell": """
        <begin>:g a:g small:g flat:g plain:g red:g star:g at:g the:g top:g left:g on:g a:g black:g background:g
        <question>:g what:g colour:g is:g the:g star:g ?:g <answer>:g red:1/7 <end>:1/7
        <question>:- where:- is:- the:- star:- ?:- <answer>:- top:1/7 left:1/7 <end>:1/7
        <question>:- is:- there:- a:- blue:- ring:- ?:- <answer>:- no:1/7 <end>:1/7""",
    "clean": """
        <begin>:g <damaged>:g <hole>:g #1:g #2:g #3:g <image>:g #4:1/5 #5:1/5 #6:1/5 #7:1/5 <end>:1/5""",
    "text": """
        <begin>:g a:1/4 red:1/4 star:1/4 <end>:1/4""",
}


def only(*tasks):
    """A mix of some tasks, each as likely."""
    return SceneMix(**{task: float(task in tasks) for task in TASKS})


def id_of(name, vocabulary=SMALL):
    return vocabulary.hole if name == "<hole>" else (*SPECIALS, *vocabulary.words).index(name)


@pytest.fixture
def by_hand(monkeypatch):
    """Every scene is the red star, told as "a red star", and asked for by TURNS."""
    turns = itertools.cycle(TURNS)
    monkeypatch.setattr(sequences, "scene", lambda split, index, things=None: STAR)
    monkeypatch.setattr(sequences, "caption", lambda scene, draw, order=(): Told((Named("star", "red"),)))
    monkeypatch.setattr(sequences, "ask", lambda scene, draw: ("", next(turns)))
    monkeypatch.setattr(sequences, "draw_damage", lambda draw: HOLE)
    monkeypatch.setattr(sequences, "UNTOLD", 10**9)


@pytest.mark.parametrize("task", TASKS)
def test_every_position_by_hand(task, by_hand):
    source = SceneRows("train", SMALL, 150, pictures=2 if task == "clean" else 1, mix=only(task))
    row = {name: x[0] for name, x in source[np.arange(1)].items()}
    expected = [entry.rsplit(":", 1) for entry in BY_HAND[task].split()]
    for at, (token, mark) in enumerate(expected):
        slot = int(token[1:]) if token.startswith("#") else -1
        weight = Fraction(mark) if "/" in mark else 0
        found = {name: row[name][at] for name in ("tokens", "slots", "documents", "positions", "given", "kinds")}
        assert found == {
            "tokens": 0 if slot >= 0 else id_of(token),
            "slots": slot,
            "documents": 1,
            "positions": at,
            "given": mark == "g",
            "kinds": TASKS.index(task) if weight else -1,
        }, f"{task}, position {at}"
        assert row["weights"][at] == np.float32(weight)
    end = len(expected)
    if task in ("plan", "tell", "text"):  # these show nothing, so that more of them follow
        assert (row["documents"][end], row["positions"][end], row["given"][end]) == (2, 0, True)
    else:
        nothing = {"tokens": 0, "slots": -1, "documents": 0, "positions": 0, "given": 0, "kinds": -1, "weights": 0}
        assert {name: set(row[name][end:].tolist()) for name in nothing} == {n: {x} for n, x in nothing.items()}
    whole = draw_scene(STAR)
    if task == "clean":
        assert (row["image"][0][:8, :10] == EMPTY).all()
        np.testing.assert_array_equal(row["image"][0][8:], whole[8:])
        np.testing.assert_array_equal(row["image"][0][:, 10:], whole[:, 10:])
    np.testing.assert_array_equal(
        row["image"][-1], whole if task not in ("plan", "tell", "text") else np.zeros_like(whole)
    )


def test_two_sequences_in_a_row_by_hand(by_hand):
    source = SceneRows("train", SMALL, 70, pictures=2, mix=only("draw"), factors=SceneFactors(draw=2.5))
    row = {name: x[0].tolist() for name, x in source[np.arange(1)].items()}
    pad = 70 - 2 * 21
    assert row["documents"] == [1] * 21 + [2] * 21 + [0] * pad
    assert row["positions"] == [*range(21), *range(21)] + [0] * pad
    assert row["slots"] == [-1] * 16 + [0, 1, 2, 3, -1] + [-1] * 16 + [4, 5, 6, 7, -1] + [-1] * pad
    assert row["given"] == ([True] * 16 + [False] * 5) * 2 + [False] * pad
    assert row["weights"] == ([0.0] * 16 + [0.5] * 5) * 2 + [0.0] * pad
    assert row["kinds"] == ([-1] * 16 + [0] * 5) * 2 + [-1] * pad


@pytest.mark.parametrize(("task", "mark"), [("draw", "<image>"), ("plan", "<describe>")])
def test_one_in_ten_drawings_and_plans_is_of_any_scene(task, mark):
    row = SceneRows("train", SMALL, 40_000, pictures=2000, mix=only(task)).sequences(0)
    untold = [layout for _, layout in row if layout.tokens[1] == id_of(mark)]
    assert len(row) > 800
    assert len(untold) / len(row) == pytest.approx(0.1, abs=0.03)
    if task == "plan":
        return
    assert untold[0].tokens.tolist() == [id_of("<begin>"), id_of("<image>"), 0, 0, 0, 0, id_of("<end>")]


@pytest.mark.parametrize(
    ("task", "share"), [("caption", 0.5), ("describe", 0.5), ("answer", 0.5), ("draw", 0), ("clean", 0)]
)
def test_half_of_the_pictures_to_be_read_are_redrawn(task, share):
    row = SceneRows("train", SMALL, 20_000, pictures=400, mix=only(task)).sequences(0)
    redrawn = [picture.redrawn for _, layout in row for picture in layout.pictures]
    assert len(redrawn) > 300
    assert np.mean(redrawn) == pytest.approx(share, abs=0.08 if share else 0)


def test_codes_fill_their_slots():
    tokens = np.array([[1, 3, 0, 0, 2], [4, 0, 0, 0, 0]], np.int32)
    slots = np.array([[-1, -1, 3, 0, -1], [-1, 1, 2, -1, -1]], np.int32)
    codes = np.array([[[5, 6], [7, 8]], [[10, 11], [12, 13]]], np.int32)  # two pictures of two codes
    expected = [[1, 3, 108, 105, 2], [4, 111, 112, 0, 0]]
    assert fill(tokens, slots, codes, 100).tolist() == expected
    filled = jax.jit(fill, static_argnums=3)(*map(jnp.asarray, (tokens, slots, codes)), 100)
    assert filled.tolist() == expected
    assert filled.dtype == jnp.int32


def test_cells_that_a_hole_touches_are_lost():
    box = Hole(5, 2, 11, 20, ellipse=False)
    layout = lay_out([given(sequences.Picture(STAR, box))], Vocabulary(5, (4, 4)))
    assert layout.tokens.tolist() == [89, 89, 89, 0] * 2 + [0] * 8
    assert layout.slots.tolist() == [-1, -1, -1, 3, -1, -1, -1, *range(7, 16)]


# Rows


def test_a_row_is_a_function_of_its_index():
    code = (
        "import hashlib, numpy as np; from zoo.data import SceneRows, Vocabulary;"
        "batch = SceneRows('train', Vocabulary(1024, (8, 8)), seed=3)[np.arange(12)];"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in batch.values())).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    source = SceneRows("train", LARGE, seed=3)
    batch = source[np.arange(12)]
    assert other == hashlib.sha256(b"".join(x.tobytes() for x in batch.values())).hexdigest()
    some = source[np.array([7, 2])]
    for name in batch:
        np.testing.assert_array_equal(some[name], batch[name][[7, 2]], strict=True)
    others = (
        SceneRows("train", LARGE, seed=4)[np.arange(12)],
        SceneRows("test", LARGE, seed=3)[np.arange(12)],
        source[np.arange(12, 24)],
    )
    for other in others:
        assert (batch["tokens"] != other["tokens"]).any(axis=1).all()
    shuffled = Shuffled(SceneRows("train", LARGE, rows=20), batch=4)
    assert shuffled.examples == 20
    assert shuffled.rows(3)["tokens"].shape == (4, 256)


@pytest.mark.parametrize(("length", "pictures", "size"), [(256, 3, 32), (144, 2, 32), (400, 5, 64)])
def test_rows_keep_their_bounds(length, pictures, size):
    source = SceneRows("train", LARGE, length, pictures, size=size)
    batch = source[np.arange(40)]
    shapes = {name: x.shape for name, x in batch.items()}
    assert shapes.pop("image") == (40, pictures, size, size, 3)
    assert shapes.pop("redrawn") == (40, pictures)
    assert set(shapes.values()) == {(40, length)}
    assert batch["slots"].max() < pictures * 64
    assert not (batch["tokens"] * (batch["slots"] >= 0)).any()
    for i in range(40):
        row = {name: x[i] for name, x in batch.items()}
        found = source.sequences(i)
        lengths = [len(layout.tokens) for _, layout in found]
        assert 0 < sum(lengths) <= length
        documents = np.repeat(np.arange(1, len(found) + 1), lengths)
        assert row["documents"].tolist() == documents.tolist() + [0] * (length - sum(lengths))
        assert row["positions"][: sum(lengths)].tolist() == [p for n in lengths for p in range(n)]
        # Slots come in order, of as many pictures as are there, and every loss sums to one
        slots = row["slots"][row["slots"] >= 0]
        assert (np.diff(slots) > 0).all()
        shown = [picture for _, layout in found for picture in layout.pictures]
        assert len(shown) <= pictures
        assert set(slots // 64) <= set(range(len(shown)))
        assert not row["image"][len(shown) :].any()
        absent = [False] * (pictures - len(shown))
        assert row["redrawn"].tolist() == [picture.redrawn for picture in shown] + absent
        for image, picture in zip(row["image"], shown, strict=False):
            np.testing.assert_array_equal(image, picture.pixels(size))
        for document, (task, _) in enumerate(found, start=1):
            here = row["documents"] == document
            assert row["weights"][here].sum() == pytest.approx(1, abs=1e-6)
            assert set(row["kinds"][here & (row["weights"] > 0)]) == {TASKS.index(task)}
            assert (row["given"][here] == (np.cumsum(row["weights"][here]) == 0)).all()


def test_tasks_come_as_often_as_the_mix_says():
    def shares(mix):
        source = SceneRows("train", SMALL, 4000, pictures=400, mix=mix)
        tasks = [task for i in range(12) for task, _ in source.sequences(i)]
        assert len(tasks) > 1200
        return {task: count / len(tasks) for task, count in collections.Counter(tasks).items()}

    expected = {"draw": 0.42, "plan": 0.08, "caption": 0.06, "describe": 0.14, "answer": 0.12, "tell": 0.12}
    assert shares(SceneMix()) == pytest.approx(expected | {"clean": 0.04, "text": 0.02}, abs=0.04)
    assert shares(only("text", "tell")) == pytest.approx({"text": 0.5, "tell": 0.5}, abs=0.04)


def test_a_row_ends_after_five_that_do_not_fit():
    """With half of the draws ones that need another picture, 2⁵ - 1 more fit on average, and one before the first."""
    source = SceneRows("train", SMALL, 4000, pictures=1, mix=only("draw", "text"))
    counts = [collections.Counter(task for task, _ in source.sequences(i)) for i in range(80)]
    assert {count["draw"] for count in counts} == {1}
    assert np.mean([count["text"] for count in counts]) == pytest.approx(32, abs=8)


def sides(ids, vocabulary):
    """The texts of a sequence between its specials, without codes."""
    ids = [token for token in ids if token != vocabulary.hole]
    marks = [i for i, token in enumerate(ids) if token < FIRST_WORD]
    return [vocabulary.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(marks) if b > a + 1]


@pytest.mark.parametrize("split", SPLITS)
def test_sequences_are_true_and_of_their_split(split):
    source = SceneRows(split, SMALL, 3000, pictures=200)
    seen = collections.Counter()
    for task, layout in (each for i in range(3) for each in source.sequences(i)):
        texts = sides(layout.tokens.tolist(), SMALL)
        if task in ("plan", "tell", "describe"):
            told = parse(texts[-1 if task == "plan" else 0])
            things = (Thing(**{name: getattr(x, name) for name in FIELDS}, quarter=x.quarter) for x in told.things)
            shown = Scene(told.background, tuple(sorted(things, key=lambda thing: thing.quarter)))
        else:
            shown = layout.pictures[-1].scene if layout.pictures else None
        if shown is None:
            assert task == "text"
            continue
        seen[task] += 1
        assert shown.split == split
        assert all(picture.scene.split == split for picture in layout.pictures)
        if task in ("answer", "tell"):
            turns = texts[task == "tell" :]
            pairs = set(zip(turns[::2], turns[1::2], strict=True))
            assert len(pairs) == 3
            assert pairs <= {turn for turns in questions(shown).values() for turn in turns}
        elif texts:
            assert holds(parse(texts[0]), shown)
        if task == "draw" and texts:  # a drawing follows from all that there is, told in any order
            assert set(parse(texts[0]).things) == set(describe(shown).things)
            assert parse(texts[0]).background == shown.background
            seen["in another order"] += parse(texts[0]) != describe(shown)
        if task == "plan" and len(texts) == 2:  # a plan keeps the order of what it is planned from
            named, planned = parse(texts[0]).things, parse(texts[1]).things
            assert all(name.fits(thing) for name, thing in zip(named, planned, strict=True))
            seen["planned so"] += [x.quarter for x in planned] != sorted(x.quarter for x in planned)
    assert set(seen) == {*TASKS, "in another order", "planned so"} - {"text"}
    assert seen["in another order"] > 0 < seen["planned so"]


def test_the_longest_sequences_have_room():
    spotted = Thing("star", "red", "small", "spotted", "flat", 0)
    full = Scene("black", tuple(Thing("star", "red", "small", "spotted", "flat", i) for i in range(4)))
    for things, most in ((1, Scene("black", (spotted,))), (4, full), (None, full)):
        assert longest(SMALL, things)["text"] == len(SMALL.encode(text_of(describe(most)))) + 2
    # Four things of 12 words each, two commas, "and" and a background of 4 words are 55; a question of 10 words with an
    # answer of 3 and their three specials, three times, are 48
    by_task = {
        "draw": 55 + 7,
        "plan": 110 + 3,
        "caption": 55 + 8,
        "describe": 55 + 8,
        "answer": 6 + 48,
        "tell": 1 + 55 + 48,
    }
    assert longest(SMALL) == by_task | {"clean": 12, "text": 57}
    rows = SceneRows("train", SMALL, 5000, pictures=400)
    asked = SceneRows("train", SMALL, 5000, pictures=400, mix=only("answer"))  # three long questions are rare
    found = [each for source in (rows, asked) for i in range(12) for each in source.sequences(i)]
    lengths = {task: max(len(layout.tokens) for name, layout in found if name == task) for task in TASKS}
    assert all(lengths[task] <= longest(SMALL)[task] for task in TASKS)
    assert lengths["clean"] == longest(SMALL)["clean"]
    assert lengths["answer"] >= longest(SMALL)["answer"] - 6
    for task, pictures in (("draw", 1), ("answer", 1), ("tell", 0), ("clean", 2)):
        most = longest(LARGE)[task]
        assert SceneRows("train", LARGE, most, pictures, mix=only(task)).sequences(0)
        for less in ((most - 1, pictures), (most, pictures - 1)):
            if pictures or less[0] < most:
                with pytest.raises(ZooError, match=f"{task} takes up to {most}"):
                    SceneRows("train", LARGE, *less, mix=only(task))


# The vocabulary


def test_the_words_are_those_of_the_grammar():
    """No more and no fewer than many scenes of all splits bring forth."""
    draw, used = Draw(2), collections.Counter()
    for i in range(900):
        each = scene(SPLITS[i % 3], i)
        turns = [text for turns in questions(each).values() for turn in turns for text in turn] if i < 400 else []
        for text in (text_of(caption(each, draw)), text_of(describe(each)), *turns):
            ids = SMALL.encode(text)
            assert SMALL.decode(ids) == text
            used.update(ids)
    assert set(used) == set(range(FIRST_WORD, SMALL.first_code))
    assert SMALL.words == tuple(sorted(SMALL.words))
    assert {",", "?", "orange", "an", "three", "background"} < set(SMALL.words)


def test_captions_come_back_from_their_ids():
    draw, texts = Draw(4), set()
    for i in range(3000):
        told = caption(scene("train", i), draw)
        text = SMALL.decode(SMALL.encode(text_of(told)))
        assert parse(text) == told
        texts.add(text)
    assert len(texts) > 2000


def test_the_vocabulary_by_hand():
    assert SPECIALS[:2] == ("<pad>", "<begin>")
    assert sequences.END == 8 == FIRST_WORD - 1
    names = (sequences.IMAGE, sequences.DAMAGED, sequences.CAPTION, sequences.DESCRIBE, sequences.END)
    assert [SPECIALS[i] for i in names] == ["<image>", "<damaged>", "<caption>", "<describe>", "<end>"]
    assert SMALL.first_code == 9 + len(SMALL.words)
    assert (SMALL.hole, SMALL.size) == (SMALL.first_code + 5, SMALL.first_code + 6)
    assert SMALL.encode("A red star, and a ring.") == [id_of(x) for x in ("a", "red", "star", ",", "and", "a", "ring")]
    assert SMALL.encode("") == []
    ids = np.array([1, *SMALL.encode("is there a star?"), 2, SMALL.first_code, SMALL.first_code + 4, SMALL.hole, 8])
    assert SMALL.decode(ids) == "<begin> is there a star? <image> #0 #4 <hole> <end>"
    assert SMALL.code_ids([[4, 0], [1, 2]]) == [SMALL.first_code + code for code in (4, 0, 1, 2)]


def test_prompts_are_what_is_given(by_hand):
    codes = np.array([4, 0, 1, 2])
    prompts = {
        "draw": draw_prompt(SMALL.encode(text_of(describe(STAR)))),
        "plan": plan_prompt(SMALL, "a red star"),
        "caption": caption_prompt(SMALL, codes),
        "describe": describe_prompt(SMALL, codes.reshape(2, 2)),
        "answer": answer_prompt(SMALL, TURNS[0][0], codes=codes),
        "tell": answer_prompt(SMALL, "What colour is the star", text=text_of(describe(STAR))),
        "clean": clean_prompt(SMALL, codes, np.array([[True, False], [False, False]])),
    }
    for task, prompt in prompts.items():
        source = SceneRows("train", SMALL, 150, pictures=2, mix=only(task))
        row = {name: x[:1] for name, x in source[np.arange(1)].items()}
        tokens = fill(row["tokens"], row["slots"], np.stack([codes, codes])[None], SMALL.first_code)
        assert prompt == tokens[row["given"] & (row["documents"] == 1)].tolist(), task
    first = SMALL.first_code
    assert draw_prompt() == [1, 2]
    assert plan_prompt(SMALL) == [1, 5]
    assert caption_prompt(SMALL, codes) == [1, 2, first + 4, first, first + 1, first + 2, 4]
    assert clean_prompt(SMALL, codes) == [1, 3, first + 4, first, first + 1, first + 2, 2]


def test_scenes_are_an_image_source():
    train, test = load_images(ImageConfig("scenes"))
    assert (len(train), len(test), train.shape, train.classes) == (100_000, 2000, (32, 32, 3), FIELDS["shape"])
    np.testing.assert_array_equal(test[np.arange(3)]["image"], Scenes("test")[np.arange(3)]["image"])
    np.testing.assert_array_equal(train[np.arange(3)]["image"][1], draw_scene(scene("train", 1)))
    for part in load_images(ImageConfig("scenes", size=64)):
        assert part[np.arange(2)]["image"].shape == (2, *part.shape) == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary(0, (2, 2)), "at least 1"),
        (lambda: SMALL.encode("a blu star"), "unknown word 'blu'; did you mean blue"),
        (lambda: SMALL.encode("a red elephant!"), "'elephant!'"),
        (lambda: SMALL.code_ids([1, 2, 3]), "give 4, each of 0 to 4"),
        (lambda: SMALL.code_ids([1, 2, 3, 5]), "each of 0 to 4"),
        (lambda: SceneMix(draw=-0.1), "0 or more"),
        (lambda: SceneMix(draw=float("nan")), "0 or more"),
        (lambda: only(), "one of them above 0"),
        (lambda: SceneRows("trian", SMALL), "did you mean train"),
        (lambda: SceneRows("train", SMALL, size=48), "32 or 64"),
        (lambda: SceneRows("train", Vocabulary(5, (5, 4))), "5×4 cells"),
        (lambda: SceneRows("train", SMALL, seed=-1), "at least 0"),
        (lambda: SceneRows("train", SMALL, rows=0), "the rows 1"),
        (lambda: SceneRows("train", SMALL).sequences(-1), "at least 0"),
        (lambda: answer_prompt(SMALL, "what is there?"), "codes, or text"),
        (lambda: answer_prompt(SMALL, "what is there?", codes=[0] * 4, text="a star"), "codes, or text"),
        (lambda: clean_prompt(SMALL, [0] * 4, [True] * 3), "4 cells"),
        (lambda: load_images(ImageConfig("scenes", size=48)), "32 or 64"),
        (lambda: load_images(ImageConfig("scenes", channels="gray")), "in colour"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ZooError, match=message):
        make()
