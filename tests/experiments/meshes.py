"""Real recipes, made small, in this process and on parts of its 8 devices."""

import dataclasses
import json

import numpy as np
import pytest

from zoo.train.mesh import MeshConfig
from zoo.train.run import Run

SHORT = {"steps": 20, "log_every": 1, "eval_every": 20, "save_every": 10}
MESHES = {"8 data": (8, 1, 1), "8 fsdp": (1, 8, 1), "2x2x2": (2, 2, 2)}
# By default the one with all three axes: compiling is dear. `pytest -m slow` takes the others.
EVERY_MESH = [
    pytest.param(sizes, id=name, marks=() if name == "2x2x2" else pytest.mark.slow) for name, sizes in MESHES.items()
]
MOVES = {"8 to 1": ((2, 2, 2), (1, 1, 1)), "1 to 8": ((1, 1, 1), (2, 2, 2))}


def train(recipe, folder, sizes, **changes):
    """The rows of metrics.jsonl after training in a folder on a mesh; a recipe is (main, config)."""
    main, config = recipe
    config = dataclasses.replace(config, run=str(folder), mesh=MeshConfig(*sizes), **changes)
    main(config, Run(config, "test"))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(rows, expected, keys=("loss", "eval_loss")):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for key in keys:
        left, right = ([row[key] for row in each if key in row] for each in (rows, expected))
        assert left
        np.testing.assert_allclose(left, right, rtol=1e-5, err_msg=key)
