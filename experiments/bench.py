"""Measure what the zoo claims about itself. Every comparison runs both sides in turn in one session.

engine: what the loop costs over its compiled step, how soon the first step runs, how fast the data comes.
race: the held-out loss of Shakespeare's characters against time, beside a nanoGPT checkout if one is given.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from zoo.data import ImageConfig, Shuffled, TextConfig, Windows, load_images, load_text
from zoo.objectives.losses import cross_entropy
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.mesh import make_mesh, place_batch
from zoo.train.run import Run
from zoo.train.state import abstract_state, create_state, make_init, make_step

HERE = Path(__file__).parent
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)  # the CPU setting of its README


@dataclass(frozen=True)
class Engine:
    """The loop against its compiled step, time to the first step, and the input pipeline."""

    rounds: int = 5
    """Times that each side runs, in turn."""
    steps: int = 2000
    """Steps of a round."""

    def main(self) -> None:
        loop, bare = self.overhead()
        table("engine", ["ms a step", "median", "least", "most"], [row("fit", loop), row("bare loop", bare)])
        extra = [a - b for a, b in zip(loop, bare, strict=True)]
        print(f"fit costs {statistics.median(extra):.3f} ms a step more than the bare loop (least {min(extra):.3f})\n")
        cold, warm = self.first_step()
        table("first step", ["seconds", "median", "least", "most"], [row("cold cache", cold), row("warm cache", warm)])
        for name, fed, eaten in (self.digits(), self.text()):
            ratio = statistics.median(fed) / eaten
            print(f"{name}: {statistics.median(fed):,.0f} examples/s fed, {eaten:,.0f} eaten: {ratio:.0f} times")

    def overhead(self) -> tuple[list[float], list[float]]:
        """Milliseconds a step of `fit` with its logging, and of a loop over the same step and batches."""
        config = TrainConfig(steps=self.steps, batch=8, eval_every=10**9, save_every=10**9)
        tx, mesh = make_optimizer(OptimConfig(), self.steps), make_mesh()

        def init(key: jax.Array):
            return {"kernel": jax.random.normal(key, (16, 16))}, {}

        def loss(params, stats, batch, key):
            losses = cross_entropy(batch["x"] @ params["kernel"], batch["y"])
            return losses.sum(), Aux(jnp.asarray(losses.size, jnp.float32), stats, {})

        class Vectors:
            def __len__(self):
                return 64

            def __getitem__(self, rows):
                return {"x": np.ones((len(rows), 16), np.float32), "y": rows.astype(np.int32) % 16}

        update, batches = gradient_update(loss, tx), Shuffled(Vectors(), config.batch)
        place = lambda source, step: place_batch(source, step, mesh)

        def with_fit() -> float:
            with tempfile.TemporaryDirectory() as folder:
                run = Run(replace(config, run=folder), "bench")
                fitted = fit(run.config, run, init=init, tx=tx, update=update, batches=batches, mesh=mesh)
                seconds = fitted.result["seconds"]
                return 1e3 * (seconds["train"] + seconds["data"]) / self.steps

        def without() -> float:
            make = make_init(init, tx, 0)
            abstract = abstract_state(make, (), mesh)
            state, batch = create_state(make, abstract), place(batches, 0)
            step = make_step(update, 0, abstract, mesh).lower(state, batch).compile()
            held = [place(batches, i) for i in range(16)]
            begun = time.perf_counter()
            for batch in itertools.islice(itertools.cycle(held), self.steps):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            return 1e3 * (time.perf_counter() - begun) / self.steps

        pairs = [(with_fit(), without()) for _ in range(self.rounds + 1)][1:]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def first_step(self) -> tuple[list[float], list[float]]:
        """Seconds from the start of the digits recipe to its first step, with an empty and a filled cache."""
        cold, warm = [], []
        for _ in range(min(self.rounds, 3)):
            with tempfile.TemporaryDirectory() as folder:
                cold.append(seconds_until(r"^step 1/", "cnn.py", f"{folder}/a", folder))
                warm.append(seconds_until(r"^step 1/", "cnn.py", f"{folder}/b", folder))
        return cold, warm

    def digits(self) -> tuple[str, list[float], float]:
        """Examples/s of the digits pipeline, and what the default step eats."""
        train, _ = load_images(ImageConfig(size=16))
        return "digits", self.feed(Shuffled(train, 64)), self.eaten("cnn.py", "digits")

    def text(self) -> tuple[str, list[float], float]:
        """Examples/s of the text pipeline, and what the default step eats."""
        return "text", self.feed(Windows(load_text(TextConfig()).train, 64, 32)), self.eaten("gpt.py", "pydoc")

    def feed(self, batches) -> list[float]:
        """Examples/s of batches that are made and placed on the devices, by round."""
        mesh, rates = make_mesh(), []
        for _ in range(self.rounds):
            begun = time.perf_counter()
            for _ in batches.stream(0, self.steps, lambda source, step: place_batch(source, step, mesh)):
                pass
            rates.append(self.steps * batches.batch / (time.perf_counter() - begun))
        return rates

    def eaten(self, script: str, preset: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE / script), preset, "--steps", "100", "--run", folder]
            subprocess.run(command, check=True, capture_output=True)
            return json.loads((Path(folder) / "result.json").read_text())["examples_per_second"]


@dataclass(frozen=True)
class Race:
    """Loss over the whole held-out tenth of Shakespeare's characters against seconds since the process started."""

    data: Path
    """tinyshakespeare.txt."""
    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT to run in the same session, in its README's CPU setting."""
    python: str = sys.executable
    """The Python that has its torch."""
    rounds: int = 1
    """Times that each side runs, in turn."""

    def main(self) -> None:
        for _ in range(self.rounds):
            if self.nanogpt:
                peer, loss = self.peer()
                print(f"nanoGPT: {loss:.4f} nats in {peer:.1f} s")
            for preset in ("shakespeare", "shakespeare-long"):
                for done, seconds, loss in self.ours(preset):
                    share = f", {seconds / peer:.3f} of nanoGPT's time" if self.nanogpt else ""
                    print(f"{preset}: step {done}, {loss:.4f} nats in {seconds:.1f} s{share}", flush=True)

    def ours(self, preset: str) -> list[tuple[int, float, float]]:
        """(step, seconds since the start of the process, held-out nats) of each evaluation, compiling included."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = [preset, "--data", f"text:{self.data.resolve()}", "--run", f"{folder}/run"]
            found, begun = [], time.perf_counter()
            for line in lines_of("gpt.py", arguments, Path(folder) / "cache"):
                evaluated = re.match(r"step (\d+): .*eval_loss ([\d.]+)", line)
                if evaluated:
                    found.append((int(evaluated[1]), time.perf_counter() - begun, float(evaluated[2])))
            return found

    def peer(self) -> tuple[float, float]:
        """(seconds of the process, its own estimate of the held-out nats at the end)."""
        folder = self.nanogpt / "data" / "shakespeare_char"
        (folder / "input.txt").write_bytes(self.data.read_bytes())
        subprocess.run([self.python, "prepare.py"], cwd=folder, check=True, capture_output=True)
        begun = time.perf_counter()
        done = subprocess.run(
            [self.python, "train.py", *NANOGPT.split()], cwd=self.nanogpt, check=True, capture_output=True, text=True
        )
        losses = re.findall(r"val loss ([\d.]+)", done.stdout)
        return time.perf_counter() - begun, float(losses[-1])


def lines_of(script: str, arguments: list[str], cache: Path):
    """What a recipe prints, as it prints it, with its own compile cache."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield from process.stdout


def seconds_until(pattern: str, script: str, folder: str, cache: str) -> float:
    """Seconds until a recipe prints a line that matches."""
    begun, found = time.perf_counter(), None
    for line in lines_of(script, ["--steps", "2", "--run", folder], Path(cache)):
        if found is None and re.search(pattern, line):
            found = time.perf_counter() - begun
    return found


def row(name: str, values: list[float]) -> list[str]:
    return [name, f"{statistics.median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"]


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    shown = Table(*columns, title=title, title_justify="left", box=None)
    for cells in rows:
        shown.add_row(*cells)
    Console().print(shown)


if __name__ == "__main__":
    Command = Annotated[Engine, tyro.conf.subcommand("engine")] | Annotated[Race, tyro.conf.subcommand("race")]
    tyro.cli(Command, description=__doc__).main()
