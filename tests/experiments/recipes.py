"""The real recipes, made tiny, run as a person would: as commands."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp

from zoo.train.mesh import named_leaves

ROOT = pathlib.Path(__file__).resolve().parents[2]

RECIPES = {
    "resnet20": (
        "cnn.py resnet20 --steps 20 --batch 8 --log-every 1 --eval-every 10 --save-every 4 --ema 0.9"
        " --augment.flip --data.holdout 0.02"
    ),
    "gan": (
        "gan.py --steps 20 --batch 8 --log-every 1 --eval-every 10 --save-every 4 --ema 0.9 --conditional --data.size 8"
        " --judge= --model.width 8 --model.blocks 0 --model.spectral-norm --adversarial.penalty-rows 2"
    ),
    "tokenizer": (
        "tokenizer.py --steps 20 --batch 8 --log-every 1 --eval-every 10 --save-every 4 --model.quantiser ema"
        " --model.widths 8 16 --model.codes 32 --model.code-width 4 --model.revive 0.1 --data.holdout 0.02"
    ),
    "decoder": (
        "gpt.py --model gpt-modern-xs --steps 30 --batch 8 --context 16 --log-every 1 --eval-every 10 --save-every 5"
        " --sample-tokens 8 --data.holdout 0.002"
    ),
    "scenes": (
        "scenes.py --tokenizer {tokenizer} --model gpt-modern-xs --steps 20 --batch 4 --log-every 1 --eval-every 10"
        " --save-every 4 --rows 8 --exam 2"
    ),
}


def command(recipe: str, folder: pathlib.Path, *flags: str) -> list[str]:
    script, *rest = recipe.split()
    return [sys.executable, str(ROOT / "experiments" / script), *rest, "--run", str(folder), *flags]


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
    """One compile cache for all runs of a session, so that each program is compiled once."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def start(arguments: list[str], env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(arguments: list[str], env: dict[str, str]) -> str:
    """Runs a command to its end; returns what it printed."""
    done = subprocess.run(arguments, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_state(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder / "checkpoints" / str(step) / "default").item_metadata
        state = checkpointer.restore(folder / "checkpoints" / str(step) / "default")
    assert metadata is not None
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def assert_same_run(left: pathlib.Path, right: pathlib.Path) -> None:
    """Bit for bit: parameters, statistics, optimizer state, averages and rows."""
    assert rows(left) == rows(right)
    a, b = last_state(left), last_state(right)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (left / "model" / "model.safetensors").read_bytes() == (right / "model" / "model.safetensors").read_bytes()
