"""Scenes: drawings that are read back without a fault, sentences that are read back as they were meant."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from zoo.data.draw import Draw
from zoo.data.drawing import boxes, draw_scene, drawn, masks
from zoo.data.oracle import read_scene, read_scenes
from zoo.data.scenes import COLOURS, FIELDS, SHAPES, Scene, Scenes, Thing, rare, scene
from zoo.data.sentences import KINDS, NUMBERS, RELATIONS, Named, Told, ask, caption, describe, holds, parse, questions
from zoo.data.sentences import text_of as write
from zoo.errors import ZooError

RED_CIRCLE = Thing("circle", "red", "large", "plain", "flat", 0)
BLUE_STAR = Thing("star", "blue", "small", "spotted", "shaded", 3, dx=2, dy=-3)
PAIR = Scene("black", (RED_CIRCLE, BLUE_STAR))


def many(n, split="train"):
    return [scene(split, i) for i in range(n)]


def test_an_example_is_a_function_of_its_index():
    assert scene("train", 7) == scene("train", 7)
    assert len(set(many(200))) > 195
    code = (
        "import hashlib, numpy as np; from zoo.data.scenes import Scenes;"
        "print(hashlib.sha256(Scenes()[np.arange(20)]['image'].tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    source = Scenes()
    assert other == hashlib.sha256(source[np.arange(20)]["image"].tobytes()).hexdigest()
    batch = source[np.array([3, 5])]
    assert batch["image"].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(batch["image"][1], source[np.array([5])]["image"][0])
    assert batch["label"].tolist() == [SHAPES.index(scene("train", i).things[0].shape) for i in (3, 5)]


def test_splits_never_meet():
    train, test, new = (many(400, split) for split in ("train", "test", "compositional"))
    assert not any(rare(thing) for each in (*train, *test) for thing in each.things)
    assert all(any(rare(thing) for thing in each.things) for each in new)
    assert not {each.subject for each in train} & {each.subject for each in test}
    # Each colour and each shape misses just one partner, and is otherwise seen
    pairs = {(thing.colour, thing.shape) for each in train for thing in each.things}
    assert len(pairs) == 56
    assert {shape for _, shape in pairs} == set(SHAPES)
    counts = np.bincount([len(each.things) for each in train], minlength=5) / len(train)
    np.testing.assert_allclose(counts, [0, 0.4, 0.4, 0.1, 0.1], atol=0.08)
    assert all(len(scene("test", i, things=2).things) == 2 for i in range(20))


@pytest.mark.parametrize("size", [32, 64])
def test_the_oracle_reads_every_clean_drawing(size):
    scenes = [scene(split, i) for split in ("train", "test", "compositional") for i in range(150)]
    found = read_scenes(np.stack([draw_scene(each, size) for each in scenes]))
    assert [each for each, _ in found] == scenes
    assert max(distance for _, distance in found) < 0.5


def test_the_oracle_reads_every_kind_of_thing():
    """All 768, and with noise of 25 of 255 nearly all."""
    kinds = [
        Thing(shape, colour, size, texture, shading, 0)
        for shape in FIELDS["shape"]
        for colour in FIELDS["colour"]
        for size in FIELDS["size"]
        for texture in FIELDS["texture"]
        for shading in FIELDS["shading"]
    ]
    scenes = [Scene("gray", (kind,)) for kind in kinds]
    images = np.stack([draw_scene(each) for each in scenes])
    assert [each for each, _ in read_scenes(images)] == scenes
    noise = np.random.default_rng(0).normal(0, 25, images.shape)
    noisy = np.clip(images + noise, 0, 255).round().astype(np.uint8)
    right = np.mean([each == meant for (each, _), meant in zip(read_scenes(noisy), scenes, strict=True)])
    assert right > 0.97


def test_an_empty_picture_is_no_scene():
    assert read_scene(np.full((32, 32, 3), (16, 16, 16), np.uint8)) is None
    for bad in (np.zeros((32, 32, 3)), np.zeros((32, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)):
        with pytest.raises(ZooError, match=r"give uint8|drawn at 32 or 64"):
            read_scene(bad)


def test_a_drawing_by_hand():
    image = draw_scene(PAIR)
    assert image[8, 8].tolist() == [225, 35, 35]  # the middle of the circle
    assert image[0, 31].tolist() == image[20, 4].tolist() == [16, 16, 16]
    assert tuple(boxes(PAIR)[0]) == (1, 1, 15, 15)  # 14 pixels about (8, 8)
    found = masks(PAIR)
    assert found[0].sum() == pytest.approx(np.pi * 7**2, rel=0.05)
    assert not (found[0] & found[1]).any()
    assert not found[1][:16].any()
    large = draw_scene(PAIR, 64)
    assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - image).mean() < 3
    colours, cover = drawn("square", "white", "large", "plain", "flat", 32)
    assert cover[7, 7] == 16
    assert colours[7, 7].tolist() == [245 * 16] * 3


def test_captions_are_read_back():
    draw = Draw(0)
    texts = set()
    for i in range(1500):
        each = scene(("train", "test", "compositional")[i % 3], i)
        for told in (caption(each, draw), describe(each)):
            text = write(told)
            texts.add(text)
            assert parse(text) == told, text
            assert write(parse(text.upper() + ".")) == text
            assert holds(told, each), text
    assert len(texts) > 2500


def test_captions_by_hand():
    assert write(describe(PAIR)) == (
        "a large flat plain red circle at the top left and"
        " a small shaded blue star with some spots at the bottom right on a black background"
    )
    star, circle = Named("star", "blue"), Named("circle", "red", texture="plain")
    assert write(Told((star, circle), 3)) == "a blue star below a plain red circle"
    assert parse("an orange ring") == Told((Named("ring", "orange"),))
    assert holds(Told((star, circle), RELATIONS.index("below")), PAIR)
    assert holds(Told((star, circle), RELATIONS.index("to the right of")), PAIR)
    assert not holds(Told((star, circle), RELATIONS.index("above")), PAIR)
    assert not holds(Told((star,)), PAIR)  # there is one thing more
    assert not holds(Told((star, star)), PAIR)
    assert not holds(Told((star, circle), None, "gray"), PAIR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a blue elephant", "cannot read 'elephant'"),
        ("blue circle", "should name a thing"),
        ("a blue", "has no shape"),
        ("a blue red circle", "cannot read 'red'"),
        ("a circle on a lilac background", "no background 'lilac'"),
        (", ".join(["a red star"] * 5), "names 5 things"),
        ("", "should name a thing"),
    ],
)
def test_what_the_grammar_does_not_make_is_refused(text, message):
    with pytest.raises(ZooError, match=message):
        parse(text)


def test_questions_by_hand():
    found = questions(PAIR)
    assert set(found) == set(KINDS)
    turns = {question: answer for turns in found.values() for question, answer in turns}
    expected = {
        "how many things are there?": "two",
        "how many crosses are there?": "no",
        "how many blue things are there?": "one",
        "what colour is the star?": "blue",
        "what shape is the red thing?": "circle",
        "what size is the star?": "small",
        "is the blue thing plain, spotted or striped?": "spotted",
        "where is the circle?": "top left",
        "what is above the star?": "a red circle",
        "what is to the right of the red thing?": "a blue star",
        "is the star below the circle?": "yes",
        "is the star above the circle?": "no",
        "is there a blue star?": "yes",
        "is there an orange star?": "no",
        "what colour is the background?": "black",
    }
    assert {question: turns.get(question) for question in expected} == expected
    assert "what is above the circle?" not in turns
    ring = Scene("black", (Thing("ring", "orange", "large", "plain", "flat", 0), BLUE_STAR))
    assert ("what is above the star?", "an orange ring") in questions(ring)["what"]


def test_each_kind_is_asked_and_no_question_has_two_answers():
    draw, kinds = Draw(1), set()
    for each in many(300):
        turns = [turn for turns in questions(each).values() for turn in turns]
        assert len({question for question, _ in turns}) == len(set(turns))
        kind, turn = ask(each, draw)
        kinds.add(kind)
        assert turn in questions(each)[kind]
    assert kinds == set(KINDS)
    assert len(NUMBERS) == 5
    assert len(COLOURS) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scene("trian", 0), "did you mean train"),
        (lambda: scene("train", -1), "at least 0"),
        (lambda: scene("train", 0, things=5), "1 to 4"),
        (lambda: draw_scene(PAIR, 48), "32 or 64"),
        (lambda: Scene("black", ()), "1 to 4 things"),
        (lambda: Scene("black", (BLUE_STAR, RED_CIRCLE)), "order of different quarters"),
        (lambda: Scene("blak", (RED_CIRCLE,)), "did you mean black"),
        (lambda: Scene("black", (Thing("circle", "red", "large", "plain", "flat", 0, dx=2),)), "at most 1"),
        (lambda: Scenes(length=0), "at least 1"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ZooError, match=message):
        make()


def test_the_prepared_data_set_holds_the_same(tmp_path):
    from zoo.data.images import ImageConfig, load_images
    from zoo.data.scenes_tfds import example, prepare

    builder = prepare(tmp_path, examples=6)
    for split in ("train", "test", "compositional"):
        records = builder.as_data_source(split=split)
        assert len(records) == builder.info.splits[split].num_examples == 6
    found = {json.loads(record["scene"].decode())["background"]: record for record in builder.as_data_source("train")}
    every = [example("train", i) for i in range(6)]
    for record in found.values():
        meant = next(each for each in every if each["scene"] == record["scene"].decode())
        np.testing.assert_array_equal(record["image"], np.asarray(meant["image"]))
        np.testing.assert_array_equal(record["masks"], meant["masks"])
        np.testing.assert_array_equal(record["boxes"], meant["boxes"])
        assert [text.decode() for text in record["captions"]] == meant["captions"]
        assert [text.decode() for text in record["turns"]["answer"]] == [turn["answer"] for turn in meant["turns"]]
    train, test = load_images(ImageConfig(f"tfds:zoo_scenes@{tmp_path}"))
    assert (len(train), len(test), train.shape, train.classes) == (6, 6, (32, 32, 3), SHAPES)
    for size, count in ((48, 1), (32, 0)):
        with pytest.raises(ZooError, match=r"32 or 64|at least 1"):
            prepare(tmp_path / "other", size, count)
