"""Fine-tune a decoder on dialogues: all of its weights, low-rank adapters, or preferences between answers.

Starts from a run of gpt.py or of this script, or from a folder or GGUF file of published weights. The dialogues that
come with it are questions and answers that code makes, and every held-out answer is checked word for word.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import zoo
from zoo.data import Shuffled, in_order
from zoo.data.chat import encode_dialogue, encode_preferences, encode_prompt, end_ids, pack
from zoo.data.conversations import ConversationConfig, load_conversations
from zoo.errors import ZooError
from zoo.generate.decode import Generator
from zoo.generate.sampling import Sampling
from zoo.generate.text import text_picture
from zoo.models import decoder, functional, lora
from zoo.models.lora import LoraConfig
from zoo.objectives.losses import next_token_loss
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.preference import dpo_loss, sequence_logps
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh
from zoo.train.run import Run
from zoo.train.state import evaluated, make_evaluate, over_batches
from zoo.weights.files import load_codec


@dataclass(frozen=True)
class Config(TrainConfig):
    method: Literal["sft", "lora", "dpo"] = "sft"
    """Learn answers with all weights, or with low-rank adapters; or prefer one answer over another (DPO)."""
    start: Annotated[str, tyro.conf.arg(aliases=["--from"])] = "runs/gpt-dialogues"
    """Run folder, weights folder or GGUF file to start from."""
    context: int = 128
    """Tokens of a row; several dialogues share one."""
    answers: int = 400
    """Held-out questions to answer at each evaluation."""
    beta: float = 0.1
    """Of DPO: how dear it is to leave the model that it starts from."""
    adapters: LoraConfig = field(default_factory=lambda: LoraConfig(rank=4, targets=("blocks/", "token_embed")))
    data: ConversationConfig = field(default_factory=ConversationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


MUON = OptimConfig(name="muon", lr=0.02, adam_lr=1e-2, momentum=0.95, schedule="linear", warmup=0.0)
ADAM = OptimConfig(lr=1e-3, b2=0.99, clip=1.0, schedule="linear")
SFT = Config(steps=1000, batch=16, eval_every=250, save_every=250, data=ConversationConfig(size=40_000), optim=MUON)
LORA = replace(SFT, method="lora", steps=2500, optim=replace(ADAM, lr=3e-3))
DPO = replace(
    SFT, method="dpo", start="runs/chat", steps=200, eval_every=50, save_every=50, optim=replace(ADAM, lr=5e-5)
)
PRESETS = {"sft": SFT, "lora": LORA, "dpo": DPO}


def main(config: Config, run: Run) -> None:
    # The model to start from
    codec, start = load_codec(config.start), zoo.load(config.start)
    if not isinstance(start, decoder.Decoder):
        raise ZooError(f"--from {config.start} holds a {type(start).__name__}, and dialogues need a decoder")
    context = min(config.context, start.config.context)
    graphdef, params, _ = functional.split(start)
    params = jax.device_get(params)
    run.say(f"{config.start}: {functional.count(params):,} parameters")

    # Data
    chat = load_conversations(config.data)
    if config.method == "dpo":
        train, test = (encode_preferences(part, codec, context) for part in (chat.train_pairs, chat.test_pairs))
    else:
        train, test = (pack([encode_dialogue(m, codec) for m in part], context) for part in (chat.train, chat.test))
    for note in (*chat.notes, *train.notes):
        run.say(note)
    asked = [messages for messages in chat.test if messages[-1]["role"] == "assistant"][: config.answers]
    length = 2 + max((len(codec.encode(messages[-1]["content"])) for messages in asked), default=0)
    prompts = [encode_prompt(messages[:-1], codec).tolist() for messages in asked]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + length <= start.config.context]
    asked, prompts = [asked[i] for i in fitting], [prompts[i] for i in fitting]
    if not asked:
        raise ZooError(f"no held-out question fits a context of {start.config.context} tokens with its answer")
    run.say(f"{len(train):,} rows to learn from, {len(test):,} held out, {len(asked):,} questions to answer")

    # Objective
    mesh = make_mesh(config.mesh)

    def weights(params, stats):
        return lora.merged(stats["base"], params, config.adapters) if config.method == "lora" else params

    def nats(model, batch):
        options = {"positions": batch.get("positions"), "documents": batch.get("documents")}
        return next_token_loss(model(batch["tokens"][:, :-1], **options), batch["tokens"])

    def logps(params, pair):
        """Log-probabilities of (chosen, rejected), [B] each, in one pass of the model."""
        both = jax.tree.map(lambda *sides: jnp.concatenate(sides), pair["chosen"], pair["rejected"])
        model = functional.merge(graphdef, params, {})
        return jnp.split(sequence_logps(nats(model, both), both["mask"]), 2)

    def sums(params, stats, batch):
        """(summed loss, what it is summed over, further sums)."""
        if config.method != "dpo":
            mask = batch["mask"] * batch.get("weight", jnp.ones(len(batch["mask"])))[:, None]
            return jnp.sum(nats(functional.merge(graphdef, weights(params, stats), {}), batch) * mask), mask.sum(), {}
        weight = batch.get("weight", jnp.ones(len(batch["chosen"]["tokens"])))
        losses, metrics = dpo_loss(*logps(params, batch), *batch["reference"].T, config.beta)
        wanted = {name: jnp.sum(metrics[name] * weight) for name in ("margin", "accuracy")}
        return jnp.sum(losses * weight), weight.sum(), wanted

    def loss(params, stats, batch, key):
        total, count, metrics = sums(params, stats, batch)
        return total, Aux(count, stats, metrics)

    def score(params, stats, batch):
        total, count, metrics = sums(params, stats, batch)
        return {"loss": total, "count": count} | metrics

    if config.method == "dpo":  # the model that it starts from is asked once, and is not kept
        refer = lambda params, stats, batch: jnp.stack(logps(params, batch), axis=1)
        for part in (train, test):
            found = over_batches(refer, in_order(part, config.batch), mesh)({"params": params, "stats": {}})
            part.arrays["reference"] = np.concatenate(found)[: len(part)]

    # Training, with held-out answers written out and compared
    tx = make_optimizer(config.optim, config.steps, decoder.MATRICES)
    update = gradient_update(
        loss, tx, schedule=make_schedule(config.optim, config.steps), accumulate=config.accumulate, ema=config.ema
    )

    def init(key, base):
        if config.method == "lora":
            return lora.init(key, base, config.adapters, decoder.MATRICES), {"base": base}
        return base, {}

    def tuned(state):
        return functional.merge(graphdef, gather(weights(*evaluated(state)), mesh), {})

    def written(state):
        """What the model answers to the held-out questions."""
        generator, found = Generator(tuned(state), codec, end_ids(codec)), []
        for i in range(0, len(prompts), 64):
            part = generator.complete(prompts[i : i + 64], length, sampling=Sampling(temperature=0))
            found += [completion.text.strip() for (completion,) in part]
        return found

    latest: list[str] = []
    scores_of = make_evaluate(score, in_order(test, config.batch), mesh)

    def evaluate(state):
        latest[:] = written(state)
        right = [text == messages[-1]["content"].strip() for text, messages in zip(latest, asked, strict=True)]
        return scores_of(state) | {"eval_exact": float(np.mean(right))}

    def pictures(state):
        lines = [
            f"{messages[-2]['content']}\n  wrote: {text}\n  right: {messages[-1]['content']}"
            for text, messages in zip(latest[:8], asked, strict=False)
        ]
        return text_picture(f"{run.folder.name}, step {int(state['step'])}", lines)

    shapes = jax.eval_shape(lambda base: init(jax.random.key(0), base)[0], params)
    run.say(
        f"{functional.count(shapes):,} of them are trained ({functional.count(shapes) / functional.count(params):.1%})"
    )
    fitted = fit(
        config,
        run,
        init=init,
        given=(params,),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch, config.seed),
        mesh=mesh,
        rules=decoder.SHARDING,
        evaluate=evaluate,
        pictures=pictures,
    )

    # Results
    model = tuned(fitted.state)
    if run.lead:
        zoo.save(model, run.folder / "model")
    run.write("model/codec.json", json.dumps(codec.to_json()) + "\n")
    run.finish(fitted.result, [f"zoo chat {run.folder}"])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
