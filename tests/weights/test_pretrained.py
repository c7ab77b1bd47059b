"""Weights that come with the package: found by name, as good as their cards say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.cli import main
from zoo.data import ImageConfig, load_images
from zoo.data.text import TextConfig, load_text
from zoo.generate.latents import sample_pictures
from zoo.generate.scene_exam import examine, questions_of
from zoo.objectives import variational
from zoo.objectives.losses import next_token_loss
from zoo.scenes import scene_model
from zoo.weights import classifier
from zoo.weights.classifier import Classifier, fingerprint
from zoo.weights.files import load_codec, part_of
from zoo.weights.registry import pretrained

NAMES = ["digits-cnn", "digits-gan", "digits-vae", "fashion-cnn", "pydoc-gpt", "scenes"]
MODELS = {"config.json", "model.safetensors"}
BESIDE = {"pydoc-gpt": {"codec.json"}, "scenes": {"tokenizer"}}
MOST = {"scenes": 12e6}  # bytes; of others 3 million


@pytest.fixture(scope="module")
def network():
    return Classifier("digits-cnn")


@pytest.fixture(scope="module")
def digits():
    """The 359 that no model of digits has trained on."""
    return load_images(ImageConfig(size=16))[1]


def test_bundled_weights_are_found_by_name():
    assert list(pretrained()) == NAMES
    assert list(pretrained("fash*")) == ["fashion-cnn"]
    sizes = {name: zoo.load(name).config.image_size for name in ("digits-cnn", "fashion-cnn")}
    assert sizes == {"digits-cnn": 16, "fashion-cnn": 28}
    assert zoo.load("digits-cnn", dtype="bfloat16").config.dtype == "bfloat16"


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo.save(zoo.load("fashion-cnn"), "digits-cnn")
    assert zoo.load("digits-cnn").config.image_size == 28


def test_wrong_names_and_names_without_weights():
    with pytest.raises(zoo.ZooError, match="did you mean digits-cnn"):
        zoo.load("digit-cnn")
    with pytest.raises(zoo.ZooError, match="no pretrained weights of cnn-basic"):
        zoo.load("cnn-basic")


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_has_a_card(name):
    folder = pretrained()[name]
    assert {path.name for path in folder.iterdir()} == {"README.md"} | MODELS | BESIDE.get(name, set())
    card = (folder / "README.md").read_text()
    assert re.search(r"^python experiments/\w+\.py", card, re.MULTILINE)
    assert re.search(r"Seed \d+", card)
    assert re.search(r"[\d.]+ minutes", card)
    assert f"{name}@{fingerprint(zoo.load(name))}" in card, "the card names these very weights"
    assert sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) <= MOST.get(name, 3e6)


def test_list_shows_what_is_bundled(capsys):
    main(["list", "*cnn*"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(lines) == ["cnn-basic", "digits-cnn", "fashion-cnn"]
    bundled = [name for name, line in lines.items() if line.rstrip().endswith("bundled")]
    assert bundled == ["digits-cnn", "fashion-cnn"]
    assert "35,914" in lines["digits-cnn"]
    with pytest.raises(SystemExit):
        main(["list", "digits-cn"])
    assert "did you mean digits-cnn" in capsys.readouterr().err


def test_held_out_digits(network, digits):
    """All 359 of the fixed split that the network has never seen; 64 features, and probabilities."""
    features, probabilities = network(digits.image)
    assert (features.shape, features.dtype) == ((359, 64), np.float32)
    assert np.mean(probabilities.argmax(-1) == digits.label) >= 0.995
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    logits, named = zoo.load("digits-cnn")(jnp.asarray(digits.image[-3:], jnp.float32) / 255, features=True)
    np.testing.assert_allclose(features[-3:], named["dense"], rtol=1e-4, atol=1e-5)  # the last, padded batch
    assert logits.argmax(-1).tolist() == probabilities[-3:].argmax(-1).tolist()
    np.testing.assert_array_equal(features[:5], network(digits.image[:5].astype(np.float32) / 255)[0])


def test_drawn_digits_are_taken_for_digits_of_every_kind(network):
    """The classifier is about as sure of them as of real ones, whose labels were smoothed; and no kind is missing."""
    _, probabilities = network(sample_pictures(zoo.load("digits-gan"), 256))
    assert np.median(probabilities.max(-1)) > 0.8
    assert np.bincount(probabilities.argmax(-1), minlength=10).min() >= 8


def test_held_out_digits_by_their_codes():
    """The evidence of binary digits, in nats: 22.8 on the card, where a coin's would be 44."""
    _, test = load_images(ImageConfig())
    image, label = jnp.asarray(test.image > 127, jnp.float32), jnp.asarray(test.label)
    keys, model = jax.random.split(jax.random.key(0), len(image)), zoo.load("digits-vae")
    scores = jax.jit(lambda *inputs: variational.held_out_scores(model, *inputs))(image, label, keys)
    assert float(scores["loss"].mean()) < 26


