"""The same training on every mesh: the recipes themselves, in this process with its 8 devices."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from experiments import cnn, gpt
from zoo.train.mesh import MeshConfig
from zoo.train.run import Run

SHORT = {"steps": 20, "log_every": 1, "eval_every": 20, "save_every": 10}
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
MESHES = {"8 data": (8, 1, 1), "8 fsdp": (1, 8, 1), "2x2x2": (2, 2, 2)}


def train(name, folder, sizes, **changes):
    """The rows of metrics.jsonl after training in a folder on a mesh."""
    main, config = RECIPES[name]
    config = dataclasses.replace(config, run=str(folder), mesh=MeshConfig(*sizes), **changes)
    main(config, Run(config, "test"))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Rows of the run on one device, by recipe."""
    return functools.cache(lambda name: train(name, tmp_path_factory.mktemp("single") / name, (1, 1, 1)))


def assert_same_losses(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for key in ("loss", "eval_loss"):
        left, right = ([row[key] for row in each if key in row] for each in (rows, expected))
        np.testing.assert_allclose(left, right, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", RECIPES)
def test_losses_agree(name, sizes, single, tmp_path):
    assert_same_losses(train(name, tmp_path / "run", sizes), single(name))


@pytest.mark.parametrize(
    ("before", "after"), [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 2, 2))], ids=["8 to 1", "1 to 8"]
)
@pytest.mark.parametrize("name", RECIPES)
def test_saved_on_one_mesh_and_continued_on_another(name, before, after, single, tmp_path):
    with pytest.raises(SystemExit) as stop:  # a time limit that has passed: it saves after the first step
        train(name, tmp_path / "run", before, max_minutes=1e-9)
    assert stop.value.code == 0
    assert_same_losses(train(name, tmp_path / "run", after), single(name))
