"""A recipe small enough to compile in no time: a linear classifier with batch statistics, on noise."""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data import Shuffled
from zoo.objectives.losses import cross_entropy
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import make_mesh
from zoo.train.run import Run
from zoo.train.state import make_evaluate


@dataclass(frozen=True)
class ToyConfig(TrainConfig):
    steps: int = 12
    batch: int = 8
    log_every: int = 1
    eval_every: int = 4
    save_every: int = 5
    optim: OptimConfig = field(default_factory=OptimConfig)
    nan_at: int = -1
    """Step whose loss is not a number."""
    odd_at: int = -1
    """Step whose batch has another shape."""
    fixed: bool = False
    """Train on a fixed set of examples, in shuffled batches."""


class Noise:
    """Endless batches of random vectors labelled by their largest entry; finite ones for evaluation."""

    def __init__(self, config, length=1000, odd_at=-1):
        self.batch, self.seed, self.length, self.odd_at = config.batch, config.seed, length, odd_at

    def __len__(self):
        return self.length

    def rows(self, step, rows=slice(None)):
        x = np.random.default_rng((self.seed, step)).normal(size=(self.batch, 6)).astype(np.float32)
        x = x[:, :5] if step == self.odd_at else x
        return {"x": x[rows], "y": x[:, :3].argmax(-1).astype(np.int32)[rows]}

    def stream(self, start, stop, place):
        for step in range(start, stop):
            yield place(self, step)


class Fixed:
    """Forty of the random vectors, as a source."""

    def __init__(self, config):
        self.all = Noise(dataclasses.replace(config, batch=40)).rows(0)

    def __len__(self):
        return 40

    def __getitem__(self, indices):
        return {name: value[indices] for name, value in self.all.items()}


def init(key):
    return {"kernel": jax.random.normal(key, (6, 3)) * 0.1}, {"mean": jnp.zeros((6,))}


def make_loss(nan_at=-1):
    def loss(params, stats, batch, key):
        del key
        logits = (batch["x"] - stats["mean"][None]) @ params["kernel"]
        values = cross_entropy(logits, batch["y"])
        mean = 0.9 * stats["mean"] + 0.1 * batch["x"].mean(0)
        count = jnp.asarray(values.size, jnp.float32)
        return values.sum(), Aux(count, {"mean": mean}, {})

    def broken(params, stats, batch, key):
        total, aux = loss(params, stats, batch, key)
        bad = batch["step"][0] == nan_at
        return jnp.where(bad, jnp.nan, total), aux

    return loss if nan_at < 0 else broken


class Numbered(Noise):
    """Noise whose batches know their step."""

    def rows(self, step, rows=slice(None)):
        return super().rows(step, rows) | {"step": np.full(self.batch, step + 1, np.int32)[rows]}


def train(config, run):
    mesh = make_mesh(config.mesh)
    tx = make_optimizer(config.optim, config.steps)
    kind = Noise if config.nan_at < 0 else Numbered

    def metrics(params, stats, batch):
        values = cross_entropy((batch["x"] - stats["mean"][None]) @ params["kernel"], batch["y"])
        return {"loss": values.sum(), "count": jnp.asarray(values.size, jnp.float32)}

    return fit(
        config,
        run,
        init=init,
        tx=tx,
        update=gradient_update(make_loss(config.nan_at), tx, accumulate=config.accumulate, ema=config.ema),
        batches=Shuffled(Fixed(config), config.batch, config.seed)
        if config.fixed
        else kind(config, odd_at=config.odd_at),
        mesh=mesh,
        evaluate=make_evaluate(metrics, Noise(dataclasses.replace(config, seed=99), length=3), mesh),
        pictures=lambda state: np.full((4, 6, 3), int(state["step"]) % 256, np.uint8),
    )


def run_in(folder, **changes):
    """Trains the toy in a folder; returns (fitted, run)."""
    config = dataclasses.replace(ToyConfig(), run=str(folder), **changes)
    run = Run(config, "python toy.py")
    return train(config, run), run


def main(config, run):
    run.finish(train(config, run).result, ["python toy.py --steps 99"])


if __name__ == "__main__":
    launch(main, {"toy": ToyConfig(), "short": ToyConfig(steps=3)}, __doc__)
