import pytest

from tests.experiments.recipes import RECIPES, command, environment, finish


@pytest.fixture(scope="session", params=RECIPES)
def straight(request, tmp_path_factory, cache):
    """(recipe, folder) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp(request.param) / "straight"
    finish(command(RECIPES[request.param], folder), environment(cache))
    return RECIPES[request.param], folder
