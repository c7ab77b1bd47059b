"""Two processes with four simulated devices each train as one process with eight.

Not among the default tests, since each starts many processes: `pytest tests/processes`.
"""

import os
import re
import signal
import socket
import sys

import numpy as np
import pytest

from tests.experiments.recipes import ROOT, environment, finish, rows, start
from tests.processes.test_resume import logged, wait_for

FLAGS = {
    "cnn.py": "resnet20 --model resnet8 --batch 16 --optim.lr 1e-3 --eval-every 10 --data.holdout 0.02",
    "gpt.py": "--model gpt-modern-xs --batch 16 --context 16 --eval-every 10 --sample-tokens 8 --data.holdout 0.002",
}
# The collectives greet from several threads piece by piece, so that one line may stand in the middle of another.
GREETING = re.compile(
    r"\[Gloo\] Rank | is connected to | peer ranks\. Expected number of connected peer ranks is : |\d"
)
MESH = "--mesh.data 1 --mesh.fsdp 8"  # parameters are split over both processes


def command(script, folder, *flags):
    recipe = [*FLAGS[script].split(), *MESH.split(), "--log-every", "1"]
    return [sys.executable, "-u", str(ROOT / "experiments" / script), *recipe, "--run", str(folder), *flags]


def pair(script, folder, cache, *flags):
    """Both processes, started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            command(script, folder, *flags),
            environment(cache, devices=4)
            | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)},
        )
        for index in range(2)
    ]


def outputs(processes):
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(out)
    return out


def losses(folder):
    return [(row["step"], row.get("loss", row.get("eval_loss"))) for row in rows(folder)]


@pytest.mark.parametrize("script", FLAGS)
def test_losses_are_those_of_one_process(script, tmp_path, cache):
    finish(command(script, tmp_path / "one", "--steps", "10"), environment(cache, devices=8))
    out = outputs(pair(script, tmp_path / "two", cache, "--steps", "10"))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert GREETING.sub("", out[1]).strip() == "", "only the first process speaks"


def test_sigterm_to_one_saves_a_common_step_in_both(tmp_path, cache):
    folder, flags = tmp_path / "run", ["--steps", "2000", "--save-every", "2000", "--eval-every", "2000"]
    processes = pair("gpt.py", folder, cache, *flags)
    assert wait_for(lambda: logged(folder, 5), processes[0])
    os.kill(processes[1].pid, signal.SIGTERM)
    out = outputs(processes)
    stopped = re.search(r"stopped by SIGTERM at step (\d+)", out[0])
    assert stopped, out[0]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [stopped[1]]
    assert rows(folder)[-1]["step"] == int(stopped[1])
    outputs(pair("gpt.py", folder, cache, *flags, "--max-minutes", "1e-9"))  # continues, and stops again
    assert rows(folder)[-1]["step"] > int(stopped[1])
