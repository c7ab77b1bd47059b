"""Train on many hosts: the commands that rent a TPU slice, run a recipe on every host of it, and give it back.

python -m tpu.pod create --topology v5e:4x4 --zone us-west4-a --spot
python -m tpu.pod start experiments/gpt.py --model gpt2 --run gs://my-bucket/gpt2 --topology v5e:4x4 --zone us-west4-a

Every command is printed before it is run, and with --dry-run only printed. tpu/pod.md tells the whole way, by gcloud
on TPU VMs and, with --gke, by xpk on Google Kubernetes Engine.
"""

import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tpu.capture import load_script
from zoo.errors import ZooError, unknown
from zoo.train.launch import parse

ROOT = Path(__file__).resolve().parent.parent
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
PYTHON = "3.11"  # with TPU VMs comes 3.10, which is too old
GRACE = 120  # seconds that a pod of GKE has to save after SIGTERM; a spot machine that is taken has 25 at most
NAME, ZONE = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", r"[a-z]+-[a-z]+\d+-[a-z]"
PROJECT = r"([a-z][-a-z0-9.]*[a-z0-9]:)?[a-z][-a-z0-9]{4,28}[a-z0-9]"
REPOSITORY = r"(https|ssh)://[^\s-]\S*|\w+@[\w.-]+:\S+"


@dataclass(frozen=True)
class Offer:
    """How a kind of chip is rented."""

    prefix: str
    """Of the accelerator type, before its size."""
    cores: int
    """What the type's size counts for each chip."""
    runtime: str
    """Version of a TPU VM's system."""
    shapes: tuple[str, ...]
    """Slices that a type of that size means."""


# cloud.google.com/tpu/docs: "TPU configurations" of each version, and "TPU software versions"
OFFERS = {
    "v4": Offer("v4", 2, "tpu-ubuntu2204-base", CUBE),
    "v5e": Offer("v5litepod", 1, "v2-alpha-tpuv5-lite", FLAT),
    "v5p": Offer("v5p", 2, "v2-alpha-tpuv5", CUBE),
    "v6e": Offer("v6e", 1, "v2-alpha-tpuv6e", FLAT),
}

Action = Literal["create", "status", "install", "start", "log", "stop", "delete"]


@dataclass(frozen=True)
class Options:
    """What to do, and with which TPUs. The preset and flags of a recipe follow it."""

    action: tyro.conf.Positional[Action]
    """In the order of a run's life; stop saves, and delete ends what is paid for."""
    recipe: tyro.conf.Positional[str] = ""
    """With start: a script of experiments/."""
    zone: str = ""
    """Zone of Google Cloud, such as us-west4-a."""
    topology: str = "v5e:4x4"
    """Chips of a slice, as tpu.plan names them."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network."""
    name: str = "zoo"
    """What to call the TPU VMs or, on GKE, the cluster and its workload."""
    project: str = ""
    """Project of Google Cloud; by default gcloud's own."""
    spot: bool = False
    """Rent machines that are cheaper, and may be taken away at any time."""
    queued: bool = False
    """Wait in the queue until there are TPUs; several slices always do."""
    gke: bool = False
    """By xpk on Google Kubernetes Engine, not by gcloud on TPU VMs."""
    repository: str = ""
    """With install: address of this repository, which every host clones."""
    restarts: int = 50
    """With start on GKE: how often a run that lost a machine is started again."""
    dry_run: bool = False
    """Print the commands and run none."""

    @property
    def offer(self) -> Offer:
        return OFFERS[self.topology.partition(":")[0]]

    @property
    def type(self) -> str:
        """The accelerator type, such as v5litepod-16."""
        chips = math.prod(int(size) for size in self.topology.partition(":")[2].split("x"))
        return f"{self.offer.prefix}-{chips * self.offer.cores}"

    @property
    def place(self) -> list[str]:
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]


