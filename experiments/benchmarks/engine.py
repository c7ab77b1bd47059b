"""What the loop costs over its compiled step, how soon the first step runs, how fast the data comes."""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.common import RECIPES, row, seconds_until, table

from zoo.data import ImageConfig, Shuffled, TextConfig, Windows, load_images, load_text
from zoo.objectives.losses import cross_entropy
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.mesh import make_mesh, place_batch
from zoo.train.run import Run
from zoo.train.state import abstract_state, create_state, make_init, make_step


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
            command = [sys.executable, str(RECIPES / script), preset, "--steps", "100", "--run", folder]
            subprocess.run(command, check=True, capture_output=True)
            return json.loads((Path(folder) / "result.json").read_text())["examples_per_second"]
