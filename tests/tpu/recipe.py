"""A recipe small enough to plan in seconds: a decoder on made-up tokens, with what plans look for in a recipe."""

import functools
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from zoo.data import Windows
from zoo.models import decoder, functional
from zoo.objectives.losses import next_token_loss
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.mesh import make_mesh

TINY = decoder.DecoderConfig(vocab_size=256, layers=2, d_model=128, heads=2)


@dataclass(frozen=True)
class Config(TrainConfig):
    batch: int = 8
    context: int = 128
    attention: str = "xla"
    remat: str = "none"
    optim: OptimConfig = field(default_factory=OptimConfig)


PRESETS = {"tiny": Config(), "splash": Config(context=1024, batch=2, attention="splash")}


def main(config, run):
    flags = {"context": config.context, "attention": config.attention, "remat": config.remat}
    build = functools.partial(decoder.Decoder, replace(TINY, **flags))
    graphdef, _, _ = functional.abstract(build)

    def loss(params, stats, batch, key):
        model = functional.merge(graphdef, params, stats)
        losses = next_token_loss(model.logits(model.hidden(batch["tokens"][:, :-1])), batch["tokens"])
        return losses.sum(), Aux(jnp.asarray(losses.size, jnp.float32), stats, {})

    tx = make_optimizer(config.optim, config.steps)
    fit(
        config,
        run,
        init=lambda key: functional.initial(build, key),
        tx=tx,
        update=gradient_update(loss, tx),
        batches=Windows(np.arange(20_000) % 256, config.context, config.batch, config.seed),
        mesh=make_mesh(config.mesh),
        rules=decoder.SHARDING,
    )
