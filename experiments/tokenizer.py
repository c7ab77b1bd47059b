"""Train an image tokenizer: an image becomes a grid of integers, and the integers an image again.

By default: handwritten digits (8×8 pixels, embedded in scikit-learn), each as 4×4 tokens. Fashion-MNIST becomes 7×7
tokens by `tokenizer.py fashion --data idx:FOLDER`, where FOLDER holds its four files, and scenes of 64×64 pixels, which
code makes as they are needed, 8×8 tokens by `tokenizer.py scenes`.
"""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import zoo
from zoo.data import ImageConfig, Images, Shuffled, in_order, load_images
from zoo.generate.pictures import picture_grid, to_pixels
from zoo.metrics.images import psnr
from zoo.models import functional
from zoo.models.tokenizer import SHARDING, VARIANTS, JudgedTokenizer, TokenizerConfig
from zoo.objectives import quantise
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.quantise import CriticConfig
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh
from zoo.train.run import Run
from zoo.train.state import evaluated, make_predict, over_batches


@dataclass(frozen=True)
class Config(TrainConfig):
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    l1: float = 0.0
    """Part of the absolute error in the reconstruction loss; the rest is the squared error."""
    commitment: float = 0.25
    """Weight of the features' distance from their codes; of vq and ema only."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    data: ImageConfig = field(default_factory=ImageConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3))


DIGITS = Config(steps=2000, batch=64, eval_every=250, save_every=500, model=VARIANTS["tokenizer-8"])
FASHION = replace(DIGITS, steps=4000, batch=32, eval_every=1000, save_every=1000, model=VARIANTS["tokenizer-28"])
COLAB = {"steps": 50_000, "batch": 256, "steps_per_dispatch": 10, "ema": 0.999, "optim": OptimConfig(lr=5e-4)}
CIFAR10 = replace(FASHION, model=VARIANTS["tokenizer-32"], data=ImageConfig("tfds:cifar10"), **COLAB)
MUON = OptimConfig(name="muon", lr=0.02, adam_lr=3e-3, momentum=0.95, schedule="linear", warmup=0.02)
SCENES = replace(
    FASHION,
    steps=12_000,
    model=VARIANTS["tokenizer-scenes"],
    data=ImageConfig("scenes", size=64),
    ema=0.995,
    optim=MUON,
)
PRESETS = {"digits": DIGITS, "fashion": FASHION, "cifar10": CIFAR10, "scenes": SCENES}


def main(config: Config, run: Run) -> None:
    # Data
    train, test = load_images(config.data)
    for note in (*train.notes, *test.notes):
        run.say(note)
    height, width, channels = train.shape
    run.say(f"{train.name}: {len(train)} training and {len(test)} held-out images, {height}×{width}×{channels}")

    # Model
    model_config = replace(config.model, image_size=height, channels=channels)
    codes = model_config.vocab_size
    new_model = functools.partial(JudgedTokenizer, model_config, config.critic.width)
    graphdef, *_ = functional.abstract(new_model)
    run.say(f"{'×'.join(map(str, model_config.grid))} tokens an image, of {codes} kinds")

    # Objective
    error = functools.partial(quantise.reconstruction_loss, l1=config.l1)
    pixels = lambda batch: batch["image"].astype(jnp.float32) / 255

    def loss(params, stats, batch, key):
        x = pixels(batch)
        model = functional.merge(graphdef, params, stats)
        image, quantised = model.tokenizer(x, train=True, key=key)
        commitment = quantise.commitment_loss(quantised.features, quantised.nearest)
        metrics = {"error": error(image, x), "psnr": psnr(image, x, data_range=1), "commitment": commitment}
        losses = metrics["error"] + config.commitment * commitment
        if model_config.quantiser == "vq":
            losses += quantise.codebook_loss(quantised.features, quantised.nearest)
        if config.critic.width:
            fooled, metrics["critic"] = quantise.critic_losses(
                config.critic, graphdef, params, stats, x, image, quantised.code, error
            )
            losses += jnp.where(batch["late"], fooled + metrics["critic"], 0.0)
        sums = {name: value.sum() for name, value in metrics.items()}
        return losses.sum(), Aux(jnp.float32(len(x)), functional.stats_of(model), sums)

    def reconstruct(params, stats, batch):
        return functional.merge(graphdef, params, stats).tokenizer(pixels(batch))

    def score(params, stats, batch):
        (image, quantised), x, weight = reconstruct(params, stats, batch), pixels(batch), batch["weight"]
        sums = {"loss": jnp.sum(error(image, x) * weight), "psnr": jnp.sum(psnr(image, x, data_range=1) * weight)}
        return sums | {"count": weight.sum(), "ids": quantise.count_ids(quantised.ids, codes, weight)}

    tx, schedule = make_optimizer(config.optim, config.steps), make_schedule(config.optim, config.steps)
    plain = gradient_update(loss, tx, schedule=schedule, accumulate=config.accumulate, ema=config.ema)

    def update(state, batch, key):
        late = jnp.full(len(batch["image"]), state["step"] >= config.critic.start)
        return plain(state, batch | {"late": late}, key)

    # Training, with a look at the held-out images as it goes
    mesh = make_mesh(config.mesh)
    score_all = over_batches(score, in_order(test, config.batch), mesh)
    held_out = lambda state: jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *score_all(state))
    first = Images(**test[np.arange(min(16, len(test)))], classes=test.classes, name=test.name)
    redraw = make_predict(lambda *inputs: reconstruct(*inputs)[0], in_order(first, config.batch), mesh)

    def evaluate(state):
        sums = held_out(state)
        used, perplexity = quantise.codebook_use(sums["ids"])
        loss, decibels = float(sums["loss"] / sums["count"]), float(sums["psnr"] / sums["count"])
        return {"eval_loss": loss, "eval_psnr": decibels, "eval_used": used, "eval_perplexity": perplexity}

    def sheet(state):
        """Originals, over their reconstructions."""
        images = np.concatenate([first.image, to_pixels(redraw(state))])
        return picture_grid(images, len(images) // 2, max(1, 64 // height))

    fitted = fit(
        config,
        run,
        init=lambda key: functional.initial(new_model, key),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch, config.seed),
        mesh=mesh,
        rules=SHARDING,
        evaluate=evaluate,
        pictures=sheet,
    )

    # Results
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(codes), np.sort(held_out(fitted.state)["ids"])[::-1], width=1.0)
    axes.set(xlabel="codes, the most used one first", ylabel="held-out tokens", yscale="log")
    run.write_image("codes.png", figure)
    params, stats = gather(evaluated(fitted.state), mesh)
    if run.lead:
        zoo.save(functional.merge(graphdef, params, stats).tokenizer, run.folder / "model")
    run.finish(fitted.result, ["python experiments/tokenizer.py --model.quantiser ema --run runs/tokenizer-ema"])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
