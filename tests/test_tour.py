"""The tour and the command lines of scenes, with a model that is ideal, or spoilt in one place."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import zoo
from zoo.cli import main
from zoo.data.drawing import draw_scene
from zoo.data.oracle import read_scene
from zoo.data.scenes import Scene, Thing
from zoo.data.sentences import describe, questions, text_of
from zoo.errors import ZooError
from zoo.tour import QUESTIONS, asked, blocks, tour

SPOTTED = Scene("navy", (Thing("circle", "blue", "large", "spotted", "flat", 2),))
PLAIN = Scene("navy", (Thing("circle", "blue", "large", "plain", "flat", 2),))


@pytest.fixture
def ideal(monkeypatch):
    """A function that makes the front door ideal, but for what it is given."""

    def make(**spoilt):
        def answer(question, *, image=None, text=None, model):
            seen = read_scene(np.asarray(image)) if image is not None else SPOTTED
            return dict(turn for turns in questions(seen).values() for turn in turns)[question]

        verbs = {
            "draw": lambda text, **_: [Image.fromarray(draw_scene(SPOTTED, 64))],
            "describe": lambda image, *, model: text_of(describe(read_scene(np.asarray(image)))),
            "answer": answer,
        }
        for name, verb in (verbs | spoilt).items():
            monkeypatch.setattr(zoo, name, verb, raising=False)

    return make


def told(tmp_path, text="a blue circle with some spots"):
    out = io.StringIO()
    held = tour(text, "scenes", 0, tmp_path / "tour.png", Console(file=out, width=200))
    return held, out.getvalue()


def test_a_chain_that_holds(ideal, tmp_path):
    ideal()
    held, out = told(tmp_path)
    assert held
    assert "the chain held" in out
    assert out.count("  held  ") == 2 + QUESTIONS
    assert "described: a large flat blue circle with some spots at the bottom left on a navy background" in out
    assert read_scene(np.asarray(Image.open(tmp_path / "tour.png"))) == SPOTTED


@pytest.mark.parametrize(
    ("spoilt", "line"),
    [
        (
            {"draw": lambda text, **_: [Image.fromarray(draw_scene(PLAIN, 64))]},
            "it shows a large flat plain blue circle",
        ),
        ({"draw": lambda text, **_: [Image.new("RGB", (64, 64), (18, 26, 84))]}, "there is nothing in it"),
        ({"describe": lambda image, *, model: "a red ring"}, "described: a red ring"),
        ({"answer": lambda question, *, image=None, text=None, model: "four"}, "four (it is "),
    ],
)
def test_a_chain_that_breaks_says_where(ideal, tmp_path, spoilt, line):
    ideal(**spoilt)
    held, out = told(tmp_path)
    assert not held
    assert any("broke" in row and line in row for row in out.splitlines())


def test_questions_differ_and_the_picture_is_shown():
    turns = asked(SPOTTED, 3)
    assert len(set(turns)) == QUESTIONS
    shown = blocks(Image.fromarray(draw_scene(SPOTTED, 64)))
    rows = shown.plain.splitlines()
    assert (len(rows), set(map(len, rows)), set("".join(rows))) == (16, {32}, {"▀"})
    assert str(shown.spans[0].style) == "rgb(18,26,84) on rgb(18,26,84)"


def test_what_cannot_be_drawn_is_said_at_once(ideal, tmp_path, capsys):
    ideal()
    with pytest.raises(ZooError, match="crimson"):
        told(tmp_path, "a crimson circle")
    for arguments in (["draw", "a red ring", "--out", "x.txt"], ["tour", "--out", str(tmp_path / "no" / "x.png")]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "error: " in capsys.readouterr().err
