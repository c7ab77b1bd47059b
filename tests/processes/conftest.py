import pytest
from flax import nnx

import zoo
from tests.experiments.recipes import RECIPES, command, environment, finish
from zoo.models.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture(scope="session", params=RECIPES)
def straight(request, tmp_path_factory, cache):
    """(recipe, folder) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = RECIPES[request.param].format(tokenizer=folder / "tokenizer")
    if "{tokenizer}" in RECIPES[request.param]:
        config = TokenizerConfig(image_size=32, patch=8, widths=(8,), blocks=1, levels=(3, 3))
        zoo.save(Tokenizer(config, nnx.Rngs(0)), folder / "tokenizer")
    finish(command(recipe, folder / "straight"), environment(cache))
    return recipe, folder / "straight"
