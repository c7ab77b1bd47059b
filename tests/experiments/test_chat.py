"""Fine-tuning as a person runs it, made tiny: every method, its resume, and what it must leave alone."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from experiments import chat
from zoo.data.dialogues import CHARACTERS
from zoo.errors import ZooError
from zoo.train.mesh import MeshConfig
from zoo.train.run import Run

TINY = {"vocab_size": len(CHARACTERS), "context": 128, "layers": 2, "d_model": 16, "heads": 2, "d_ff": 32}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a new model that could learn to talk."""
    folder = tmp_path_factory.mktemp("start") / "model"
    zoo.save(zoo.create("gpt-modern", residual_init="scaled", **TINY), folder)
    (folder / "codec.json").write_text(json.dumps({"codec": "chars", "alphabet": CHARACTERS}))
    return folder


def train(method, start, folder, **changes):
    preset = chat.PRESETS[method]
    config = dataclasses.replace(
        preset,
        run=str(folder),
        start=str(start),
        steps=3,
        batch=8,
        answers=6,
        log_every=1,
        eval_every=3,
        save_every=1,
        mesh=MeshConfig(1, 1, 1),
        data=dataclasses.replace(preset.data, size=90),
    )
    config = dataclasses.replace(config, **changes)
    chat.main(config, Run(config, "test"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("method", chat.PRESETS)
def test_it_learns_resumes_and_saves_a_model_that_chats(method, start, tmp_path):
    rows, weights = train(method, start, tmp_path / "straight")
    assert 0 <= rows[-1]["eval_exact"] <= 1
    assert {"loss", "eval_loss"} <= {name for row in rows for name in row}
    before = load_file(start / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], weights[name])}
    matrices = {name for name in before if name.rpartition("/")[2] in ("q", "k", "v", "out", "up", "down")}
    matrices |= {"params/token_embed"} if method == "lora" else set()
    assert changed == matrices if method == "lora" else matrices < changed
    if method == "dpo":  # the model that it starts from is its own reference
        first = next(row for row in rows if row["step"] == 1)
        assert first["loss"] == pytest.approx(np.log(2), rel=1e-5)
        assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert (tmp_path / "straight" / "samples" / "step_000003.png").exists()

    with pytest.raises(SystemExit):  # a time limit that has passed: it saves after the first step
        train(method, start, tmp_path / "stopped", max_minutes=1e-9)
    again, same = train(method, start, tmp_path / "stopped")
    assert again == rows
    for name, value in weights.items():
        np.testing.assert_array_equal(same[name], value, err_msg=name)


def test_what_cannot_be_tuned(start, tmp_path):
    zoo.save(zoo.create("resnet8"), tmp_path / "resnet")
    (tmp_path / "resnet" / "codec.json").write_text('{"codec": "bytes"}')
    with pytest.raises(ZooError, match="holds a ResNet, and dialogues need a decoder"):
        train("sft", tmp_path / "resnet", tmp_path / "run")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n')
    with pytest.raises(ZooError, match="line 1"):
        train("sft", start, tmp_path / "run", data=dataclasses.replace(chat.SFT.data, source=f"jsonl:{bad}"))
    with pytest.raises(ZooError, match="unknown source of dialogues"):
        train("sft", start, tmp_path / "run", data=dataclasses.replace(chat.SFT.data, source="dialog"))
    assert not (tmp_path / "run").exists()
