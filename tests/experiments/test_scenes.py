"""The scenes recipe with a tokenizer of random weights: every mesh trains alike, and what is bad is refused."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from experiments import scenes
from tests.experiments.meshes import EVERY_MESH, MESHES, SHORT, assert_same_losses, train
from zoo.errors import ZooError
from zoo.models import decoder
from zoo.models.tokenizer import Tokenizer, TokenizerConfig
from zoo.train.run import Run

EYES = TokenizerConfig(image_size=32, patch=8, widths=(8,), blocks=1, levels=(3, 3))
TINY = dataclasses.replace(decoder.VARIANTS["scenes"], layers=1, d_model=16, heads=2, residual_init="scaled")
KEYS = ("loss", "eval_loss", "eval_draw_nats", "eval_answer_nats")


@pytest.fixture(scope="module", autouse=True)
def recipe(tmp_path_factory):
    """A decoder that is small, and the tokenizer that it starts from."""
    folder = tmp_path_factory.mktemp("tokenizer")
    zoo.save(Tokenizer(EYES, nnx.Rngs(1)), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decoder.VARIANTS, "scenes-tiny", TINY)
        # Small steps: what rounds differently must not grow a thousandfold within 20 of them.
        optim = dataclasses.replace(scenes.SCENES.optim, name="sgd", lr=1e-3)
        sizes = {"model": "scenes-tiny", "tokenizer": str(folder), "batch": 8, "exam": 0, "rows": 16, "optim": optim}
        yield scenes.main, dataclasses.replace(scenes.SCENES, **sizes, **SHORT)


@pytest.fixture(scope="module")
def single(recipe, tmp_path_factory):
    return functools.cache(lambda: train(recipe, tmp_path_factory.mktemp("single") / "run", (1, 1, 1)))


@pytest.mark.parametrize("sizes", EVERY_MESH)
def test_losses_agree(sizes, recipe, single, tmp_path):
    rows = train(recipe, tmp_path / "run", sizes)
    assert_same_losses(rows, single(), KEYS)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


def test_saved_on_eight_devices_and_continued_on_one(recipe, single, tmp_path):
    with pytest.raises(SystemExit):  # a time limit that has passed: it saves after the first step
        train(recipe, tmp_path / "run", MESHES["2x2x2"], max_minutes=1e-9)
    assert_same_losses(train(recipe, tmp_path / "run", (1, 1, 1)), single(), KEYS)
    loaded = zoo.load(tmp_path / "run")
    assert loaded.config.grid == (4, 4)
    assert zoo.draw("a red circle", model=tmp_path / "run", n=2)[1].size == (64, 64)


def test_some_codes_are_of_reconstructions():
    eyes = Tokenizer(EYES, nnx.Rngs(1))
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
    once = eyes.encode(jnp.asarray(image.reshape(6, 32, 32, 3), jnp.float32) / 255)
    again = eyes.encode(eyes.decode(once))
    assert (once != again).any(axis=(1, 2)).all()
    redrawn = np.array([[True, False], [False, False], [True, True]])
    expected = [again[0], once[1], once[2], once[3], again[4], again[5]]
    found = scenes.codes_of(eyes, jnp.asarray(image), jnp.asarray(redrawn))
    assert found.tolist() == np.reshape(expected, (3, 2, 16)).tolist()


def test_other_models_than_tokenizers_are_refused(recipe, tmp_path):
    main, config = recipe
    zoo.save(zoo.create("gpt-nano", layers=1), tmp_path / "model")
    config = dataclasses.replace(config, tokenizer=str(tmp_path), run=str(tmp_path / "run"))
    with pytest.raises(ZooError, match="not a tokenizer of colours"):
        main(config, Run(config, "test"))
