"""Train a small Transformer decoder on text.

By default: the Python reference, half a megabyte of English that every Python carries, character by character.
The same on any text: --data text:PATH, a file or a folder of .txt and .md files.
"""

import functools
import json
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.data import TextConfig, Windows, load_text, windows_in_order
from zoo.errors import unknown
from zoo.generate.text import sample_tokens, text_picture
from zoo.metrics.text import bits_per_byte
from zoo.models import decoder, functional
from zoo.models.attention import Implementation
from zoo.models.layers import Policy
from zoo.objectives.losses import chunked_next_token_loss, next_token_loss
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import MeshConfig, gather, make_mesh, replicated
from zoo.train.run import Run
from zoo.train.state import evaluated, make_evaluate
from zoo.weights.registry import config_of


@dataclass(frozen=True)
class Config(TrainConfig):
    model: str = "gpt-modern-s"
    """Architecture: gpt-modern-s, gpt-nano, gpt-mini, gpt2 ... (`zoo list`)."""
    context: int = 128
    """Tokens that a prediction can look back on."""
    attention: Implementation = "auto"
    """xla; splash, on TPU; cudnn, on NVIDIA GPUs; auto is the kernel that can run, or xla."""
    loop: Literal["", "scan", "unroll"] = ""
    """The loop over layers: scanned compiles faster, unrolled runs faster; by default what the architecture says."""
    remat: Policy = "none"
    """What the backward pass computes again to save memory: nothing, all, or all but matrix products."""
    sample_tokens: int = 320
    """Length of the samples that are shown as it learns."""
    data: TextConfig = field(default_factory=TextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


LARGE = 8192  # tokens of a vocabulary whose logits are better not all held at once, in float32
MUON = OptimConfig(name="muon", lr=0.03, adam_lr=2e-2, momentum=0.95, schedule="linear", warmup=0.0)
PYDOC = Config(steps=500, batch=16, eval_every=100, save_every=100, optim=MUON)
# To 1.88 nats per held-out character as soon as two CPU cores can; and as far as nanoGPT's time goes.
FAST = replace(MUON, adam_lr=3e-2, momentum=0.9)
SHAKESPEARE = Config(model="gpt-modern-xs", context=64, steps=250, batch=16, eval_every=250, save_every=250, optim=FAST)
LONG = Config(model="gpt-modern-xs", steps=1600, batch=12, eval_every=800, save_every=800, optim=MUON)
# What chat.py starts from
WORLD = replace(
    PYDOC,
    model="gpt-modern",
    steps=2500,
    sample_tokens=60,
    data=TextConfig("dialogues", codec="bpe", vocab_size=512),
)
# GPT-2 as it was published, and Llama 3.2 1B's architecture, on text of your own: a folder data/text of .txt files, and
# the tokenizer's files in data/gpt2 or data/llama3. Sizes are for one v5e, and for eight.
GPT2 = Config(
    model="gpt2",
    context=1024,
    loop="unroll",
    batch=16,
    steps=100_000,
    eval_every=1000,
    save_every=1000,
    data=TextConfig("text:data/text", tokenizer="data/gpt2", holdout=0.005),
    optim=OptimConfig(lr=6e-4, b2=0.95, weight_decay=0.1, warmup=0.02, clip=1.0),
)
LLAMA = replace(
    GPT2,
    model="llama3.2-1b",
    context=2048,
    remat="dots",
    batch=32,
    mesh=MeshConfig(data=1, fsdp=-1),
    data=replace(GPT2.data, tokenizer="data/llama3"),
    optim=replace(GPT2.optim, lr=3e-4),
)
PRESETS = {"pydoc": PYDOC, "dialogues": WORLD, "shakespeare": SHAKESPEARE, "shakespeare-long": LONG}
PRESETS |= {"gpt2": GPT2, "llama3.2-1b": LLAMA}


def main(config: Config, run: Run) -> None:
    # Data
    text = load_text(config.data)
    vocab = text.codec.vocab_size
    run.say(f"{text.name}: {len(text.train):,} training and {len(text.test):,} held-out tokens, vocabulary {vocab}")

    # Model
    if config.model not in decoder.VARIANTS:
        raise unknown("decoder", config.model, decoder.VARIANTS)
    loop = {"loop": config.loop} if config.loop else {}
    how = {"attention": config.attention, "remat": config.remat} | loop
    model_config = config_of(config.model, vocab_size=vocab, context=config.context, **how)
    build = functools.partial(decoder.Decoder, model_config)
    graphdef, params, _ = functional.abstract(build)
    run.say(f"{config.model}: {functional.count(params):,} parameters")

    # Objective
    def nats_of_each(model, tokens, **options):
        hidden = model.hidden(tokens[:, :-1], **options)
        if vocab < LARGE:
            return next_token_loss(model.logits(hidden), tokens)
        if hidden.dtype == jnp.float32:
            return chunked_next_token_loss(hidden, model.logits, tokens)
        return next_token_loss(model.logits(hidden, dtype=hidden.dtype), tokens)

    def loss(params, stats, batch, key):
        losses = nats_of_each(functional.merge(graphdef, params, stats), batch["tokens"], train=True, key=key)
        return losses.sum(), Aux(jnp.asarray(losses.size, jnp.float32), stats, {})

    def score(params, stats, batch):
        losses = nats_of_each(functional.merge(graphdef, params, stats), batch["tokens"])
        return {"loss": jnp.sum(losses * batch["weight"]), "count": batch["weight"].sum()}

    tx = make_optimizer(config.optim, config.steps, decoder.MATRICES)
    schedule = make_schedule(config.optim, config.steps)
    update = gradient_update(loss, tx, schedule=schedule, accumulate=config.accumulate, ema=config.ema)

    # Training, with the held-out loss over the whole split and a look at what it writes
    mesh = make_mesh(config.mesh)
    nats_of = make_evaluate(score, windows_in_order(text.test, config.context, config.batch), mesh)

    def evaluate(state):
        scores = nats_of(state)
        return scores | {"eval_bits_per_byte": bits_per_byte(scores["eval_loss"], text.bytes_per_token)}

    prompts = jnp.asarray(np.stack([text.test[:16], text.test[len(text.test) // 2 :][:16]]).astype(np.int32))

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def write(params, stats):
        model = functional.merge(graphdef, params, stats)
        return sample_tokens(model, prompts, config.sample_tokens, config.context, jax.random.key(config.seed), 0.8)

    def pictures(state):
        texts = [text.codec.decode(ids) for ids in jax.device_get(write(*evaluated(state)))]
        return text_picture(f"{run.folder.name}, step {int(state['step'])}", texts)

    fitted = fit(
        config,
        run,
        init=lambda key: functional.initial(build, key),
        tx=tx,
        update=update,
        batches=Windows(text.train, config.context, config.batch, config.seed),
        mesh=mesh,
        rules=decoder.SHARDING,
        evaluate=evaluate,
        pictures=pictures,
    )

    # Results
    params, stats = gather(evaluated(fitted.state), mesh)
    if run.lead:
        zoo.save(functional.merge(graphdef, params, stats), run.folder / "model")
    run.write("model/codec.json", json.dumps(text.codec.to_json()) + "\n")
    run.finish(fitted.result, [f'zoo sample {run.folder} --prompt "The "'])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
