"""The scene model's way of writing and reading, with random weights: what it may write, and what it leaves alone."""

import random
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zoo
from zoo import scenes
from zoo.data.drawing import draw_scene
from zoo.data.oracle import read_scenes
from zoo.data.scenes import scene
from zoo.data.sentences import describe, holds, text_of
from zoo.data.sentences import questions as all_questions
from zoo.data.sequences import (
    CAPTION,
    END,
    Vocabulary,
    caption_prompt,
    describe_prompt,
    draw_prompt,
    longest,
    plan_prompt,
)
from zoo.errors import ZooError
from zoo.generate.sampling import Sampling
from zoo.generate.scene_exam import Scores, chained, examine, mean, questions_of
from zoo.generate.scenes import (
    DRAWN_WEIGHT,
    GUIDANCE,
    READING_TEMPERATURE,
    STRANGE,
    STRANGE_WEIGHT,
    TEMPERATURE,
    WORD_GUIDANCE,
    SceneModel,
    in_parts,
)
from zoo.models.decoder import MODERN, Decoder
from zoo.models.tokenizer import Tokenizer, TokenizerConfig

EYES = TokenizerConfig(image_size=32, patch=8, widths=(8,), blocks=1, levels=(3, 3))
WORDS = Vocabulary(EYES.vocab_size, EYES.grid)
TINY = replace(
    MODERN,
    vocab_size=WORDS.size,
    first_code=WORDS.first_code,
    grid=WORDS.grid,
    context=96,
    layers=1,
    d_model=16,
    heads=2,
    residual_init="scaled",
)


def tiny(prefix=False):
    layers = 2 if prefix else 1  # in one alone what is read sees no more than its own tokens
    model = Decoder(replace(TINY, prefix=prefix, layers=layers), nnx.Rngs(0))
    model.token_embed[...] *= 3.0  # so that it is sure of something
    if prefix:  # and what it reads tells
        nnx.update(model.blocks, jax.tree.map(lambda x: 8.0 * x, nnx.state(model.blocks)))
    return SceneModel(model, Tokenizer(EYES, nnx.Rngs(1)))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def images():
    return np.stack([draw_scene(scene("test", i), 32) for i in range(3)])


def test_codes_and_pictures(model, images):
    codes = model.encode(images)
    assert codes.shape == (3, 16)
    alone = jax.jit(Tokenizer(EYES, nnx.Rngs(1)).encode)(images.astype(np.float32) / 255)
    np.testing.assert_array_equal(codes, alone.reshape(3, 16))
    np.testing.assert_array_equal(model.decode(codes[1:2]), model.decode(codes)[1:2])
    with pytest.raises(ZooError, match="uint8"):
        model.encode(images / 255)


def test_drawings_follow_the_seed_and_the_text(model):
    drawn = model.draw(["a red circle", None], n=2, seed=3, temperature=1.0)
    assert drawn.shape == (2, 2, 32, 32, 3)
    np.testing.assert_array_equal(drawn, model.draw(["a red circle", None], n=2, seed=3, temperature=1.0))
    assert np.any(drawn != model.draw(["a red circle", None], n=2, seed=4, temperature=1.0))
    assert np.any(drawn[0, 0] != drawn[0, 1])
    plain = model.draw(["a red circle"], n=2, seed=3, guidance=90.0, temperature=1.0)[0]
    assert np.any(drawn[0] != plain)
    with pytest.raises(ZooError, match="crimson"):
        model.draw(["a crimson circle"])
    with pytest.raises(ZooError, match="seed -1"):
        model.draw(["a red circle"], seed=-1)


def test_what_is_planned_is_drawn(model):
    """The drawings of a text are those of its plans, each with randomness of its own."""
    options = {"seed": 3, "temperature": 1.0}
    plans = model.plan(["a red circle", None], n=2, **options)
    assert len(plans) == 4
    assert plans[0] != plans[1]
    sampling = Sampling(guidance=2.0, allowed=(WORDS.first_code, WORDS.hole))
    drawn = model.draw(["a red circle", None], n=2, **options).reshape(4, 32, 32, 3)
    for k, plan in enumerate(plans):
        seed = int(np.random.SeedSequence((3, k % 2)).generate_state(1)[0])
        prompts = [draw_prompt(WORDS.encode(plan)), draw_prompt()]
        (told,), _ = model.generator.complete(prompts, WORDS.cells, seed=seed, sampling=sampling)
        np.testing.assert_array_equal(drawn[k], model.decode(np.array(told.ids)[None] - WORDS.first_code)[0])


def made_up(salt):
    """Nats that each hang on all that is read and written: which of them count decides what wins."""

    def nats(prompt, written):
        return random.Random(str((salt, [*map(int, prompt)], [*map(int, written)]))).random()

    return nats


