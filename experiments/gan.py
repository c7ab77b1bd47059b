"""Train a generator of images against a discriminator.

By default: handwritten digits (embedded in scikit-learn) at 16×16 pixels, residual networks with the relativistic
loss, less than ten minutes on two CPU cores. The same with your own images: --data images:FOLDER --data.size 32.
"""

import functools
from dataclasses import dataclass, field, replace

import jax
import numpy as np

import zoo
from zoo.data import ImageConfig, Shuffled, load_images
from zoo.errors import ZooError
from zoo.generate.latents import draw_latents, images_of, interpolate, sample_pictures
from zoo.generate.pictures import picture_grid, to_pixels
from zoo.metrics.judge import Judge
from zoo.models import functional
from zoo.models.gan import GAN, SHARDING, VARIANTS, GANConfig
from zoo.objectives.adversarial import AdversarialConfig, Optimizers, adversarial_update
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh
from zoo.train.run import Run
from zoo.train.state import evaluated
from zoo.weights.classifier import Classifier


@dataclass(frozen=True)
class Config(TrainConfig):
    conditional: bool = False
    """Tell both networks the class of each image."""
    judge: str = ""
    """Classifier whose features judge samples, of the images' size: digits-cnn, fashion-cnn, or a run folder."""
    model: GANConfig = VARIANTS["gan-residual-xs"]
    """The two networks; the size, the channels and the classes are the data's."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    data: ImageConfig = field(default_factory=ImageConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


DIGITS = Config(
    steps=2000,
    batch=64,
    eval_every=250,
    ema=0.995,
    judge="digits-cnn",
    data=ImageConfig(size=16),
    adversarial=AdversarialConfig(r1=0.1, r2=0.1, penalty_rows=4),
    optim=OptimConfig(lr=1e-3, b1=0.0, b2=0.99, warmup=0.02),
)
DEBIAN = "idx:/usr/share/datasets/fashion-mnist"
FASHION = replace(DIGITS, data=ImageConfig(DEBIAN), judge="fashion-cnn", conditional=True)
DCGAN = replace(  # the article's, on images of your own
    DIGITS,
    batch=128,
    judge="",
    model=VARIANTS["dcgan"],
    data=ImageConfig(size=64),
    adversarial=AdversarialConfig("minimax"),
    optim=OptimConfig(lr=2e-4, b1=0.5, schedule="constant", warmup=0.0),
)
CIFAR10 = Config(  # a session of Colab
    steps=50_000,
    batch=256,
    eval_every=1000,
    save_every=1000,
    steps_per_dispatch=10,
    ema=0.999,
    conditional=True,
    model=replace(VARIANTS["gan-residual"], width=128),
    data=ImageConfig("tfds:cifar10"),
    adversarial=AdversarialConfig(r1=0.05, r2=0.05, augment=("color", "translation", "cutout")),
    optim=OptimConfig(lr=2e-4, b1=0.0, b2=0.99, warmup=0.02),
)
PRESETS = {"digits": DIGITS, "fashion": FASHION, "dcgan": DCGAN, "cifar10": CIFAR10}


def main(config: Config, run: Run) -> None:
    # Data
    train, _ = load_images(config.data)
    for note in train.notes:
        run.say(note)
    height, width, channels = train.shape
    run.say(f"{train.name}: {len(train)} images, {height}×{width}×{channels}")

    # Model
    classes = len(train.classes) if config.conditional else 0
    model_config = replace(config.model, image_size=height, channels=channels, classes=classes)
    if config.adversarial.penalties and model_config.architecture == "dcgan" and model_config.batch_norm:
        raise ZooError("gradient penalties are of single images, batch norm mixes them: --model.no-batch-norm")
    new_model = functools.partial(GAN, model_config)
    graphdef, *_ = functional.abstract(new_model)

    # Objective
    def generate(params, stats, batch, key):
        model = functional.merge(graphdef, params, stats)
        z = jax.random.normal(key, (len(batch["label"]), model_config.latent))
        return model.generator(z, batch["label"] if classes else None, train=True), functional.stats_of(model)

    def discriminate(params, stats, images, batch, key):
        model = functional.merge(graphdef, params, stats)
        return model.discriminator(images, batch["label"] if classes else None, train=True), functional.stats_of(model)

    d_steps = config.adversarial.d_steps
    tx = Optimizers(make_optimizer(config.optim, config.steps), make_optimizer(config.optim, config.steps * d_steps))
    options = {"schedule": make_schedule(config.optim, config.steps), "accumulate": config.accumulate}
    update = adversarial_update(generate, discriminate, tx, config.adversarial, ema=config.ema, **options)

    # Evaluation: what the same latents become as it goes, and how a classifier's features tell samples from images
    mesh = make_mesh(config.mesh)
    latents = draw_latents(jax.random.key(config.seed), 100, model_config.latent)
    current = lambda state: functional.merge(graphdef, *gather(evaluated(state), mesh))
    labels = lambda n: np.arange(n) % classes if classes else None
    sheet = lambda images: picture_grid(to_pixels(images, low=-1), columns=10, zoom=2)
    network = Classifier(config.judge) if config.judge else None
    judge = Judge(network.name, network, train[np.arange(min(2000, len(train)))]["image"]) if network else None

    def score(state):
        return judge(sample_pictures(current(state), 2000))

    # Training
    fitted = fit(
        config,
        run,
        init=lambda key: functional.initial(new_model, key),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch * d_steps, config.seed),
        mesh=mesh,
        rules=SHARDING,
        evaluate=score if judge else None,
        pictures=lambda state: sheet(images_of(current(state), latents, labels(100))),
        best=f"FD {judge.name}" if judge else "",
    )

    # Results
    model = current(fitted.state)
    if run.lead:
        run.write_image("interpolation.png", sheet(interpolate(model, 10, 10, condition=labels(10))))
        zoo.save(model, run.folder / "model")
    run.finish(fitted.result, ["python experiments/gan.py dcgan", "python experiments/cnn.py"])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
