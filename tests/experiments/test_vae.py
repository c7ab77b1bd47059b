"""The VAE recipe from end to end, tiny, in this process."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import vae as recipe
from zoo.models.vae import VARIANTS, VAEConfig
from zoo.objectives import variational as vi
from zoo.train.mesh import MeshConfig
from zoo.train.run import Run

SHORT = {"steps": 30, "batch": 32, "log_every": 1, "eval_every": 15, "save_every": 30, "ema": 0.0}
BOUNDS = {"samples": 1, "iwae": 60}


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", VAEConfig(image_size=8, latents=4, patch=2, widths=(8, 8), mixtures=2))

    def run(**changes):
        config = dataclasses.replace(
            recipe.DIGITS, model="tiny", run=str(tmp_path / "run"), mesh=MeshConfig(1, 1, 1), **SHORT | BOUNDS | changes
        )
        recipe.main(config, Run(config, "test"))
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return tmp_path / "run", rows, json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]

    return run


def test_binary_digits_of_a_class(train):
    folder, rows, result = train(kl_warmup=0.5, conditional=True)
    first, last = ([row for row in rows if "eval_loss" in row][i] for i in (0, 1))
    assert last["eval_loss"] < first["eval_loss"] < 64 * np.log(2)  # better than a fair coin for each pixel
    for row in (first, last):
        assert row["eval_loss"] == pytest.approx(row["eval_kl"] + row["eval_reconstruction"], rel=1e-5)
        assert row["eval_bits_per_dim"] == pytest.approx(row["eval_loss"] / (64 * np.log(2)), rel=1e-5)
    assert result["iwae_60"] < last["eval_loss"]
    # The loss weighs the KL by 1/15 at the first of 30 steps, and whole from the middle on
    steps = [row for row in rows if "kl" in row]
    for step, weight in ((0, 1 / 15), (6, 7 / 15), (14, 1), (29, 1)):
        row = steps[step]
        assert row["loss"] == pytest.approx(row["reconstruction"] + weight * row["kl"], rel=1e-5)
    sizes = {
        name: Image.open(folder / name).size for name in ("samples/step_000030.png", "traversal.png", "mixture.png")
    }
    cell = 8 * 7 + 2  # zoomed 7 times, and a gap
    assert sizes["samples/step_000030.png"] == (16 * cell + 2, 4 * cell + 2)  # originals, again, two rows of samples
    assert sizes["traversal.png"] == (11 * cell + 2, 4 * cell + 2)  # all 4 latents
    assert sizes["mixture.png"] == (16 * cell + 2, 8 * cell + 2)
    # Originals are the binary images, drawn once
    shown = np.asarray(Image.open(folder / "samples/step_000030.png"))[2 : 2 + 56 : 7, 2 : 2 + 56 : 7, 0]
    _, test = recipe.load_images(recipe.DIGITS.data)
    image = test[np.arange(1)]["image"]
    drawn = vi.binarise(jax.random.key(0), jax.numpy.asarray(image, jax.numpy.float32) / 255, image)
    np.testing.assert_array_equal(shown, 255 * np.asarray(drawn)[0, :, :, 0])
    config = json.loads((folder / "model" / "config.json").read_text())["config"]
    assert (config["likelihood"], config["classes"]) == ("bernoulli", 10)


def test_training_on_a_bound_of_samples_comes_closer(train):
    _, rows, result = train(samples=3, kl_warmup=0.0, eval_every=30)
    steps = [row for row in rows if "kl" in row]
    # Above the bound of one sample, whose mean reconstruction and closed KL are told beside it
    assert np.mean([row["reconstruction"] + row["kl"] - row["loss"] for row in steps[10:]]) > 0.05
    assert result["iwae_60"] < 64 * np.log(2)
