"""A plan: what a recipe's step takes of a TPU's memory and time, from its jaxpr and from what the compiler says."""

import math
import re
import shlex
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from tpu.capture import Step, capture
from tpu.chips import Chip, devices_of, quiet
from tpu.hlo import Schedule, schedule
from zoo.models import functional
from zoo.train.flops import peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a topology; bytes are of one device, times are estimates."""

    recipe: str
    """Script, preset and flags, as on a command line."""
    topology: str
    slices: int
    versions: dict[str, str]
    """Of jax and libtpu: another compiler makes another plan."""
    mesh: dict[str, int]
    devices: int
    batch: int
    steps_per_dispatch: int
    parameters: int
    flops: float
    """Of one step, over all devices: what the model needs, so without what is computed again to save memory and
    without the masked part of attention."""
    executed_flops: float
    """The same with both."""
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
    """`flops` over what the chips could do in that time."""
    hfu: float
    """`executed_flops` over the same."""
    examples_per_second: float
    tokens_per_second: float
    """0 for recipes that have no context."""
    collectives: dict[str, dict[str, float]]
    """Of one step, by kind: count, bytes that a device sends, seconds."""
    kernels: dict[str, dict[str, float]]
    """Of one step on one device, by name: count, FLOPs, bytes, seconds."""
    seconds_by: dict[str, float]
    """Of one step: what is the compiler's estimate, and what is bytes or FLOPs over a speed."""
    unestimated: dict[str, int]
    """Operations without an estimate, by their opcodes."""
    notes: list[str]
    moved_bytes: float = 0.0
    """Of one step, between HBM and the cores of one device: all operands and results of operations, each whole, so that
    loops that read slices of one array count too much."""
    moved_seconds: float = 0.0
    """Those bytes over the speed of HBM."""

    @property
    def label(self) -> str:
        return self.topology if self.slices == 1 else f"{self.slices} × {self.topology}"


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
    peak_speed = peak_flops(devices[0]) or 0.0
    places = [device.coords for device in step.mesh.devices.flat]
    found = schedule(text, chip, step.kernels, peak_speed, places) if text else Schedule()
    fits = bool(text) and peak <= chip.hbm * GIB
    name = shlex.join([str(script), *arguments])
    return describe(name, topology, slices, step, chip, found, peak, fits, seconds, notes), found


def describe(
    name: str,
    topology: str,
    slices: int,
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
    able = estimate * (peak_flops(step.mesh.devices.flat[0]) or 0.0) * step.mesh.size
    examples = step.config.batch / estimate if estimate else 0.0
    by = {kind: sum(cost.seconds for cost in found.by(kind)) / stride for kind in ("estimate", "bytes", "kernel")}
    counts: dict[str, int] = {}
    for cost in found.costs:
        if cost.kind not in ("estimate", "collective", "kernel"):
            counts[cost.op.opcode] = counts.get(cost.op.opcode, 0) + 1
    moved = sum(cost.times * cost.bytes for cost in found.costs if cost.kind != "collective") / stride
    collectives, kernels = a_step(found.collectives(), stride), a_step(found.kernels(), stride)
    return Plan(
        recipe=name,
        topology=topology,
        slices=slices,
        versions={"jax": jax.__version__, "libtpu": metadata.version("libtpu")},
        mesh=dict(step.mesh.shape),
        devices=step.mesh.size,
        batch=step.config.batch,
        steps_per_dispatch=stride,
        parameters=functional.count(state["params"]),
        flops=step.flops,
        executed_flops=step.executed_flops,
        hbm=int(chip.hbm * GIB),
        params_bytes=params,
        optimizer_bytes=held(state) - params,
        data_bytes=held(step.inputs),
        peak_bytes=peak,
        fits=fits,
        compile_seconds=seconds,
        step_seconds=estimate,
        mfu=step.flops / able if able else 0.0,
        hfu=step.executed_flops / able if able else 0.0,
        examples_per_second=examples,
        tokens_per_second=examples * getattr(step.config, "context", 0),
        collectives=collectives,
        kernels=kernels,
        seconds_by=by | {"collective": sum(row["seconds"] for row in collectives.values())},
        unestimated=counts,
        notes=notes + found.notes,
        moved_bytes=moved,
        moved_seconds=moved / (chip.bandwidth * 1e9),
    )


def a_step(rows: dict[str, dict[str, float]], stride: int) -> dict[str, dict[str, float]]:
    """Sums of a dispatch as those of one of its steps."""
    return {name: {key: value / stride for key, value in row.items()} for name, row in rows.items()}


def held(tree: Any) -> int:
    """Bytes that one device keeps of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def exhausted(message: str) -> int:
    """The bytes that a program would take, of the compiler's refusal; 0 where it does not say.

    Where it names the temporary arrays alone, those; all else comes on top.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", message)
    if not found:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))
