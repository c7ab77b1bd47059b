"""What the benchmarks share: recipes run as commands, and tables of medians."""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

RECIPES = Path(__file__).parent.parent
STATUS = Path("/proc/self/status")


def lines_of(script: str, arguments: list[str], cache: Path):
    """What a recipe prints, as it prints it, with its own compile cache."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(RECIPES / script), *arguments]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield from process.stdout


def seconds_until(pattern: str, script: str, folder: str, cache: str) -> float:
    """Seconds until a recipe prints a line that matches."""
    begun, found = time.perf_counter(), None
    for line in lines_of(script, ["--steps", "2", "--run", folder], Path(cache)):
        if found is None and re.search(pattern, line):
            found = time.perf_counter() - begun
    return found


def memory_peak() -> Callable[[], int]:
    """Starts a measurement; the function that it returns says by how many bytes this process has grown at most since.

    From Linux's /proc: without it, the answer is zero.
    """

    def status(key: str) -> int:
        lines = STATUS.read_text().splitlines() if STATUS.exists() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    return lambda: status("VmHWM") - before


def row(name: str, values: list[float]) -> list[str]:
    return [name, f"{statistics.median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"]


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    shown = Table(*columns, title=title, title_justify="left", box=None)
    for cells in rows:
        shown.add_row(*cells)
    Console().print(shown)
