"""The commands for many hosts: what they say, what a shell makes of them, and how a host finds out that it is one."""

import http.server
import os
import re
import shlex
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils.epath import testing
from jax.sharding import NamedSharding

from tests.tpu.test_plan import needs_libtpu
from tests.train.toy import ToyConfig
from tpu import pod
from tpu.chips import CHIPS, devices_of
from tpu.hlo import shape_bytes
from zoo.errors import ZooError
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.launch import several_hosts
from zoo.train.mesh import BATCH, MeshConfig, make_mesh
from zoo.train.run import Run
from zoo.train.state import abstract_state, make_init, make_step

ROOT = Path(__file__).resolve().parents[2]
HERE = ["--zone", "us-west4-a"]
START = ["start", "experiments/cnn.py", "--run", "gs://bucket/cnn", *HERE]


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


def printed(capsys, *arguments):
    assert pod.main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


# Types and shapes as the vendor's pages pair them, "TPU configurations" of each version
@pytest.mark.parametrize(
    ("topology", "kind"),
    [
        ("v4:2x2x1", "v4-8"),
        ("v4:4x4x4", "v4-128"),
        ("v5e:1x1", "v5litepod-1"),
        ("v5e:4x4", "v5litepod-16"),
        ("v5e:16x16", "v5litepod-256"),
        ("v5p:2x2x2", "v5p-16"),
        ("v5p:8x8x16", "v5p-2048"),
        ("v6e:2x4", "v6e-8"),
    ],
)
def test_types(topology, kind):
    assert pod.Options("create", topology=topology, zone="us-west4-a").type == kind


