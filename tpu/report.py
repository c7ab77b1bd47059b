"""Plans as a person reads them: one column a topology, the costliest operations, and what became better or worse."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tpu.estimate import GIB, Plan
from tpu.hlo import Schedule

WIDTH = 200  # columns of a file or pipe
SAME = 0.0005  # a change that is shown as none
# What two plans are compared by: (row, its value, how it is shown, 1 where more is better and -1 where less is)
FIGURES: tuple[tuple[str, Callable[[Plan], float], str, int], ...] = (
    ("estimated step, ms", lambda p: 1e3 * p.step_seconds, ",.3f", -1),
    ("estimated examples/s", lambda p: p.examples_per_second, ",.0f", 1),
    ("estimated MFU, %", lambda p: 100 * p.mfu, ".1f", 1),
    ("HBM peak, GiB", lambda p: p.peak_bytes / GIB, ".2f", -1),
    ("collectives, MiB a step", lambda p: sum(row["bytes"] for row in p.collectives.values()) / 2**20, ",.1f", -1),
)


def show(plans: Sequence[Plan]) -> None:
    """A table with a column for each plan."""
    rows: dict[str, Any] = {
        "mesh": lambda p: " × ".join(f"{axis} {size}" for axis, size in p.mesh.items() if size > 1) or "one device",
        "batch": lambda p: f"{p.batch:,}",
        "parameters": lambda p: f"{p.parameters:,}",
        "TFLOP a step": lambda p: f"{p.flops / 1e12:.4g}",
        "  with what is done again or masked": lambda p: f"{p.executed_flops / 1e12:.4g}",
        "HBM, peak": lambda p: f"{p.peak_bytes / GIB:.2f} of {p.hbm / GIB:.2f} GiB",
        "  parameters": lambda p: f"{p.params_bytes / GIB:.3f}",
        "  optimizer, averages": lambda p: f"{p.optimizer_bytes / GIB:.3f}",
        "  data": lambda p: f"{p.data_bytes / GIB:.3f}",
        "  activations, the rest": lambda p: f"{rest(p) / GIB:.3f}",
        "fits": room,
        "compiled in": lambda p: f"{p.compile_seconds:.0f} s",
        "estimated step": lambda p: f"{1e3 * p.step_seconds:.3f} ms",
        "  compiler's cycles": lambda p: f"{1e3 * p.seconds_by['estimate']:.3f}",
        "  bytes over HBM": lambda p: f"{1e3 * p.seconds_by['bytes']:.3f}",
        "  kernels": lambda p: f"{1e3 * p.seconds_by['kernel']:.3f}",
        "  collectives": lambda p: f"{1e3 * p.seconds_by['collective']:.3f}",
        "moved over HBM": lambda p: f"{p.moved_bytes / GIB:.2f} GiB, {1e3 * p.moved_seconds:.3f} ms at its speed",
        "estimated MFU": lambda p: f"{p.mfu:.1%}",
        "  with what is done again or masked ": lambda p: f"{p.hfu:.1%}",
        "estimated examples/s": lambda p: f"{p.examples_per_second:,.0f}",
    }
    if any(p.tokens_per_second for p in plans):
        rows["estimated tokens/s"] = lambda p: f"{p.tokens_per_second:,.0f}"
    shown = Table("", *(p.label for p in plans), title=plans[0].recipe, title_justify="left", box=None)
    for name, cell in rows.items():
        shown.add_row(name, *(cell(p) for p in plans))
    console = whole_lines()
    console.print(shown)
    for p in plans:
        for kind, row in p.collectives.items():
            moved = f"{row['bytes'] / 2**20:,.1f} MiB, {1e3 * row['seconds']:.3f} ms"
            moved += f", {1e3 * row['beside']:.3f} of them beside other work" if row.get("beside") else ""
            console.print(f"{p.label}: {row['count']:g} {kind} a step, {moved}")
        for name, row in p.kernels.items():
            done = f"{row['flops'] / 1e9:,.4g} GFLOP, {row['bytes'] / 2**20:,.1f} MiB, {1e3 * row['seconds']:.3f} ms"
            console.print(f"{p.label}: {row['count']:g} kernels {name} a step, {done}", markup=False)
        if p.unestimated:
            listed = ", ".join(f"{count} {name}" for name, count in sorted(p.unestimated.items()))
            console.print(f"{p.label}: without the compiler's estimate: {listed}")
        for note in p.notes:
            console.print(f"{p.label}: {note}", markup=False)


def whole_lines() -> Console:
    """A console that does not break the rows of a table where they go to a file or a pipe."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)


def rest(p: Plan) -> int:
    return max(0, p.peak_bytes - p.params_bytes - p.optimizer_bytes - p.data_bytes)


def room(p: Plan) -> str:
    """Whether it fits, and by how much."""
    if p.fits:
        return f"yes, {(p.hbm - p.peak_bytes) / GIB:.2f} GiB free"
    return f"NO, by {(p.peak_bytes - p.hbm) / GIB:.2f} GiB" if p.peak_bytes else "NO"


def explain(found: Schedule, stride: int, root: Path) -> None:
    """The twenty costliest operations, with the lines that they come from."""
    columns = ("ms a step", "runs", "by", "operation", "from")
    shown = Table(*columns, title="costliest operations", title_justify="left", box=None)
    for cost in found.costs[:20]:
        shown.add_row(
            f"{1e3 * cost.seconds / stride:.3f}",
            f"{cost.times / stride:g}",
            cost.kind,
            cost.kernel.name if cost.kernel else f"{cost.op.opcode} {cost.op.name}",
            re.sub(r"^.*/(site|dist)-packages/", "", cost.source.replace(f"{root}/", "")),
        )
    whole_lines().print(shown)


def compare(before: Sequence[Plan], after: Sequence[Plan]) -> None:
    """What became better or worse, for every topology that both have; plans of one topology in their order."""
    console = whole_lines()
    olds, news = numbered(before), numbered(after)
    for key in [key for key in olds if key in news]:
        old, new = olds[key], news[key]
        shown = Table("", "before", "after", "", "", title=new.label, title_justify="left", box=None)
        for name, value, form, better in FIGURES:
            was, now = value(old), value(new)
            if was or now:
                shown.add_row(name, f"{was:{form}}", f"{now:{form}}", *change(was, now, better))
        if old.recipe != new.recipe:
            console.print(f"before: {old.recipe}\nafter:  {new.recipe}", markup=False)
        if old.versions != new.versions:
            console.print(f"before: {named(old.versions)}\nafter:  {named(new.versions)}")
        console.print(shown)
        if old.fits != new.fits:
            console.print("it fits now" if new.fits else "it does NOT fit any more")
    for key in olds.keys() ^ news.keys():
        console.print(f"{key[0]}: only {'before' if key in olds else 'after'}")


def numbered(plans: Sequence[Plan]) -> dict[tuple[str, int], Plan]:
    """Plans by topology and by their number among those of the same."""
    seen: Counter[str] = Counter()
    found = {}
    for p in plans:
        found[p.label, seen[p.label]] = p
        seen[p.label] += 1
    return found


def change(was: float, now: float, better: int) -> tuple[str, str]:
    """The change in per cent, and what to call it."""
    if not was:
        return "", "new"
    part = now / was - 1
    word = "same" if abs(part) < SAME else "better" if part * better > 0 else "worse"
    return f"{100 * part:+.1f} %", word


def named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