def test_the_python_reference_as_a_small_decoder_knows_it():
    """Bits a byte of what it has not seen; the letters of English alone have about four."""
    text, model, codec = load_text(TextConfig()), zoo.load("pydoc-gpt"), load_codec("pydoc-gpt")
    known = text.codec.decode(text.test[:4096].tolist())
    tokens = jnp.asarray(codec.encode(known), jnp.int32).reshape(32, 128)
    nats = jax.jit(lambda tokens: next_token_loss(model(tokens[:, :-1]), tokens))(tokens)
    assert float(nats.mean()) / np.log(2) < 3


def test_scenes_draws_describes_and_answers():
    """A few of the exam's; the card has the scores of all of them."""
    assert zoo.load(part_of("scenes", "tokenizer")).grid == (8, 8)
    found = examine(scene_model("scenes"), questions_of("test", 1, 24))
    assert min(found.draw, found.describe, found.answer, found.tell) > 0.5


def test_fashion_weights_work_as_far_as_can_be_told_without_the_images():
    """A dark picture with a light, wide rectangle at its foot is a bag or a shoe, and surely no trousers."""
    x = np.zeros((1, 28, 28, 1), np.uint8)
    x[:, 12:24, 3:25] = 160
    probabilities = Classifier("fashion-cnn", batch=1)(x)[1][0]
    assert probabilities.shape == (10,)
    assert probabilities[1] < 0.1 < probabilities[[5, 7, 8, 9]].sum()


def test_the_fingerprint_changes_with_any_weight():
    model = zoo.load("digits-cnn")
    before = fingerprint(model)
    assert re.fullmatch("[0-9a-f]{8}", before)
    assert before == fingerprint(zoo.load("digits-cnn", dtype="bfloat16")), "of weights, not of how they compute"
    model.classifier.bias[...] = model.classifier.bias[...].at[3].add(1e-6)
    assert fingerprint(model) != before


def test_pictures_that_cannot_be_judged(network):
    good = np.zeros((2, 16, 16, 1), np.float32)
    for images, message in (
        (good - 1, r"from -1 to -1, digits-cnn@\w+ wants \[0, 1\]"),
        (good + 255, r"from 255 to 255"),
        (good.astype(np.int64), "images are int64"),
        (good[0], r"float32\[16, 16, 1\]"),
        (good[:0], r"\[0, 16, 16, 1\]"),
        (np.full_like(good, np.nan), "from nan"),
        (np.zeros((2, 28, 28, 1), np.float32), r"the model wants \[B, 16, 16, 1\]"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            network(images)


def test_only_classifiers_judge(monkeypatch):
    monkeypatch.setattr(classifier, "load", lambda source, **_: object())
    with pytest.raises(zoo.ZooError, match="text holds a object; give a classifier"):
        Classifier("text")