@pytest.mark.parametrize("salt", range(4))
def test_ranked_drawings_are_the_likeliest(salt, model, monkeypatch):
    """As the sentence and as the plan, by the codes that were drawn and by those that the picture has."""
    nats, text, codes = made_up(salt), "a red circle", (WORDS.first_code, WORDS.hole)
    sampling = Sampling(guidance=GUIDANCE, temperature=TEMPERATURE, allowed=codes)
    four = model.draw([text], n=4, seed=0)[0]
    plans = [WORDS.encode(plan) for plan in model.plan([text], n=4, seed=0)]
    keys = [int(np.random.SeedSequence((0, k)).generate_state(1)[0]) for k in range(4)]
    prompts = [*map(draw_prompt, plans), *[draw_prompt()] * 4]
    written = model.generator.complete(prompts, WORDS.cells, seed=keys * 2, sampling=sampling)
    found = []
    for plan, picture, (drawn,) in zip(plans, four, written[:4], strict=True):
        seen = [np.array(drawn.ids) - WORDS.first_code, model.encode(picture[None])[0]]
        as_text = [nats(caption_prompt(WORDS, each), [*WORDS.encode(text), END]) for each in seen]
        found.append(sum(as_text) + sum(nats(describe_prompt(WORDS, each), [*plan, END]) for each in seen))
    monkeypatch.setattr(model, "_logps", lambda prompts, written: np.array(list(map(nats, prompts, written))))
    (best,) = model.draw([text], n=1, rank=4, seed=0)[0]
    np.testing.assert_array_equal(best, four[np.argmax(found)])
    two = model.draw([text], n=2, rank=2, seed=0)[0]
    np.testing.assert_array_equal(two, four[np.sort(np.argsort(found)[2:])])


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("salt", range(4))
def test_ranked_descriptions_are_the_likeliest(salt, strange, model, images, monkeypatch):
    """As read from the picture, and as what the picture is drawn from: less, where its codes are unlikely anyway."""
    read_or_drawn, codes = made_up(salt), model.encode(images)

    def nats(prompt, written):
        dear = strange and min(written) >= WORDS.first_code
        return read_or_drawn(prompt, written) - dear * (STRANGE * WORDS.cells + 1)

    weight = STRANGE_WEIGHT if strange else DRAWN_WEIGHT
    sampling = Sampling(guidance=WORD_GUIDANCE, temperature=READING_TEMPERATURE, allowed=(END, WORDS.first_code))
    prompts = [*(describe_prompt(WORDS, each) for each in codes), *[plan_prompt(WORDS)] * 3]
    length = longest(WORDS)["text"] - 1
    written = model.generator.complete(prompts, length, n=4, seed=[5] * 6, sampling=sampling)
    best = []
    for each, tried in zip(codes, written[:3], strict=True):
        texts = [[token for token in one.ids if token != END] for one in tried]
        as_read = [nats(describe_prompt(WORDS, each), [*ids, END]) for ids in texts]
        as_drawn = [nats(draw_prompt(ids), each + WORDS.first_code) for ids in texts]
        best.append(WORDS.decode(texts[int(np.argmax(np.add(as_read, weight * np.array(as_drawn))))]))
    monkeypatch.setattr(model, "_logps", lambda prompts, written: np.array(list(map(nats, prompts, written))))
    assert model.describe(images, rank=4, seed=5) == best
    with pytest.raises(ZooError, match="rank 1"):
        model.describe(images, rank=0)


@pytest.mark.parametrize("prefix", [False, True])
def test_likelihood_is_that_of_the_written_tokens(prefix, images):
    """The greedy description's tokens, scored as a caption by the generator's own log-probabilities."""
    model = tiny(prefix)
    prompt = caption_prompt(WORDS, model.encode(images[:1])[0])
    assert prompt[-1] == CAPTION
    sampling = Sampling(temperature=0, allowed=(END + 1, WORDS.first_code))
    ((written,),) = model.generator.complete([prompt], 5, sampling=sampling)
    text = WORDS.decode(written.ids)
    told = model.generator.complete(
        [[*prompt, *WORDS.encode(text)]], 1, sampling=Sampling(temperature=0, allowed=(END, END + 1))
    )
    if not prefix:  # the longer prompt would see all of itself
        expected = sum(written.logprobs) + told[0][0].logprobs[0]
        np.testing.assert_allclose(model.likelihood(images[:1], [text])[0], expected, rtol=1e-4)
    one, two = (
        model.likelihood(images[:1], [text]),
        model.likelihood(images[:2], [text, "a red circle with some spots"]),
    )
    np.testing.assert_allclose(one[0], two[0], rtol=1e-4)  # what else is asked does not matter
    longer = model.likelihood(images[:2], [text, " ".join(["red"] * longest(WORDS)["text"])])  # than any that is made
    np.testing.assert_allclose(one[0], longer[0], rtol=1e-4)
    np.testing.assert_allclose(sum(written.logprobs), model.likelihood(images[:1], [text], end=False)[0], rtol=1e-4)


