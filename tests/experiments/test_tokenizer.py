"""Training a tokenizer as a person does, made tiny: what it writes, and a critic that comes late."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import tokenizer
from zoo.data import load_images
from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.tokenizer import Tokenizer
from zoo.objectives.quantise import CriticConfig
from zoo.train.mesh import MeshConfig
from zoo.train.run import Run

TINY = dataclasses.replace(
    tokenizer.DIGITS,
    steps=6,
    batch=8,
    log_every=1,
    eval_every=3,
    save_every=1,
    mesh=MeshConfig(1, 1, 1),
    model=dataclasses.replace(
        tokenizer.DIGITS.model, patch=2, widths=(8,), quantiser="ema", codes=16, code_width=4, rotation=True
    ),
    data=dataclasses.replace(tokenizer.DIGITS.data, holdout=0.02),
)
JUDGED = dataclasses.replace(TINY, critic=CriticConfig(width=4, start=3, weight=10.0))


def train(config, folder, **changes):
    """The rows of metrics.jsonl, and the weights that are kept."""
    config = dataclasses.replace(config, run=str(folder), **changes)
    tokenizer.main(config, Run(config, "test"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    return *train(TINY, folder), folder


def test_what_is_told_of_the_held_out_images(plain):
    rows, weights, folder = plain
    graphdef, *_ = functional.abstract(lambda rngs: Tokenizer(TINY.model, rngs))
    tree = functional.unflatten({name: jnp.asarray(value) for name, value in weights.items()})
    model = functional.merge(graphdef, tree["params"], tree["stats"])
    images = load_images(TINY.data)[1].image.astype(np.float32) / 255
    ids = model.encode(jnp.asarray(images))
    errors = np.mean((np.asarray(model.decode(ids)) - images) ** 2, axis=(1, 2, 3))
    assert rows[-1]["eval_loss"] == pytest.approx(errors.mean(), rel=1e-4)
    assert rows[-1]["eval_psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-4)
    shares = np.unique(ids, return_counts=True)[1] / ids.size
    assert rows[-1]["eval_used"] == len(shares) / 16
    assert rows[-1]["eval_perplexity"] == pytest.approx(np.prod(shares**-shares), rel=1e-4)
    for name in ("samples/step_000003.png", "samples/step_000006.png", "codes.png", "strip.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_late_critic(plain, tmp_path):
    rows, weights = train(JUDGED, tmp_path / "run")
    before, after = ({row["step"]: row for row in each if "error" in row} for each in (plain[0], rows))
    for name, last in (("grad_norm", 3), ("error", 4)):  # the fourth update is the first of both networks
        steps = range(1, last + 1)
        np.testing.assert_allclose([after[i][name] for i in steps], [before[i][name] for i in steps], rtol=1e-5)
        assert after[last + 1][name] != pytest.approx(before[last + 1][name], rel=1e-5)
    assert weights.keys() == plain[1].keys()  # the critic is not kept


def test_images_that_do_not_divide(tmp_path):
    with pytest.raises(ZooError, match="image_size 9 does not divide into squares of 2 pixels"):
        train(TINY, tmp_path / "run", data=dataclasses.replace(TINY.data, size=9))
    assert not (tmp_path / "run").exists()
