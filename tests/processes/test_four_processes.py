"""Four processes stand for the four hosts of a slice: one is lost, or told to stop, and two go on.

Not among the default tests, since each starts many processes: `pytest tests/processes`.
"""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.experiments.recipes import ROOT, environment, finish, rows, start
from tests.processes.test_resume import logged, wait_for
from tests.processes.test_two_processes import losses

# The toy with a wider kernel, which is split over all devices though it is small.
# A host that is lost is missed after 20 s, not 100
RECIPE = """
import functools
import jax
from tests.train import toy
from zoo.train import mesh
mesh.FSDP_MIN_SIZE = 0
jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=20)
init = toy.init
toy.init = lambda key: ({"kernel": jax.random.normal(key, (6, 8)) * 0.1}, init(key)[1])
toy.launch(toy.main, {"toy": toy.ToyConfig(batch=16, steps=400, eval_every=200, save_every=50)}, "")
"""


def command(folder):
    return [sys.executable, "-u", "-c", RECIPE, "--run", str(folder), "--mesh.data", "1", "--mesh.fsdp", "-1"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hosts(count, folder, cache):
    """That many processes of two devices each, started; parameters are split over all."""
    shared = environment(cache, devices=2) | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [start(command(folder), shared | {"JAX_PROCESS_ID": str(index)}) for index in range(count)]


def ended(processes):
    """Their outputs; they must all end by themselves, with code 0."""
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(out)
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """The losses of one process with eight devices."""
    folder = tmp_path_factory.mktemp("hosts") / "undisturbed"
    finish(command(folder), environment(cache, devices=8))
    return losses(folder)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_host_is_lost_and_two_go_on(lost, undisturbed, tmp_path, cache):
    """The first is the coordinator, whose loss the others notice by another way."""
    folder = tmp_path / "run"
    processes = hosts(4, folder, cache)
    assert wait_for(lambda: (folder / "checkpoints" / "150").exists(), processes[0])
    processes[lost].kill()
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode for process in processes), "\n".join(out)
    out = ended(hosts(2, folder, cache))
    assert f"continuing {folder} at step" in out[0]
    np.testing.assert_allclose(losses(folder), undisturbed, rtol=1e-4)


def test_sigterm_to_one_host_saves_a_common_step_in_all(undisturbed, tmp_path, cache):
    folder = tmp_path / "run"
    processes = hosts(4, folder, cache)
    assert wait_for(lambda: logged(folder, 5), processes[0])
    processes[3].terminate()
    out = ended(processes)
    stopped = re.search(r"stopped by SIGTERM at step (\d+)", out[0])
    assert stopped, out[0]
    assert rows(folder)[-1]["step"] == int(stopped[1]) < 400
    assert str(stopped[1]) in os.listdir(folder / "checkpoints")
    assert f"continuing {folder} at step {stopped[1]}" in ended(hosts(2, folder, cache))[0]
    np.testing.assert_allclose(losses(folder), undisturbed, rtol=1e-4)


# jax believes that it is on a TPU, whose environment GKE describes, and then gets the devices of a CPU
JOIN = """
import jax
from zoo.train import launch
jax.config.update("jax_platforms", "tpu,cpu")
join = jax.distributed.initialize
jax.distributed.initialize = lambda **given: (jax.config.update("jax_platforms", "cpu"), join(**given))
launch.start_jax()
print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())
"""


# The environments of two hosts: of one slice, and of two slices with a host each
SLICE = [{"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1", "TPU_WORKER_ID": str(i)} for i in range(2)]
ALONE = {"TPU_WORKER_HOSTNAMES": "127.0.0.1", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"}
SLICES = [ALONE | {"MEGASCALE_SLICE_ID": str(i)} for i in range(2)]


@pytest.mark.parametrize("tpus", [SLICE, SLICES], ids=["slice", "slices"])
def test_hosts_of_tpus_find_each_other(tpus, cache):
    shared = environment(cache, devices=2) | {
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }
    processes = [
        subprocess.Popen([sys.executable, "-c", JOIN], env=shared | host, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for host in tpus
    ]
    assert [text.splitlines()[-1] for text in ended(processes)] == ["0 2 2 4", "1 2 2 4"]
