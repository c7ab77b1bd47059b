"""Train one decoder that draws pictures from sentences, describes them, answers questions and mends what is damaged.

Pictures are the codes of an image tokenizer, which `tokenizer.py scenes` trains. The scenes are made by code as they
are needed. A drawing is planned in words first, and judged exactly, by an oracle that compares it with all there are.
"""

import functools
from dataclasses import asdict, dataclass, field
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import zoo
from zoo.data import Shuffled, in_order
from zoo.data.sentences import text_of
from zoo.data.sequences import TASKS, SceneMix, SceneRows, Vocabulary, fill
from zoo.errors import ZooError, unknown
from zoo.generate.pictures import picture_grid
from zoo.generate.scene_exam import examine, mean, questions_of
from zoo.generate.scenes import SceneModel
from zoo.models import decoder, functional
from zoo.models.tokenizer import Tokenizer
from zoo.objectives.losses import next_token_loss
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh
from zoo.train.run import Run
from zoo.train.state import evaluated, over_batches
from zoo.weights.registry import config_of


@dataclass(frozen=True)
class Config(TrainConfig):
    model: str = "scenes"
    """Architecture of the decoder (`zoo list`)."""
    tokenizer: Annotated[str, tyro.conf.arg(aliases=["--from"])] = "runs/tokenizer-scenes"
    """Image tokenizer: the run folder of `tokenizer.py scenes`, or a name."""
    context: int = 256
    """Tokens of a row; several sequences share one."""
    pictures: int = 3
    """Most pictures of a row."""
    prefix: bool = True
    """Let what is given of a sequence see all of itself, and not only what comes before."""
    exam: int = 64
    """Held-out scenes of one thing, and of two, that drawings, descriptions and answers are judged on; 0 is none."""
    rows: int = 128
    """Held-out rows for the loss."""
    mix: SceneMix = field(default_factory=SceneMix)
    optim: OptimConfig = field(default_factory=OptimConfig)


MUON = OptimConfig(name="muon", lr=0.02, adam_lr=1e-2, momentum=0.95, schedule="linear", warmup=0.0)
SCENES = Config(steps=3600, batch=16, eval_every=900, save_every=200, optim=MUON)
PRESETS = {"scenes": SCENES}


def codes_of(eyes: Tokenizer, image: jax.Array, redrawn: jax.Array) -> jax.Array:
    """The codes int32 [B, pictures, cells] of pictures uint8 [B, pictures, S, S, 3], or of their reconstructions."""
    codes = eyes.encode(image.reshape(-1, *image.shape[2:]).astype(jnp.float32) / 255)
    codes = jnp.where(redrawn.reshape(-1, 1, 1), eyes.encode(eyes.decode(codes)), codes)
    return codes.reshape(*image.shape[:2], -1)