def test_words_are_words_and_answers_short(model, images):
    known = set(WORDS.words)
    for text in model.describe(images):
        assert set(text.replace(",", " ,").replace("?", " ?").split()) <= known
    answers = model.answer(["how many things are there?", "what shape is the red thing"], images=images[:2])
    assert len(answers) == 2
    assert all(len(answer.split()) <= 8 for answer in answers)
    assert len(model.answer(["what colour is the circle?"], texts=["a red circle"])) == 1
    with pytest.raises(ZooError, match="images or texts"):
        model.answer(["what colour is the circle?"])
    with pytest.raises(ZooError, match="as many"):
        model.answer(["what colour is the circle?"], images=images)


def test_holes_are_filled_and_nothing_else(model, images):
    holes = np.zeros((3, 32, 32), bool)
    holes[:, 4:20, 10:20] = True
    mended = model.clean(images, holes)
    np.testing.assert_array_equal(mended[~holes], images[~holes])
    changed = np.where(holes[..., None], np.uint8(7), images)
    drawn = model.mending_prompts(model.encode(changed), holes)
    assert all(ids[2 : 2 + 16].count(WORDS.hole) == 3 * 2 for ids in drawn)  # rows 0 to 2 of cells, columns 1 and 2


def test_front_door(model, monkeypatch, images):
    monkeypatch.setattr(scenes, "scene_model", lambda source: model)
    drawn = zoo.draw("a red circle", width=16, height=64, n=2)
    assert [image.size for image in drawn] == [(16, 64)] * 2
    picture = Image.fromarray(images[0])
    assert zoo.describe(picture) == model.describe(images[:1], scenes.RANK)[0]
    assert zoo.describe(picture, rank=1) == model.describe(images[:1])[0]
    assert zoo.describe(picture.resize((64, 64), Image.Resampling.NEAREST)) == zoo.describe(picture)
    question = "how many things are there?"
    assert zoo.answer(question, image=picture) == model.answer([question], images=images[:1])[0]
    assert zoo.answer(question, text="a red circle") == model.answer([question], texts=["a red circle"])[0]
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    filled = np.asarray(zoo.edit(picture, mask=mask))
    np.testing.assert_array_equal(filled[~mask], images[0][~mask])
    assert zoo.edit(picture, "noise").size == (32, 32)
    np.testing.assert_array_equal(zoo.edit(picture), images[0])
    np.testing.assert_array_equal(zoo.edit(picture, crop=(2, 4, 10, 20)), images[0][4:20, 2:10])
    assert zoo.edit(picture, resize=(10, 20), rotate=90).size == (20, 10)
    assert np.asarray(zoo.edit(picture, colour=0.0)).std(axis=-1).max() == 0
    for wrong in ({"crop": (0, 0, 40, 4)}, {"contrast": -1.0}, {"mask": mask[:8]}, {"how": "nose"}, {"resize": (0, 3)}):
        with pytest.raises(ZooError):
            zoo.edit(picture, **wrong)
    with pytest.raises(ZooError, match="square"):
        zoo.describe(picture.resize((32, 16)))


class Ideal:
    """Answers and draws as the truth has it, but for what is listed as spoilt."""

    size = 32

    def __init__(self, asked, spoilt=()):
        self.asked, self.spoilt = asked, spoilt

    def draw(self, texts, **_):
        assert list(texts) == [text_of(each.told) for each in self.asked]
        pictures = [draw_scene(self.asked[0 if i in self.spoilt else i].scene, 32) for i in range(len(texts))]
        return np.stack(pictures)[:, None]

    def describe(self, images, rank=1, seed=0):
        return [text_of(describe(found)) if found else "" for found, _ in read_scenes(images)]

    def answer(self, questions, images=None, texts=None):
        if texts is not None:
            return ["no"] * len(questions)
        seen = [found for found, _ in read_scenes(images)]
        return [
            each and dict(turn for turns in all_questions(each).values() for turn in turns)[question]
            for each, question in zip(seen, questions, strict=True)
        ]


def test_exam_of_an_ideal_and_of_a_spoilt_model():
    asked = questions_of("test", 2, 8)
    assert all(each.told.relation is not None and holds(each.told, each.scene) for each in asked)
    assert all(len(each.scene.things) == 2 and each.scene.split == "test" for each in asked)
    perfect = examine(Ideal(asked), asked)
    no = np.mean([each.turn[1] == "no" for each in asked])
    assert perfect == Scores(draw=1.0, describe=1.0, answer=1.0, tell=no, chain=1.0)
    spoilt = examine(Ideal(asked, spoilt=(3, 5)), asked)
    assert spoilt.draw == spoilt.chain == 0.75  # two captions got the first one's picture
    assert mean([perfect, spoilt]).draw == 0.875
    assert chained(Ideal(asked), np.zeros((1, 32, 32, 3), np.uint8), [None]) == [False]


def test_parts_are_filled_up():
    sizes = []

    def double(x):
        sizes.append(len(x))
        return 2 * x

    for n in (1, 3, 64, 130):
        np.testing.assert_array_equal(in_parts(double, np.arange(n)), 2 * np.arange(n))
    assert sizes == [1, 4, 64, 64, 64, 64]
