"""Weights that come with the package: found by name, as accurate as their cards say."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.cli import main
from zoo.data import ImageConfig, load_images
from zoo.weights import classifier
from zoo.weights.classifier import Classifier, fingerprint
from zoo.weights.registry import pretrained

NAMES = ["digits-cnn", "fashion-cnn"]


@pytest.fixture(scope="module")
def network():
    return Classifier("digits-cnn")


def test_bundled_weights_are_found_by_name():
    assert list(pretrained()) == NAMES
    assert list(pretrained("fash*")) == ["fashion-cnn"]
    sizes = {name: zoo.load(name).config.image_size for name in NAMES}
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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "python experiments/cnn.py" in card
    assert re.search(r"Seed \d+", card)
    assert f"{name}@{fingerprint(zoo.load(name))}" in card, "the card names these very weights"


def test_list_shows_what_is_bundled(capsys):
    main(["list", "*cnn*"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(lines) == ["cnn-basic", *NAMES]
    assert [name for name, line in lines.items() if line.rstrip().endswith("bundled")] == NAMES
    assert "35,914" in lines["digits-cnn"]
    with pytest.raises(SystemExit):
        main(["list", "digits-cn"])
    assert "did you mean digits-cnn" in capsys.readouterr().err


def test_held_out_digits(network):
    """All 359 of the fixed split that the network has never seen; 64 features, and probabilities."""
    _, test = load_images(ImageConfig(size=16))
    features, probabilities = network(test.image)
    assert (features.shape, features.dtype) == ((359, 64), np.float32)
    assert np.mean(probabilities.argmax(-1) == test.label) >= 0.995
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    logits, named = zoo.load("digits-cnn")(jnp.asarray(test.image[-3:], jnp.float32) / 255, features=True)
    np.testing.assert_allclose(features[-3:], named["dense"], rtol=1e-4, atol=1e-5)  # the last, padded batch
    assert logits.argmax(-1).tolist() == probabilities[-3:].argmax(-1).tolist()
    np.testing.assert_array_equal(features[:5], network(test.image[:5].astype(np.float32) / 255)[0])


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
