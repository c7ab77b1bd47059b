"""Know before you rent: compile a recipe's own step for TPUs that are not there, and say what it will take.

python -m tpu.plan experiments/vae.py cifar10 --topology v5e:1x1 [flags of the recipe]

Nothing runs and no accelerator is needed: libtpu compiles real TPU programs on any Linux machine. Memory is what the
compiler allots. Times are estimates: the compiler's cycles where it gives them, bytes over the speed of HBM or of the
links where it gives none.
"""

import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from tpu.capture import Step, capture
from tpu.chips import Chip, devices_of, quiet
from tpu.hlo import Schedule, schedule
from zoo.errors import ZooError
from zoo.models import functional
from zoo.train.flops import peak_flops

GIB = 2**30


@dataclass
class Plan:
    """What is known of a step on a topology; bytes are of one device, times are estimates."""

    recipe: str
    topology: str
    devices: int
    batch: int
    steps_per_dispatch: int
    parameters: int
    flops: float
    """Of one step, over all devices."""
    hbm: int
    """Bytes that a program may fill."""
    params_bytes: int
    optimizer_bytes: int
    """With averaged weights and statistics."""
    data_bytes: int
    """The batch, and the data that lies on the device."""
    peak_bytes: int
    """At the worst moment; 0 where it does not fit and the compiler says no more."""
    fits: bool
    compile_seconds: float
    step_seconds: float
    """Of one step."""
    mfu: float
    examples_per_second: float
    collectives: dict[str, dict[str, float]]
    """Of one step, by kind."""
    seconds_by: dict[str, float]
    """Of one step: what is the compiler's estimate, and what is bytes over a speed."""
    unestimated: dict[str, int]
    """Operations without an estimate, by their opcodes."""
    notes: list[str]


def plan(script: Path, arguments: list[str], topology: str, slices: int = 1) -> tuple[Plan, Schedule]:
    """Compiles the step of a recipe for a topology. Raises ZooError for what a user can mend."""
    chip, devices = devices_of(topology, slices)
    step = capture(script, arguments, devices)
    begun = time.perf_counter()
    text, peak, notes = "", 0, []
    with quiet():
        try:
            compiled = step.traced.lower().compile()
            text, peak = compiled.as_text(), compiled.memory_analysis().peak_memory_in_bytes
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            peak = exhausted(str(error))
            notes.append(str(error).strip().splitlines()[0])
    seconds = time.perf_counter() - begun
    found = schedule(text, chip) if text else Schedule()
    return describe(script, arguments, topology, step, chip, found, peak, bool(text), seconds, notes), found


def describe(
    script: Path,
    arguments: list[str],
    topology: str,
    step: Step,
    chip: Chip,
    found: Schedule,
    peak: int,
    fits: bool,
    seconds: float,
    notes: list[str],
) -> Plan:
    """The figures of a compiled step."""
    stride, state = step.config.steps_per_dispatch, step.state
    params = held(state["params"])
    estimate = found.seconds / stride
    flops_each = peak_flops(step.mesh.devices.flat[0])
    by = {kind: sum(cost.seconds for cost in found.by(kind)) / stride for kind in ("estimate", "bytes", "kernel")}
    counts: dict[str, int] = {}
    for cost in found.costs:
        if cost.kind not in ("estimate", "collective"):
            counts[cost.op.opcode] = counts.get(cost.op.opcode, 0) + 1
    collectives = {
        kind: {name: value / stride for name, value in row.items()} for kind, row in found.collectives().items()
    }
    return Plan(
        recipe=" ".join([str(script), *arguments]),
        topology=topology,
        devices=step.mesh.size,
        batch=step.config.batch,
        steps_per_dispatch=stride,
        parameters=functional.count(state["params"]),
        flops=step.flops,
        hbm=int(chip.hbm * GIB),
        params_bytes=params,
        optimizer_bytes=held(state) - params,
        data_bytes=held(step.inputs),
        peak_bytes=peak,
        fits=fits and peak <= chip.hbm * GIB,
        compile_seconds=seconds,
        step_seconds=estimate,
        mfu=step.flops / (estimate * flops_each * step.mesh.size) if estimate and flops_each else 0.0,
        examples_per_second=step.config.batch / estimate if estimate else 0.0,
        collectives=collectives,
        seconds_by=by | {"collective": sum(row["seconds"] for row in collectives.values())},
        unestimated=counts,
        notes=notes + found.notes,
    )


def held(tree: Any) -> int:
    """Bytes that one device keeps of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def exhausted(message: str) -> int:
    """The bytes that a program would take, of the compiler's refusal; 0 where it does not say."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else 0


