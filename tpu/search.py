"""The largest batch that fits, for every named policy of what is computed again, and the fastest of all tried."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tpu.capture import configured
from tpu.chips import devices_of
from tpu.estimate import GIB, Plan, plan
from tpu.report import whole_lines
from zoo.models.layers import REMAT
from zoo.train.mesh import make_mesh

UNIT = 8  # batches that are tried are multiples of it
MOST = 2**16  # examples of a batch, beyond which none is tried
NEAR = 64  # a batch less than this part below the largest is near enough to save compiles
BY_LINE = 3  # batches that are guessed from the memory that others took, before halving


def search(script: Path, arguments: list[str], topology: str, slices: int = 1) -> list[Plan]:
    """Plans of all batches and policies that were tried; prints a line for each, and a table at the end.

    Policies are those of the recipe's flag `remat`; without one only the batch is searched.
    """
    console = whole_lines()
    _, config = configured(script, arguments)
    chip, devices = devices_of(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    unit = math.lcm(UNIT, mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate)
    flag = flag_of(config, "remat")
    if not flag:
        console.print("the recipe has no flag remat: only its batch is searched")
    tried: dict[str, list[Plan]] = {}
    for flags in [[flag, policy] for policy in REMAT] if flag else [[]]:
        made = tried[" ".join(flags) or "as it is"] = []

        def attempt(batch: int, flags: list[str] = flags, made: list[Plan] = made) -> tuple[bool, int]:
            found, _ = plan(script, [*arguments, *flags, "--batch", str(batch)], topology, slices)
            made.append(found)
            console.print(" ".join([*flags, "--batch", f"{batch}:"]), told(found), markup=False)
            return found.fits, found.peak_bytes

        largest(attempt, config.batch, unit, int(chip.hbm * GIB))
    summary(tried, console)
    return [found for made in tried.values() for found in made]


def largest(attempt: Callable[[int], tuple[bool, int]], start: int, unit: int, room: int, most: int = MOST) -> int:
    """The largest multiple of `unit` that fits, up to `most`, or one less than a 64th below it; 0 where none does.

    `attempt(batch)` says whether a batch fits and the bytes that it takes, or 0 for not known. From the start batches
    are doubled, or halved, until one fits and one does not. Between these two the next is where the line through their
    bytes meets `room`; after some of those, or without bytes, it is in the middle.
    """
    batch = max(unit, start // unit * unit)
    good = bad = (0, 0)
    while not good[0] or not bad[0]:
        fits, size = attempt(batch)
        if fits:
            good = (batch, size)
        else:
            bad = (batch, size)
        batch = 2 * batch if fits else batch // 2 // unit * unit
        if not batch or (batch > most and not bad[0]):
            return good[0]
    guesses = 0
    while bad[0] - good[0] > max(unit, good[0] // NEAR):
        batch = (good[0] + bad[0]) // 2
        if guesses < BY_LINE and bad[1] > good[1]:
            batch = good[0] + (bad[0] - good[0]) * (room - good[1]) // (bad[1] - good[1])
        batch = min(max(batch // unit * unit, good[0] + unit), bad[0] - unit)
        guesses += 1
        fits, size = attempt(batch)
        if fits:
            good = (batch, size)
        else:
            bad = (batch, size)
    return good[0]


def flag_of(config: Any, name: str, above: str = "") -> str:
    """The flag of a config's field of that name, which may lie in a config inside of it: "--model.remat"; or ""."""
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{above}{field.name}"
        if field.name == name:
            return f"--{here.replace('_', '-')}"
        if dataclasses.is_dataclass(value) and flag_of(value, name, f"{here}."):
            return flag_of(value, name, f"{here}.")
    return ""


def told(found: Plan) -> str:
    """A plan in a line."""
    size = f"{found.peak_bytes / GIB:.2f} of {found.hbm / GIB:.2f} GiB"
    if not found.fits:
        return f"does not fit, {size if found.peak_bytes else 'the compiler does not say by how much'}"
    speed = f"{1e3 * found.step_seconds:.3f} ms, {found.examples_per_second:,.0f} examples/s, MFU {found.mfu:.1%}"
    return f"{size}, estimated {speed}; compiled in {found.compile_seconds:.0f} s"


def summary(tried: dict[str, list[Plan]], console: Console) -> None:
    """For every policy the largest batch that fits and that of most examples a second, and the fastest of all."""
    shown = Table("", "largest", "GiB", "ms", "examples/s", "fastest", "examples/s", box=None)
    quickest: tuple[str, Plan] | None = None
    for name, made in tried.items():
        fitting = [found for found in made if found.fits]
        if not fitting:
            shown.add_row(name, "none fits")
            continue
        most = max(fitting, key=lambda found: found.batch)
        best = max(fitting, key=lambda found: found.examples_per_second)
        size, step = f"{most.peak_bytes / GIB:.2f}", f"{1e3 * most.step_seconds:.3f}"
        rates = [f"{found.examples_per_second:,.0f}" for found in (most, best)]
        shown.add_row(name, f"{most.batch}", size, step, rates[0], f"{best.batch}", rates[1])
        if quickest is None or best.examples_per_second > quickest[1].examples_per_second:
            quickest = name, best
    console.print(shown)
    if quickest:
        console.print(f"fastest by the estimate: {quickest[0]}, --batch {quickest[1].batch}", markup=False)
