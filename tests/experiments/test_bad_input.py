"""Bad input to the real recipes: one message that says what and how to mend it, exit code 2, nothing left behind."""

import pytest

from experiments import cnn, gan, gpt, tokenizer, vae
from zoo.train.launch import launch

RECIPES = {"cnn": cnn, "gan": gan, "gpt": gpt, "tokenizer": tokenizer, "vae": vae}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("cnn", ["digit"], "unknown preset 'digit'; did you mean digits?"),
        ("gpt", ["shakespear"], "did you mean shakespeare"),
        ("cnn", ["--model", "resnet-20"], "did you mean resnet20"),
        ("cnn", ["--data.size", "8"], "leaves nothing after two convolutions"),
        ("cnn", ["--batch", "12"], "--batch 12 does not divide by mesh.data 8"),
        ("cnn", ["--batch", "2000"], "2000 is larger than the training set"),
        ("cnn", ["--data", "images:nowhere"], "nowhere"),
        ("cnn", ["--data", "idx"], "idx"),
        ("cnn", ["--augment.flip", "--augment.crop", "-1"], "crop is -1"),
        ("gpt", ["--context", "600000"], "a context of 600000 tokens needs at least"),
        ("gpt", ["--data", "text:nowhere.txt"], "no file or folder nowhere.txt"),
        ("gpt", ["--model", "gtp2"], "did you mean gpt2"),
        ("gpt", ["--model", "resnet20"], "resnet20"),
        ("gpt", ["--attention", "cudnn"], "cudnn needs an NVIDIA GPU"),
        ("gpt", ["--attention", "splash"], "splash needs a TPU"),
        ("gpt", ["--optim.clip", "-1"], "--optim"),
        ("gpt", ["--steps", "0"], "--steps"),
        ("gpt", ["--eval-every", "0"], "--eval-every"),
        ("vae", ["--model", "vae-digit"], "did you mean vae-digits"),
        ("vae", ["--data.size", "9"], "is not a multiple of 2"),
        ("tokenizer", ["--data.size", "9"], "does not divide into squares of 2 pixels"),
        ("tokenizer", ["--model.levels", "5", "1"], "two or more levels of each"),
        ("tokenizer", ["--critic.weight", "-1"], "--critic.width"),
        ("gan", ["--data.size", "20"], "the model wants [B, 16, 16, 1]"),
    ],
)
def test_one_message_and_nothing_left(name, flags, message, tmp_path, capsys):
    recipe = RECIPES[name]
    with pytest.raises(SystemExit) as stop:
        launch(recipe.main, recipe.PRESETS, recipe.__doc__, [*flags, "--run", str(tmp_path / "run")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if "Value error" not in error:  # what a config itself refuses is told in the same box as a misspelt flag
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_help_is_a_page(name, capsys):
    recipe = RECIPES[name]
    with pytest.raises(SystemExit) as stop:
        launch(recipe.main, recipe.PRESETS, recipe.__doc__, ["--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    for flag in (
        "steps",
        "batch",
        "seed",
        "run",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "optim.lr",
        "save-every",
        "eval-every",
    ):
        assert f"--{flag}" in page
    assert "Presets" in page
    assert len(page.splitlines()) < 200
