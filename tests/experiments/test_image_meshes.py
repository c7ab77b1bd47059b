"""The same training on one device and on a mesh: two networks with spectral norms, and codebook averages."""

import dataclasses
import functools

import pytest

from experiments import gan, tokenizer
from tests.experiments.meshes import EVERY_MESH, MESHES, SHORT, assert_same_losses, train

GAN = dataclasses.replace(
    gan.DIGITS,
    batch=16,
    ema=0.9,
    conditional=True,
    judge="",
    model=dataclasses.replace(gan.DIGITS.model, width=8, blocks=0, spectral_norm=True),
    data=dataclasses.replace(gan.DIGITS.data, size=8),
    adversarial=dataclasses.replace(gan.DIGITS.adversarial, penalty_rows=2),
    # Small steps: what rounds differently must not grow a thousandfold within 20 of them.
    optim=dataclasses.replace(gan.DIGITS.optim, name="sgd", lr=1e-3),
    **SHORT,
)
TOKENIZER = dataclasses.replace(
    tokenizer.DIGITS,
    batch=16,
    model=dataclasses.replace(
        tokenizer.DIGITS.model, widths=(8, 16), quantiser="ema", codes=32, code_width=4, revive=0.1
    ),
    data=dataclasses.replace(tokenizer.DIGITS.data, holdout=0.02),
    **SHORT,
)
RECIPES = {"gan": (gan.main, GAN), "tokenizer": (tokenizer.main, TOKENIZER)}
KEYS = {
    "gan": ("d_loss", "g_loss", "r1", "d_grad_norm"),
    "tokenizer": ("loss", "eval_loss", "eval_used"),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Rows of the run on one device, by recipe."""
    return functools.cache(lambda name: train(RECIPES[name], tmp_path_factory.mktemp("single") / name, (1, 1, 1)))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sizes", EVERY_MESH)
def test_losses_agree(name, sizes, single, tmp_path):
    assert_same_losses(train(RECIPES[name], tmp_path / "run", sizes), single(name), KEYS[name])


@pytest.mark.parametrize("name", RECIPES)
def test_saved_on_eight_devices_and_continued_on_one(name, single, tmp_path):
    with pytest.raises(SystemExit):  # a time limit that has passed: it saves after the first step
        train(RECIPES[name], tmp_path / "run", MESHES["2x2x2"], max_minutes=1e-9)
    assert_same_losses(train(RECIPES[name], tmp_path / "run", (1, 1, 1)), single(name), KEYS[name])
