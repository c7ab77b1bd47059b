"""What a person sees while a run goes on: a bar on a terminal, plain lines in a pipe."""

import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.train.run import is_loss

PLAIN_SECONDS = 5.0  # between plain lines


class Reporter:
    """Phase, step, loss, examples/s and time left. Only the first process speaks."""

    def __init__(self, steps: int, batch: int):
        self.console = Console(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)
        self.steps, self.batch = steps, batch
        self.bar: Progress | None = None
        self._task: Any = None
        self._started, self._first, self._last_line = time.monotonic(), 0, 0.0

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(text, markup=False)

    def phase(self, name: str, step: int = 0) -> None:
        """Starts a phase, such as "compiling" or "training", at a step."""
        self._started, self._first = time.monotonic(), step
        if not self.console.is_terminal:
            self.say(name)
            return
        if self.bar is None:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            ]
            self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self._task = self.bar.add_task(name, total=self.steps, completed=step, figures="")
            self.bar.start()
        self.bar.update(self._task, description=name, completed=step)

    def step(self, done: int, metrics: dict[str, float]) -> None:
        """Reports that `done` steps are done; cheap enough to call at every one of them."""
        now = time.monotonic()
        if self.bar is None and (now - self._last_line < PLAIN_SECONDS and done < self.steps):
            return
        if self.bar is not None and now - self._last_line < 0.2 and done < self.steps:
            return
        self._last_line = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        losses = [f"{name} {value:.4f}" for name, value in metrics.items() if is_loss(name)]
        figures = "  ".join([*losses, f"{rate * self.batch:,.0f} examples/s"])
        if self.bar is not None:
            self.bar.update(self._task, completed=done, figures=figures)
        else:
            left = (self.steps - done) / max(rate, 1e-9)
            self.say(f"step {done}/{self.steps}  {figures}  eta {int(left // 60)}:{int(left % 60):02d}")

    def close(self) -> None:
        """Removes the bar, so that what follows is printed below it."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
