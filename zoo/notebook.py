"""Recipes in a notebook's own process, which alone can have its TPU, with pictures as they come."""

import os
import shlex
from pathlib import Path
from typing import Any

from IPython.display import Image, clear_output, display

from zoo.doctor import PRODUCT, place
from zoo.train.launch import parse, start_jax
from zoo.train.run import Run


class LiveRun(Run):
    """A run folder that shows its newest samples and its losses under the notebook's cell."""

    def create(self, step: int) -> None:
        """As in a run, and shows what the run has come to, where it continues."""
        super().create(step)
        if step:
            self.show()

    def write(self, name: str, content: str | bytes) -> None:
        """As in a run; the losses are drawn last of an evaluation, so they are what brings a new look."""
        super().write(name, content)
        if name == "loss.png":
            self.show()

    def show(self) -> None:
        """Puts the pictures and the last evaluation in place of what the cell has printed so far."""
        samples = sorted((self.folder / "samples").glob("step_*.png"))[-1:]
        clear_output(wait=True)
        for path in [*samples, self.folder / "loss.png"]:
            if path.exists():
                display(Image(data=path.read_bytes()))
        for row in [row for row in self.rows if any(key.startswith("eval_") for key in row)][-1:]:
            scores = (f"{key} {value:.4f}" for key, value in row.items() if key != "step" and value is not None)
            self.say(f"step {row['step']}: " + "  ".join(scores))


def train(recipe: Any, flags: str, run: str, minutes: float = 0.0) -> bool:
    """Runs a recipe as `python experiments/RECIPE.py FLAGS --run RUN --max-minutes MINUTES` would; 0 is no limit.

    Returns whether it came to its end. The time limit, or the notebook's stop button, save it and stop it before:
    the same call continues it. Raises ZooError for what a user can mend.
    """
    name = recipe.__name__.rpartition(".")[2]
    argv = [*shlex.split(flags), "--run", run, "--max-minutes", f"{minutes:g}"]
    _, config = parse(argv, name, recipe.PRESETS, recipe.__doc__)
    start_jax()
    try:
        recipe.main(config, LiveRun(config, shlex.join(["python", f"experiments/{name}.py", *argv])))
    except SystemExit as stop:
        if stop.code:
            raise
        return False
    return True


def storage() -> str:
    """The folder for runs that outlives the session: on Google Drive in Colab, which asks for leave, or Kaggle's."""
    site = place(os.environ, Path("/") / PRODUCT)
    if site == "Colab":
        from google.colab import drive

        drive.mount("/content/drive")
        return "/content/drive/MyDrive/runs"
    return "/kaggle/working/runs" if site == "Kaggle" else "runs"
