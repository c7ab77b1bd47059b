"""The doctor, shown machines that are not there: files of devices and processes, versions and environments made up."""

import contextlib
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo import doctor
from zoo.cli import main
from zoo.doctor import Finding
from zoo.errors import ZooError
from zoo.train import launch

ROOT = Path(__file__).resolve().parent.parent
COLAB = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "libtpu": "0.0.21.1",
    "numpy": "2.1.3",
    "flax": "0.11.2",
    "jaxtyping": "0.3",
}
# As jax writes them, but for the versions
REQUIRES = [
    "jaxlib<=0.7.2,>=0.7.2",
    "numpy>=2.0",
    'libtpu==0.0.23.*; extra == "tpu"',
    'jaxlib==0.7.1; extra == "minimum-jaxlib"',
    'jax-cuda12-plugin[with-cuda]<=0.7.2,>=0.7.2; extra == "cuda12"',
]


def device(platform, kind, limit=0, used=0):
    stats = {"bytes_limit": limit, "bytes_in_use": used} if limit else None
    return SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: stats)


CPU, TPU = [device("cpu", "cpu")], [device("tpu", "TPU v5 lite", 63 * 2**28, used * 2**30) for used in (1, 3)]


@pytest.fixture
def machine(tmp_path):
    """A machine with a TPU that process 123 has open, and 124 has not."""
    for name in ("dev/accel0", "dev/vfio/vfio", "dev/null"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for number, file, command in ((123, "accel0", b"python\0train.py\0"), (124, "null", b"sh\0")):
        (tmp_path / f"proc/{number}/fd").mkdir(parents=True)
        (tmp_path / f"proc/{number}/fd/3").symlink_to(tmp_path / "dev" / file)
        (tmp_path / f"proc/{number}/cmdline").write_bytes(command)
    return tmp_path


def of(rows, name):
    (row,) = (row for row in rows if row.name == name)
    return row


def test_a_held_tpu_is_not_started(machine):
    def never():
        raise AssertionError("jax was started on a TPU that another process has")

    rows = doctor.examine({}, machine, COLAB, never)
    held = of(rows, "TPU held by")
    assert "123: python train.py" in held.found
    assert (held.mend, held.stops) == ("kill 123", True)
    assert "not started" in of(rows, "backend").found
    rows = doctor.examine({"JAX_PLATFORMS": "cpu"}, machine, COLAB, lambda: CPU)  # wants no TPU
    assert not any(row.stops for row in rows if row.name in ("TPU held by", "backend"))
    assert of(rows, "backend").mend == "unset JAX_PLATFORMS"


def test_a_free_tpu_is_well(machine):
    (machine / "proc/123/fd/3").unlink()
    rows = doctor.examine({"COLAB_RELEASE_TAG": "release"}, machine, COLAB, lambda: TPU)
    assert of(rows, "backend") == Finding("backend", "tpu")
    assert of(rows, "devices").found == "2 × TPU v5 lite, 15.75 GiB of memory each for jax, 3.00 GiB in use"
    assert of(rows, "machine").found.startswith("Colab")
    assert of(rows, "device files").found == str(machine / "dev/accel0")
    assert not of(rows, "TPU held by").problem


def test_jax_on_the_cpu_beside_a_tpu_stops(machine):
    (machine / "proc/123/fd/3").unlink()
    row = of(doctor.examine({}, machine, COLAB, lambda: CPU), "backend")
    assert row.stops
    assert "accel0" in row.problem


def test_who_holds_a_file_by_the_real_proc(tmp_path):
    file = tmp_path / "accel0"
    file.touch()
    code = "import sys; file = open(sys.argv[1]); print('open', flush=True); input()"
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        found = doctor.holders(Path("/proc"), [file], os.getpid())
        assert list(found) == [process.pid]
        assert found[process.pid].startswith(f"{sys.executable} -c import sys")
        assert doctor.holders(Path("/proc"), [file], process.pid) == {}
        process.communicate("\n")
    assert doctor.holders(Path("/proc"), [file], os.getpid()) == {}


@pytest.mark.parametrize(
    ("devices", "failure", "wanted", "files", "missing", "site", "stops", "mend"),
    [
        (CPU, "", "", [], "", "", False, ""),
        (CPU, "", "", [], "", "Kaggle", False, "Settings > Accelerator > TPU v5e-8"),
        (CPU, "", "cpu", [], "", "Colab", False, ""),
        (CPU, "", "tpu,cpu", [], "", "", True, "unset JAX_PLATFORMS"),
        (CPU, "", "", ["/dev/accel0"], "libtpu", "", True, 'pip install "jax[tpu]==0.7.2"'),
        (CPU, "", "", ["/dev/nvidia0"], "", "", True, 'pip install "jax[cuda12]==0.7.2"'),
        (CPU, "", "cpu,tpu", ["/dev/vfio/0"], "", "", False, "unset JAX_PLATFORMS"),
        ([], "no TPU", "tpu", ["/dev/vfio/0"], "", "Colab", True, "JAX_PLATFORMS=tpu python -c"),
        ([], "jaxlib is too old", "", [], "", "", True, 'pip install --force-reinstall "jax==0.7.2"'),
        (TPU, "", "", ["/dev/vfio/0"], "", "Colab", False, ""),
    ],
)
def test_backend(devices, failure, wanted, files, missing, site, stops, mend):
    installed = {name: version for name, version in COLAB.items() if name != missing}
    row = doctor.check_backend(devices, failure, wanted, [Path(file) for file in files], installed, site)
    assert row.stops == stops
    assert row.mend.startswith(mend)
    assert bool(row.mend) == bool(mend) == bool(row.problem)
    assert failure in row.problem


def test_versions_are_those_that_jax_asks_for():
    def problems(failed, **changes):
        rows = doctor.check_versions(COLAB | changes, REQUIRES, failed)
        return {row.name: (row.mend, row.stops) for row in rows if row.problem}

    plugin = {"libtpu": "0.0.23.1", "jax-cuda12-plugin": "0.7.1"}
    assert problems(failed=False) == problems(failed=False, **plugin) == {}
    assert "0.0.23" in of(doctor.check_versions(COLAB, REQUIRES, False), "libtpu").found
    assert problems(failed=True) == {"libtpu": ('pip install "jax[tpu]==0.7.2"', False)}
    assert problems(failed=True, **plugin) == {"jax-cuda12-plugin": ('pip install "jax[cuda12]==0.7.2"', False)}
    assert problems(failed=True, libtpu="0.0.23.1") == {}
    assert problems(failed=False, jaxlib="0.7.1") == {"jaxlib": ('pip install "jax==0.7.2"', True)}
    assert of(doctor.check_versions({}, REQUIRES, True), "jax").stops


def test_packages_that_are_missing_or_old():
    requires = ["flax>=0.12.0", "numpy", "etils[epath]", 'gguf>=0.17.1; extra == "gguf"']
    rows = doctor.check_packages(COLAB | {"gcsfs": "1"}, requires)
    assert [(row.name, row.mend) for row in rows if row.stops] == [
        ("flax", 'pip install "flax>=0.12.0"'),
        ("etils", 'pip install "etils"'),
    ]
    assert (of(rows, "gguf").mend, of(rows, "gguf").stops) == ("pip install gguf", False)
    assert not any(row.name == "gcsfs" for row in rows)
    rows = doctor.check_packages(COLAB | {"flax": "0.12.1", "etils": "1.0"}, requires)
    assert of(rows, "packages").found.startswith("all 3")


def test_this_python_is_well():
    installed = doctor.installed_packages()
    assert installed["jax"] == metadata.version("jax")
    rows = doctor.check_versions(installed, metadata.requires("jax"), True)
    rows += doctor.check_packages(installed, metadata.requires("zoo-jax"))
    assert [row for row in rows if row.problem and row.name not in doctor.OPTIONAL] == []
    assert of(rows, "packages").found.startswith("all ")


def test_constraints_keep_what_drives_the_devices():
    kept = "jax==0.7.2\njax-cuda12-plugin==0.7.2\njaxlib==0.7.2\nlibtpu==0.0.21.1\nnumpy==2.1.3\n"
    assert doctor.constraints(COLAB | {"jax-cuda12-plugin": "0.7.2"}) == kept


def test_place(tmp_path):
    product = tmp_path / "product_name"
    both = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COLAB_RELEASE_TAG": "release"}
    assert doctor.place(both, product) == "Kaggle"
    assert doctor.place({"COLAB_RELEASE_TAG": "release"}, product) == "Colab"
    assert doctor.place({}, product) == ""
    product.write_text("Google Compute Engine\n")
    assert doctor.place({}, product) == "Google Compute Engine"
    product.write_text("Laptop\n")
    assert doctor.place({}, product) == ""


def test_lock_of_another_user(tmp_path):
    lock = tmp_path / "libtpu_lockfile"
    owner = os.getuid()
    assert doctor.check_lock(lock, owner + 1, True).found == "none"
    lock.touch()
    assert not doctor.check_lock(lock, owner, True).problem
    row = doctor.check_lock(lock, owner + 1, True)
    assert (row.mend, row.stops) == (f"sudo rm -f {lock}", True)
    assert not doctor.check_lock(lock, owner + 1, False).stops


def test_cache_and_disk(tmp_path):
    home = tmp_path / "home"
    assert "0 programs" in doctor.check_cache({}, home).found
    folder = home / ".cache" / "zoo" / "compiled"
    folder.mkdir(parents=True)
    (folder / "jit_step-1-cache").write_bytes(bytes(3 * 2**20))
    (folder / "jit_step-1-atime").touch()
    assert doctor.check_cache({}, home).found == f"{folder}: 1 programs, 3 MiB"
    (tmp_path / "file").touch()
    row = doctor.check_cache({"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file" / "compiled")}, home)
    assert row.mend == "export JAX_COMPILATION_CACHE_DIR=/tmp/compiled"
    assert not row.stops
    for free, problem, stops in ((9.0, False, False), (2.0, True, False), (0.5, True, True)):
        row = doctor.check_disk(int(free * 2**30), tmp_path)
        assert (bool(row.problem), row.stops) == (problem, stops)
        assert f"{free} GiB" in row.found