def show(plans: list[Plan]) -> None:
    """A table with a column for each plan."""
    rows: dict[str, Any] = {
        "devices": lambda p: f"{p.devices}",
        "batch": lambda p: f"{p.batch:,}",
        "parameters": lambda p: f"{p.parameters:,}",
        "TFLOP a step": lambda p: f"{p.flops / 1e12:.4g}",
        "HBM, peak": lambda p: f"{p.peak_bytes / GIB:.2f} of {p.hbm / GIB:.2f} GiB",
        "  parameters": lambda p: f"{p.params_bytes / GIB:.3f}",
        "  optimizer, averages": lambda p: f"{p.optimizer_bytes / GIB:.3f}",
        "  data": lambda p: f"{p.data_bytes / GIB:.3f}",
        "  activations, the rest": lambda p: f"{rest(p) / GIB:.3f}",
        "fits": lambda p: f"yes, {(p.hbm - p.peak_bytes) / GIB:.2f} GiB free" if p.fits else "NO",
        "compiled in": lambda p: f"{p.compile_seconds:.0f} s",
        "estimated step": lambda p: f"{1e3 * p.step_seconds:.3f} ms",
        "  compiler's cycles": lambda p: f"{1e3 * p.seconds_by['estimate']:.3f}",
        "  bytes over HBM": lambda p: f"{1e3 * p.seconds_by['bytes']:.3f}",
        "  kernels": lambda p: f"{1e3 * p.seconds_by['kernel']:.3f}",
        "  collectives": lambda p: f"{1e3 * p.seconds_by['collective']:.3f}",
        "estimated MFU": lambda p: f"{p.mfu:.1%}",
        "estimated examples/s": lambda p: f"{p.examples_per_second:,.0f}",
    }
    shown = Table("", *(p.topology for p in plans), title=plans[0].recipe, title_justify="left", box=None)
    for name, cell in rows.items():
        shown.add_row(name, *(cell(p) for p in plans))
    console = Console()
    console.print(shown)
    for p in plans:
        for kind, row in p.collectives.items():
            console.print(
                f"{p.topology}: {row['count']:g} {kind} a step, {row['bytes'] / 2**20:,.1f} MiB,"
                f" {1e3 * row['seconds']:.3f} ms"
            )
        if p.unestimated:
            listed = ", ".join(f"{count} {name}" for name, count in sorted(p.unestimated.items()))
            console.print(f"{p.topology}: without the compiler's estimate: {listed}")
        for note in p.notes:
            console.print(f"{p.topology}: {note}", markup=False)


def rest(p: Plan) -> int:
    return max(0, p.peak_bytes - p.params_bytes - p.optimizer_bytes - p.data_bytes)


def explain(found: Schedule, stride: int, root: Path) -> None:
    """The twenty costliest operations, with the lines that they come from."""
    shown = Table("ms a step", "runs", "by", "operation", "from", title="costliest operations", title_justify="left")
    for cost in found.costs[:20]:
        shown.add_row(
            f"{1e3 * cost.seconds / stride:.3f}",
            f"{cost.times / stride:g}",
            cost.kind,
            cost.op.opcode + " " + cost.op.name,
            cost.source.replace(f"{root}/", ""),
        )
    Console().print(shown)


@dataclass(frozen=True)
class Options:
    """What to plan, and for which TPUs."""

    recipe: tyro.conf.Positional[Path]
    """A script of experiments/. Its preset and flags follow."""
    topology: tuple[str, ...] = ("v5e:1x1",)
    """Chips to compile for, such as v5e:1x1 v6e:1x1 v5e:2x4 v5p:2x2x2."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network."""
    explain: bool = False
    """List the twenty costliest operations, with the source lines that they come from."""
    json: Path | None = None
    """File to write the plans to."""


def main(argv: list[str] | None = None) -> int:
    options, arguments = tyro.cli(
        Options, prog="python -m tpu.plan", description=__doc__, args=argv, return_unknown_args=True
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", 100)  # or the lines of our own are cut off
    plans = []
    try:
        for topology in options.topology:
            made, found = plan(options.recipe, arguments, topology, options.slices)
            plans.append(made)
            if options.explain:
                explain(found, made.steps_per_dispatch, Path(__file__).resolve().parent.parent)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(plans)
    if options.json:
        options.json.write_text(json.dumps([asdict(p) for p in plans], indent=1) + "\n")
    return 0 if all(p.fits for p in plans) else 1


if __name__ == "__main__":
    sys.exit(main())