def main(argv: list[str] | None = None) -> int:
    try:
        options, arguments = tyro.cli(
            Options, prog="python -m tpu.pod", description=__doc__, args=argv, return_unknown_args=True
        )
        return carry_out(command(options, arguments), options.dry_run)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check(options: Options) -> None:
    """Raises ZooError for what cannot be rented, and for names that Google Cloud would not take."""
    for flag, value, form, example in (
        ("name", options.name, NAME, "zoo-1: at most 40 small letters, digits and hyphens"),
        ("zone", options.zone, ZONE, "us-west4-a"),
        ("project", options.project or "my-project", PROJECT, "my-project-1"),
    ):
        if not re.fullmatch(form, value):
            raise ZooError(f"--{flag} {value!r} should be like {example}")
    if options.slices < 1 or options.restarts < 0:
        raise ZooError(f"--slices is {options.slices}, at least 1; --restarts is {options.restarts}, at least 0")
    kind, _, shape = options.topology.partition(":")
    if kind not in OFFERS:
        raise unknown("TPU", kind, OFFERS)
    if shape not in OFFERS[kind].shapes:
        offered = ", ".join(OFFERS[kind].shapes)
        raise ZooError(f"--topology {options.topology}: no {kind} slice is rented in that shape; choose of {offered}")


def command(options: Options, arguments: list[str]) -> list[str]:
    """The command of an action. Raises ZooError for what is wrong, missing or left over."""
    check(options)
    if options.action == "start":
        training = recipe_line(options.recipe, arguments)
        return start_gke(options, training) if options.gke else start_vm(options, training)
    if options.recipe or arguments:
        left = " ".join(filter(None, [options.recipe, *arguments]))
        raise ZooError(f"{options.action} takes no recipe, and no flags of one: {left}")
    return gke(options) if options.gke else vm(options)


def recipe_line(name: str, arguments: list[str]) -> str:
    """A recipe's command line, quoted for a shell in the repository's root.

    Raises ZooError for what the recipe finds wrong, and without a run folder that outlives the machines.
    """
    if not name:
        raise ZooError("start needs a recipe, such as experiments/gpt.py")
    script = Path(name)
    recipe = load_script(script)
    _, config = parse(arguments, script.stem, recipe.PRESETS, recipe.__doc__)
    if not re.fullmatch(r"gs://[a-z0-9][-\w.]+/.+", config.run):
        raise ZooError(
            f"--run {config.run or '(none)'} would be lost with the machines, and no host sees the disk of another;"
            f" give a folder of a bucket: --run gs://BUCKET/{script.stem}"
        )
    if not script.resolve().is_relative_to(ROOT):
        raise ZooError(f"{script} is outside of {ROOT}, which is what the hosts have; move it there")
    return shlex.join([script.resolve().relative_to(ROOT).as_posix(), *arguments])


def vm(options: Options) -> list[str]:
    """All but the start, on TPU VMs."""
    queued = options.queued or options.slices > 1
    kind, name = "queued-resources" if queued else "tpu-vm", options.name
    if options.action == "create":
        wanted = [f"--accelerator-type={options.type}", *(["--spot"] if options.spot else [])]
        version = f"--{'runtime-' if queued else ''}version={options.offer.runtime}"
        many = [f"--node-count={options.slices}", f"--node-prefix={name}"]
        nodes = many if options.slices > 1 else [f"--node-id={name}"] if queued else []
        return gcloud(kind, "create", options, *wanted, version, *nodes)
    if options.action == "status":
        return gcloud(kind, "describe", options, f"--format=value(state{'.state' if queued else ''})")
    if options.action == "install":
        if not re.fullmatch(REPOSITORY, options.repository):
            raise ZooError(f"--repository {options.repository!r} should be like https://github.com/owner/zoo.git")
        return ssh(
            options,
            "all",
            f"set -e; test -d zoo || git clone {shlex.quote(options.repository)} zoo; cd zoo; git pull --ff-only;"
            f" python3 -m pip install -q --user uv; ~/.local/bin/uv venv -q --allow-existing --python {PYTHON};"
            ' ~/.local/bin/uv pip install -q -e ".[gcs]" "jax[tpu]"',
        )
    if options.action == "log":
        return ssh(options, "0", "tail -n 20 -F zoo.log")
    if options.action == "stop":
        waiting = 'kill "$pid"; while kill -0 "$pid" 2>/dev/null; do sleep 1; done'
        return ssh(options, "0", f"pid=$(cat zoo.pid); {waiting}; tail -n 1 zoo.log")
    return gcloud(kind, "delete", options, *(["--force"] if queued else []), "--quiet")