def test_all_chips_of_the_table_are_offered():
    assert pod.OFFERS.keys() == CHIPS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create"], "--zone '' should be like us-west4-a"),
        (["create", "--zone", "us-west4"], "--zone 'us-west4' should be like us-west4-a"),
        (["create", *HERE, "--name", "Zoo; rm -rf /"], "--name 'Zoo; rm -rf /' should be like zoo-1"),
        (["create", *HERE, "--project", "x"], "--project 'x' should be like"),
        (["create", *HERE, "--topology", "v5:4x4"], "unknown TPU 'v5'; did you mean v5p or v5e"),
        (["create", *HERE, "--topology", "v5e:3x3"], "no v5e slice is rented in that shape; choose of 1x1, 2x2"),
        (["create", *HERE, "--slices", "0"], "--slices is 0, at least 1"),
        (["create", *HERE, "--batch", "8"], "create takes no recipe, and no flags of one"),
        (["install", *HERE], "--repository '' should be like https://"),
        (["install", *HERE, "--repository=--upload-pack=x"], "should be like https://"),
        (["install", *HERE, "--gke"], "nothing to install"),
        (["start", *HERE], "start needs a recipe"),
        (["start", "experiments/none.py", *HERE], "there is no experiments/none.py"),
        (["start", "experiments/cnn.py", *HERE], "--run (none) would be lost"),
        (["start", "experiments/cnn.py", *HERE, "--run", "runs/cnn"], "give a folder of a bucket: --run gs:"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys):
    assert pod.main([*arguments, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_misspelt_flag_of_the_recipe_is_not_rented_for(capsys):
    with pytest.raises(SystemExit, match="2"):
        pod.main([*START, "--batches", "8", "--dry-run"])
    assert "--batch" in capsys.readouterr().err


def test_the_page_shows_what_is_printed(capsys):
    page = (ROOT / "tpu" / "pod.md").read_text()
    blocks = re.findall(r"```\n(\$.*?)```", page, re.DOTALL)
    shown = [lines for block in blocks for lines in re.findall(r"\$ python -m tpu\.pod (.*)\n((?:[^$].*\n)+)", block)]
    assert len(shown) == page.count("$ python -m tpu.pod") > 10
    for line, output in shown:
        assert printed(capsys, *shlex.split(line.removesuffix(" --dry-run"))) == output
    actions = {line.split()[0] for line, _ in shown}
    assert actions == {"create", "status", "install", "start", "log", "stop", "delete"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A host's home, whose Python writes its arguments and then waits for SIGTERM, and a gcloud that is its shell."""
    scripts = {
        "bin/gcloud": 'cd home; exec bash -c "${!#}"',
        "home/zoo/.venv/bin/python": (
            "trap 'echo saved; exit 0' TERM; printf '%s\\n' \"$@\" > ../arguments; while :; do sleep 0.1; done"
        ),
    }
    for name, script in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def test_a_shell_starts_the_recipe_as_it_was_given_and_stop_waits_for_its_end(machine, capsys):
    flags = ["--data", 'images:it\'s a "folder" $HOME `x`; #', "--batch", "8"]
    line = printed(capsys, *START, *flags)
    run = lambda line: subprocess.run(["bash", "-c", line], cwd=machine, capture_output=True, text=True, timeout=60)
    assert run(line).returncode == 0
    run("until test -s home/arguments; do sleep 0.1; done")
    try:
        again = run(line)
        assert (again.returncode, again.stdout) == (1, "it runs already\n")
        stopped = run(printed(capsys, "stop", *HERE))
        assert stopped.stdout == "saved\n"
    finally:
        subprocess.run(["bash", "-c", "kill -9 $(cat home/zoo.pid)"], cwd=machine, stderr=subprocess.DEVNULL)
    expected = ["-u", "experiments/cnn.py", "--run", "gs://bucket/cnn", *flags]
    assert (machine / "home" / "arguments").read_text().splitlines() == expected


def test_a_command_is_shown_before_it_runs_and_a_dry_run_runs_none(machine, monkeypatch, capfd):
    monkeypatch.chdir(machine)
    (machine / "bin" / "gcloud").write_text("#!/bin/bash\necho running; exit 7\n")
    assert pod.main(["delete", *HERE, "--dry-run"]) == 0
    line = "gcloud compute tpus tpu-vm delete zoo --zone=us-west4-a --quiet\n"
    assert capfd.readouterr().out == line
    assert pod.main(["delete", *HERE]) == 7
    assert capfd.readouterr().out == f"{line}running\n"
    monkeypatch.setenv("PATH", str(machine))
    assert pod.main(["delete", *HERE]) == 2
    assert "there is no gcloud here; install it from https://cloud.google.com/sdk" in capfd.readouterr().err


SERVED = {"worker-network-endpoints": "10.0.0.1,10.0.0.2", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n"}


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server that knows what the dict it gives holds; tells nothing to who does not ask as Google wants."""
    known = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            self.send_response(200 if name in known and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write(known.get(name, "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        yield known
        server.shutdown()


def test_a_host_of_many_is_known_by_its_environment(metadata):
    assert several_hosts({"JAX_COORDINATOR_ADDRESS": "a:1"}, "cpu")
    assert several_hosts({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu,cpu")
    assert several_hosts({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "tpu,cpu")
    assert several_hosts({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "tpu,cpu")
    metadata |= SERVED  # which is not asked then
    assert not several_hosts({"TPU_WORKER_HOSTNAMES": "localhost"}, "tpu,cpu")  # Kaggle's eight chips
    assert not several_hosts({"TPU_SKIP_MDS_QUERY": "1"}, "tpu,cpu")  # Colab, or no chips at all
    assert not several_hosts({"TPU_WORKER_HOSTNAMES": "a,b"}, "cpu")
    assert not several_hosts({}, None)


@pytest.mark.parametrize(
    ("names", "many"),
    [([], False), (["worker-network-endpoints"], True), (["tpu-env"], True)],
)
def test_a_host_of_many_is_known_by_the_metadata_server(names, many, metadata):
    metadata |= {"worker-network-endpoints": "10.0.0.1", "tpu-env": "ZONE: 'z'\n"} | {n: SERVED[n] for n in names}
    assert several_hosts({}, "tpu,cpu") == many


def test_without_a_metadata_server_a_machine_is_alone(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    assert not several_hosts({}, "tpu,cpu")


def test_rows_in_a_bucket_are_kept_though_it_cannot_append(tmp_path):
    real = lambda path: str(tmp_path / str(path).removeprefix("gs://"))
    writes = []

    def opened(original, path, mode="r", *args):
        assert "a" not in mode
        if "w" in mode:
            writes.append(Path(str(path)).name)
        return original(real(path), mode, *args)

    with testing.mock_epath(
        open=opened,
        exists=lambda original, path: original(real(path)),
        isdir=lambda original, path: original(real(path)),
        listdir=lambda original, path: original(real(path)),
        makedirs=lambda original, path, *args, **kwargs: original(real(path), *args, **kwargs),
    ):
        run = Run(ToyConfig(run="gs://bucket/run"), "python toy.py")
        run.check()
        run.create(0)
        for step in range(1, 6):
            run.log(step, {"loss": 1 / step})
            run.flush()
        assert writes == ["config.json", "metrics.jsonl", "metrics.jsonl"], "not at every flush"
        run.flush(at_once=True)  # as before a checkpoint
        assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 5
        run.log(6, {"loss": 0.1})
        run.close()
        assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 6
        again = Run(ToyConfig(run="gs://bucket/run"), "python toy.py")
        again.check()
        again.create(5)
        assert [row["step"] for row in again.rows] == [1, 2, 3, 4, 5]
        assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 5


@needs_libtpu
def test_only_the_sum_of_gradients_crosses_slices():
    _, devices = devices_of("v5e:2x2", 2)
    mesh = make_mesh(MeshConfig(2, 4, 1), devices[::-1])
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(ZooError, match=r"there are 2 TPU slices, so --mesh\.data must be a multiple of 2"):
        make_mesh(MeshConfig(1, 8, 1), devices)

    def loss(params, stats, batch, key):
        x = jnp.tanh(batch["x"] @ params["in"]) @ params["out"]
        return (x**2).sum(), Aux(jnp.asarray(x.size, jnp.float32), stats, {})

    width, rows = 512, 64
    tx = make_optimizer(OptimConfig(), 10)
    init = lambda key: ({name: jax.random.normal(key, (width, width)) for name in ("in", "out")}, {})
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = abstract_state(make_init(init, tx, 0), (), mesh)
        batch = {"x": jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=NamedSharding(mesh, BATCH))}
        step = make_step(gradient_update(loss, tx), 0, state, mesh)
        text = step.trace(state, batch).lower().compile().as_text()
    sent = re.findall(r"= (\(.*\)) send\(.*_xla_megascale_transfer_type=\"(\w+)\"", text)
    assert {kind for _, kind in sent} == {"ALL_REDUCE"}
    # Each chip sends its quarter of the gradients, which are in float32, and some scalars, padded to a tile
    quarter = 2 * width * width * 4 // 4
    assert quarter <= sum(shape_bytes(shape, fast=True) for shape, _ in sent) < 1.1 * quarter