def test_the_command(capsys, monkeypatch):
    found = [Finding("disk", "0.1 GiB [free]", "too full", "rm -rf [old]", stops=True), Finding("jax", "1.0")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "disk: too full\n    rm -rf [old]\n" in out
    assert "training would stop at: disk" in out
    found[:1] = [Finding("disk", "low", "may not fit", "rm")]
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 0


def test_this_machine_by_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["doctor"])
    out = capsys.readouterr().out
    assert "8 × cpu" in out
    assert re.search(rf"^ok +jaxlib +{re.escape(metadata.version('jaxlib'))} *$", out, re.MULTILINE)


def test_it_tells_of_a_jax_that_cannot_be_imported():
    code = "import sys; sys.modules['jax'] = None; import zoo.doctor; sys.exit(zoo.doctor.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "training would stop at: backend" in done.stdout
    assert "import of jax halted" in done.stdout
    assert f'pip install --force-reinstall "jax=={metadata.version("jax")}"' in done.stdout


def test_the_doctor_and_training_look_for_the_same_files():
    assert set(launch.TPU_FILES) == set(doctor.TPU_FILES)


@pytest.mark.parametrize(
    ("wanted", "file", "refused"),
    [
        ("", "", None),
        ("cpu", "null", None),
        ("cpu,tpu", "null", None),
        ("", "null", "no device for /dev/null: jax came up on the CPU; `zoo doctor` says"),
        ("tpu,cpu", "", "no device for tpu,cpu: jax came up on the CPU; `zoo doctor` says"),
    ],
)
def test_training_does_not_fall_back_to_the_cpu_in_silence(monkeypatch, wanted, file, refused):
    monkeypatch.setattr(launch, "TPU_FILES", (file,) if file else ())
    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    with pytest.raises(ZooError, match=refused) if refused else contextlib.nullcontext():
        launch.start_jax()


@pytest.mark.parametrize("wanted", ["cuda", "cuda,cpu"])
def test_nor_does_a_recipe(tmp_path, wanted):
    command = [sys.executable, "-m", "tests.train.toy", "--run", str(tmp_path / "run")]
    environment = os.environ | {"JAX_PLATFORMS": wanted}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"no device for {wanted}: jax " in done.stderr
    assert "`zoo doctor`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