def main(config: Config, run: Run) -> None:
    # The tokenizer, and the vocabulary that its codes belong to
    tokenizer = zoo.load(config.tokenizer)
    if not isinstance(tokenizer, Tokenizer) or tokenizer.config.channels != 3:
        raise ZooError(f"--tokenizer {config.tokenizer} is a {type(tokenizer).__name__}, not a tokenizer of colours")
    tokenizer_graph, eyes, eyes_stats = functional.split(tokenizer)
    eyes = jax.device_get({"params": eyes, "stats": eyes_stats})
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.grid)
    run.say(f"{config.tokenizer}: {functional.count(eyes):,} parameters, {vocabulary.codes} codes")

    # Data
    size = tokenizer.config.image_size
    rows = functools.partial(SceneRows, vocabulary=vocabulary, length=config.context, pictures=config.pictures)
    train, test = rows("train", mix=config.mix, size=size), rows("test", mix=config.mix, size=size, rows=config.rows)
    exams = [questions_of("test", things, config.exam) for things in (1, 2)] if config.exam else []
    shown = [text_of(each.told) for things in (1, 2) for each in questions_of("test", things, 4)]

    # Model
    if config.model not in decoder.VARIANTS:
        raise unknown("decoder", config.model, decoder.VARIANTS)
    sizes = {"vocab_size": vocabulary.size, "first_code": vocabulary.first_code, "grid": vocabulary.grid}
    model_config = config_of(config.model, context=config.context, prefix=config.prefix, **sizes)
    build = functools.partial(decoder.Decoder, model_config)
    graphdef, params, _ = functional.abstract(build)
    run.say(f"{config.model}: {functional.count(params):,} parameters, {vocabulary.size} ids")

    # Objective: the mean over each sequence of what is learned of it, and the mean of those
    weights_of = lambda batch: batch["weights"][:, 1:]

    def nats(params, stats, batch):
        """Weighed nats of every token but the first, [B, T - 1]."""
        eyes = functional.merge(tokenizer_graph, stats["eyes"]["params"], stats["eyes"]["stats"])
        codes = codes_of(eyes, batch["image"], batch["redrawn"])
        tokens = fill(batch["tokens"], batch["slots"], codes, vocabulary.first_code)
        seen = {name: batch[name][:, :-1] for name in ("positions", "documents", "given")}
        logits = functional.merge(graphdef, params, {})(tokens[:, :-1], **seen)
        return next_token_loss(logits, tokens) * weights_of(batch)

    def loss(params, stats, batch, key):
        sequences = batch["documents"].max(axis=1).sum().astype(jnp.float32)
        return nats(params, stats, batch).sum(), Aux(sequences, stats, {})

    def score(params, stats, batch):
        """Sums of nats, and of sequences, by task: [2, tasks]."""
        kinds = jax.nn.one_hot(batch["kinds"][:, 1:], len(TASKS)) * batch["weight"][:, None, None]
        both = jnp.stack([nats(params, stats, batch), weights_of(batch)])
        return jnp.einsum("nbt,btk->nk", both, kinds)

    tx = make_optimizer(config.optim, config.steps, decoder.MATRICES)
    schedule = make_schedule(config.optim, config.steps)
    update = gradient_update(loss, tx, schedule=schedule, accumulate=config.accumulate, ema=config.ema)

    # Training, with a look at what it draws and says of held-out scenes
    mesh = make_mesh(config.mesh)
    scores_of = over_batches(score, in_order(test, config.batch), mesh)

    def trained(state):
        return SceneModel(functional.merge(graphdef, *gather((evaluated(state)[0], {}), mesh)), tokenizer)

    def evaluate(state):
        nats_k, sequences_k = np.sum(scores_of(state), axis=0, dtype=np.float64)
        found = {"loss": nats_k.sum() / sequences_k.sum()}
        found |= {f"{task}_nats": a / b for task, a, b in zip(TASKS, nats_k, sequences_k, strict=True) if b}
        if exams:
            model = trained(state)
            found |= asdict(mean([examine(model, exam) for exam in exams]))
        return {f"eval_{name}": float(value) for name, value in found.items()}

    def pictures(state):
        """Held-out captions drawn: each row one caption."""
        drawn = trained(state).draw(shown, n=8)
        return picture_grid(drawn.reshape(-1, *drawn.shape[2:]), 8, 2)

    fitted = fit(
        config,
        run,
        init=lambda key, eyes: (functional.initial(build, key)[0], {"eyes": eyes}),
        given=(eyes,),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch, config.seed),
        mesh=mesh,
        rules=decoder.SHARDING,
        evaluate=evaluate,
        pictures=pictures,
    )

    # Results
    params = gather(evaluated(fitted.state)[0], mesh)
    if run.lead:
        zoo.save(functional.merge(graphdef, params, {}), run.folder / "model")
        zoo.save(tokenizer, run.folder / "model" / "tokenizer")
    run.finish(fitted.result, [f'zoo draw "a blue circle with some spots" --model {run.folder}'])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