def start_vm(options: Options, training: str) -> list[str]:
    """The same command on every host, which goes on when the connection ends."""
    running = 'if { kill -0 "$(cat zoo.pid)"; } 2>/dev/null; then echo it runs already; exit 1; fi'
    line = f"nohup .venv/bin/python -u {training} > ../zoo.log 2>&1 < /dev/null &"
    return ssh(options, "all", f"{running}; cd zoo && {{ {line} echo $! > ../zoo.pid; }}")


def gcloud(kind: str, verb: str, options: Options, *flags: str) -> list[str]:
    return ["gcloud", "compute", "tpus", kind, verb, options.name, *options.place, *flags]


def ssh(options: Options, worker: str, script: str) -> list[str]:
    """A script for the shell of one host of the first slice, or of "all" hosts."""
    kind, node = ("queued-resources", [f"--node={worker}"]) if options.slices > 1 else ("tpu-vm", [])
    return gcloud(kind, "ssh", options, *node, f"--worker={worker}", "--command", script)


def gke(options: Options) -> list[str]:
    """All but the start, on GKE: the workload has the cluster's name."""
    cluster, size = f"--cluster={options.name}", [f"--tpu-type={options.type}", f"--num-slices={options.slices}"]
    if options.action == "create":
        tier = "--spot" if options.spot else "--on-demand"
        return ["xpk", "cluster", "create", cluster, *options.place, *size, tier]
    if options.action == "status":
        return ["xpk", "workload", "list", cluster, *options.place, f"--filter-by-job={options.name}"]
    if options.action == "install":
        raise ZooError("on GKE there is nothing to install: start makes the image, of the folder that it is run in")
    if options.action == "log":
        first = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        return ["kubectl", "logs", "--follow", f"--selector=jobset.sigs.k8s.io/jobset-name={options.name},{first}"]
    if options.action == "stop":
        return ["xpk", "workload", "delete", cluster, f"--workload={options.name}", *options.place, "--force"]
    return ["xpk", "cluster", "delete", cluster, *options.place, "--force"]


def start_gke(options: Options, training: str) -> list[str]:
    """A workload that is started again when it has lost a machine. By `exec`, SIGTERM comes to Python itself."""
    return [
        *("xpk", "workload", "create", f"--cluster={options.name}", f"--workload={options.name}", *options.place),
        *(f"--tpu-type={options.type}", f"--num-slices={options.slices}", f"--max-restarts={options.restarts}"),
        *(f"--termination-grace-period-seconds={GRACE}", f"--base-docker-image=python:{PYTHON}", "--script-dir=."),
        *("--command", f'pip install -q -e ".[gcs]" "jax[tpu]" && exec python -u {training}'),
    ]


def carry_out(words: list[str], dry_run: bool) -> int:
    """Prints a command and, unless it is a dry run, runs it; returns its exit code."""
    print(shlex.join(words), flush=True)
    if dry_run:
        return 0
    try:
        return subprocess.run(words).returncode
    except FileNotFoundError as error:
        url = {"gcloud": "https://cloud.google.com/sdk", "xpk": "https://github.com/AI-Hypercomputer/xpk"}
        where = url.get(words[0], "https://kubernetes.io")
        raise ZooError(f"there is no {words[0]} here; install it from {where}, or use --dry-run") from error


if __name__ == "__main__":
    sys.exit(main())
