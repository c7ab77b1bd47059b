"""GAN training as a person runs it, made tiny."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import gan
from zoo.errors import ZooError
from zoo.objectives.adversarial import AdversarialConfig
from zoo.train.mesh import MeshConfig
from zoo.train.run import Run


def train(preset, folder, model=None, **changes):
    """The rows and the weights of a short run."""
    config = gan.PRESETS[preset]
    config = dataclasses.replace(
        config,
        run=str(folder),
        steps=3,
        batch=8,
        model=dataclasses.replace(config.model, width=4, **(model or {})),
        log_every=1,
        eval_every=3,
        save_every=1,
        mesh=MeshConfig(1, 1, 1),
        judge="",
        data=dataclasses.replace(config.data, source="digits", size=8),
    )
    config = dataclasses.replace(config, **changes)
    gan.main(config, Run(config, "test"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "model" / "model.safetensors")


def test_it_trains_and_leaves_what_it_says(tmp_path):
    """The default preset, told the classes, with spectral norm; its resume is tested with the other recipes."""
    rows, weights = train(
        "digits", tmp_path / "run", {"spectral_norm": True, "blocks": 0}, conditional=True, steps=2, eval_every=1
    )
    assert {"d_loss", "g_loss", "d_real", "d_fake", "r1", "r2", "d_grad_norm", "g_grad_norm", "lr"} <= set(rows[0])
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.png")}
    assert {"interpolation.png", "strip.png", "samples/step_000001.png", "samples/step_000002.png"} <= files
    assert any(name.endswith("/u") for name in weights)
    assert np.any(weights["params/discriminator/embed/kernel"])


def test_the_articles_network_trains_and_is_judged(tmp_path):
    digits = dataclasses.replace(gan.DIGITS.data, size=16)
    rows, weights = train("dcgan", tmp_path / "run", steps=1, eval_every=1, judge="digits-cnn", data=digits)
    losses, scores = rows
    assert set(losses) == {"step", "d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm", "lr"}
    assert {name.split("@")[0] for name in scores} >= {"FD digits-cnn", "recall digits-cnn"}
    assert np.any(weights["stats/generator/bn/0/mean"])


def test_what_makes_no_run(tmp_path):
    with pytest.raises(ZooError, match="unknown architecture 'dcgam'; did you mean dcgan"):
        train("digits", tmp_path, {"architecture": "dcgam"})
    with pytest.raises(ZooError, match="no-batch-norm"):
        train("dcgan", tmp_path, adversarial=AdversarialConfig("wgan-gp"))
    assert not any(tmp_path.iterdir())
