"""The loop, on a recipe that compiles in no time. Real recipes: tests/experiments."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.train.toy import run_in
from zoo.errors import ZooError
from zoo.train.mesh import MeshConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def toy(folder, *flags, **environment):
    command = [sys.executable, "-m", "tests.train.toy", f"--run={folder}", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_run_folder_holds_everything(tmp_path, capsys):
    fitted, run = run_in(tmp_path / "run")
    run.finish(fitted.result, ["the next command"])
    folder = tmp_path / "run"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {
        "config.json",
        "metrics.jsonl",
        "loss.png",
        "strip.png",
        "samples/step_000004.png",
        "samples/step_000012.png",
        "checkpoints",
        "result.json",
        "README.md",
    } <= names
    result = json.loads((folder / "result.json").read_text())
    assert result["step"] == 12
    assert {"compile", "train", "data", "checkpoint", "evaluate", "total"} <= result["seconds"].keys()
    assert {"loss", "grad_norm", "eval_loss"} <= result["metrics"].keys()
    card = (folder / "README.md").read_text()
    assert "python toy.py" in card
    assert f"jax {jax.__version__}" in card
    out = capsys.readouterr().out
    for words in (
        "compiling",
        "training",
        "cache",
        "GFLOP",
        "examples/s",
        "eta",
        "metrics.jsonl",
        "next: the next command",
    ):
        assert words in out, words


def test_rows_are_in_step_order_with_evaluations(tmp_path):
    run_in(tmp_path / "run", log_every=3)
    found = [(row["step"], "eval_loss" in row) for row in rows(tmp_path / "run")]
    assert found == [(3, False), (4, True), (6, False), (8, True), (9, False), (12, False), (12, True)]


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9, "accumulate": 2, "mesh": MeshConfig(4, 1, 1)}, {"mesh": MeshConfig(1, 2, 2)}]
)
def test_finished_and_continued_runs_are_the_same(tmp_path, changes):
    straight, _ = run_in(tmp_path / "straight", **changes)
    with pytest.raises(SystemExit) as stop:  # a time limit that has passed stops after the first step
        run_in(tmp_path / "stopped", max_minutes=1e-9, **changes)
    assert stop.value.code == 0
    continued, _ = run_in(tmp_path / "stopped", **changes)
    assert continued.result["continued_from"] == 1
    jax.tree.map(np.testing.assert_array_equal, continued.state, straight.state)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")


def test_finished_run_is_left_as_it_is(tmp_path):
    fitted, run = run_in(tmp_path / "run")
    run.finish(fitted.result)
    before = (tmp_path / "run" / "result.json").read_text()
    again, run = run_in(tmp_path / "run")
    run.finish(again.result)
    jax.tree.map(np.testing.assert_array_equal, again.state, fitted.state)
    assert (tmp_path / "run" / "result.json").read_text() == before


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(ZooError, match=r"loss nan.* at step 8; the checkpoint of step 5 is kept.*--optim\.lr"):
        run_in(tmp_path / "run", nan_at=8, eval_every=100)
    assert (tmp_path / "run" / "checkpoints" / "5").is_dir()
    assert not (tmp_path / "run" / "checkpoints" / "8").exists()


def test_another_shape_inside_the_loop_is_an_error(tmp_path):
    with pytest.raises(ZooError, match="batch of step 6 has another shape"):
        run_in(tmp_path / "run", odd_at=6)


def test_metrics_of_a_step_do_not_depend_on_the_mesh(tmp_path):
    one, _ = run_in(tmp_path / "one", mesh=MeshConfig(1, 1, 1))
    eight, _ = run_in(tmp_path / "eight", mesh=MeshConfig(8, 1, 1))
    np.testing.assert_allclose(
        [row.get("loss", 0.0) for row in rows(tmp_path / "one")],
        [row.get("loss", 0.0) for row in rows(tmp_path / "eight")],
        rtol=1e-5,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.state, eight.state)


@pytest.mark.parametrize("window", ["3", "5:2", "a:b", "0:99"])
def test_bad_profile_window(tmp_path, window):
    with pytest.raises(ZooError, match="START:STOP"):
        run_in(tmp_path / "run", profile=window)
    assert not (tmp_path / "run").exists()


def test_profile_window_leaves_a_trace(tmp_path):
    run_in(tmp_path / "run", profile="2:4")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--batch", "7", "--accumulate", "2"], {}, r"--batch 7 does not divide"),
        (["--mesh.data", "3"], {}, r"needs 3 devices, there are 1"),
        (["--optim.lr", "0"], {}, r"--optim\.lr"),
        ([], {"JAX_PLATFORMS": "tpu"}, r"no device for tpu"),
    ],
)
def test_bad_configuration_exits_with_2_and_leaves_nothing(tmp_path, flags, environment, message):
    done = toy(tmp_path / "run", *flags, **environment)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_misspelt_flag_and_preset_get_suggestions(tmp_path):
    done = toy(tmp_path / "run", "--step", "3")
    assert done.returncode == 2
    assert "--steps" in done.stdout + done.stderr
    command = [sys.executable, "-m", "tests.train.toy", "shrot"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "unknown preset 'shrot'; did you mean short?" in done.stderr


def test_changed_config_exits_with_2(tmp_path):
    assert toy(tmp_path / "run", "--steps", "4").returncode == 0
    before = (tmp_path / "run" / "config.json").read_text()
    done = toy(tmp_path / "run", "--steps", "6")
    assert done.returncode == 2
    assert "steps: 4 there, 6 here" in done.stderr
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit_0(tmp_path, number):
    """The signal arrives while training goes on; the run then continues as if nothing had happened."""
    flags = ["--steps=4000", "--log-every=100", "--eval-every=2000", "--save-every=4000"]
    command = [sys.executable, "-u", "-m", "tests.train.toy", f"--run={tmp_path / 'run'}", *flags]
    env = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0, rest
    stopped = re.search(rf"stopped by {number.name} at step (\d+)", rest)
    assert stopped, rest
    assert toy(tmp_path / "run", *flags).returncode == 0
    assert toy(tmp_path / "straight", *flags).returncode == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")


def test_full_disk_is_one_message(tmp_path):
    """A file system without room, stood in for by a write that reports it."""
    script = (
        "import errno, os, tests.train.toy as toy, zoo.train.run as run\n"
        "def full(self, name, content): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)\n"
        "run.Run.write = full\n"
        f"toy.launch(toy.main, {{'toy': toy.ToyConfig()}}, '', ['--run', {str(tmp_path / 'run')!r}])\n"
    )
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2)], ids=str)
def test_many_steps_a_dispatch_are_the_same_steps(sizes, tmp_path):
    run_in(tmp_path / "one", fixed=True, save_every=4)
    run_in(tmp_path / "four", fixed=True, save_every=4, steps_per_dispatch=4, mesh=MeshConfig(*sizes))
    one, four = rows(tmp_path / "one"), rows(tmp_path / "four")
    assert [row["step"] for row in four] == [row["step"] for row in one]
    for left, right in zip(one, four, strict=True):
        assert left.keys() == right.keys()
        np.testing.assert_allclose(list(right.values()), list(left.values()), rtol=1e-5)


def test_many_steps_a_dispatch_resume_bit_for_bit(tmp_path):
    options = {"fixed": True, "save_every": 4, "steps_per_dispatch": 4}
    run_in(tmp_path / "whole", **options)
    with pytest.raises(SystemExit):
        run_in(tmp_path / "cut", max_minutes=1e-9, **options)
    assert [row["step"] for row in rows(tmp_path / "cut") if "loss" in row][-1] == 4
    run_in(tmp_path / "cut", **options)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_dispatch": 5}, r"--steps is 12; it must be a multiple of --steps-per-dispatch 5"),
        ({"steps_per_dispatch": 2}, "--save-every is 5; it must be a multiple"),
        ({"steps_per_dispatch": 2, "save_every": 4}, "Noise cannot lie on the device"),
    ],
)
def test_a_dispatch_that_does_not_fit_is_refused(changes, message, tmp_path):
    with pytest.raises(ZooError, match=message):
        run_in(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
