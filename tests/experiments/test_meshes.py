"""The same training on every mesh: a classifier and a decoder. Generators: test_image_meshes.py."""

import dataclasses
import functools

import pytest

from experiments import cnn, gpt
from tests.experiments.meshes import EVERY_MESH, MOVES, SHORT, assert_same_losses, train

CNN = dataclasses.replace(
    cnn.RESNET20,
    model="resnet8",
    batch=16,
    # Small steps: what rounds differently must not grow a thousandfold within 20 of them.
    optim=dataclasses.replace(cnn.RESNET20.optim, lr=1e-3),
    data=dataclasses.replace(cnn.RESNET20.data, holdout=0.02),
    **SHORT,
)
GPT = dataclasses.replace(
    gpt.PYDOC,
    model="gpt-modern-xs",
    batch=16,
    context=16,
    sample_tokens=8,
    data=dataclasses.replace(gpt.PYDOC.data, holdout=0.002),
    **SHORT,
)
RECIPES = {"resnet": (cnn.main, CNN), "decoder": (gpt.main, GPT)}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Rows of the run on one device, by recipe."""
    return functools.cache(lambda name: train(RECIPES[name], tmp_path_factory.mktemp("single") / name, (1, 1, 1)))


@pytest.mark.parametrize("sizes", EVERY_MESH)
@pytest.mark.parametrize("name", RECIPES)
def test_losses_agree(name, sizes, single, tmp_path):
    assert_same_losses(train(RECIPES[name], tmp_path / "run", sizes), single(name))


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("name", RECIPES)
def test_saved_on_one_mesh_and_continued_on_another(name, before, after, single, tmp_path):
    with pytest.raises(SystemExit) as stop:  # a time limit that has passed: it saves after the first step
        train(RECIPES[name], tmp_path / "run", before, max_minutes=1e-9)
    assert stop.value.code == 0
    assert_same_losses(train(RECIPES[name], tmp_path / "run", after), single(name))
