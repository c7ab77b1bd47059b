"""Train a variational autoencoder on images.

By default: handwritten digits (8×8 pixels, embedded in scikit-learn), binarised, a few minutes on two CPU cores.
The same with your own images: --data images:FOLDER, where FOLDER/<class>/ holds PNG or JPEG files.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.data import ImageConfig, Shuffled, in_order, load_images
from zoo.data.augment import AugmentConfig, augment
from zoo.errors import unknown
from zoo.generate.traversal import codes_of, mixture_picture, reconstructions, sheet, traversal_picture
from zoo.models import functional, vae
from zoo.objectives import variational as vi
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh, replicated
from zoo.train.run import Run
from zoo.train.state import evaluated, make_evaluate, make_predict


@dataclass(frozen=True)
class Config(TrainConfig):
    model: str = "vae-digits"
    """Network: vae-digits, vae-fashion or vae-cifar10 (`zoo list`)."""
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
    """Of the pixels: binary; with one shared, best variance; or 256 values, by a mixture of discretised logistics."""
    binarise: Literal["dynamic", "static", "none"] = "dynamic"
    """For the Bernoulli: draw training pixels at every sight, or once (held-out ones always once), or leave them."""
    conditional: bool = False
    """Tell the model the class of every image."""
    beta: float = 1.0
    """Weight of the KL term (Higgins et al. 2017)."""
    kl_warmup: float = 0.1
    """Part of the steps in which that weight rises from zero."""
    free_bits: float = 0.0
    """Nats of KL that each latent dimension may have for nothing."""
    samples: int = 1
    """Importance samples of the bound that training raises: more are slower, and closer to the likelihood."""
    iwae: int = 500
    """Importance samples of the final bound on the likelihood of the held-out images."""
    data: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


DIGITS = Config(
    steps=6000, batch=128, samples=5, eval_every=1000, save_every=1000, ema=0.995, optim=OptimConfig(lr=3e-3)
)
FASHION = replace(
    DIGITS,
    model="vae-fashion",
    steps=10_000,
    samples=1,
    eval_every=2000,
    save_every=2000,
    data=ImageConfig("idx:/usr/share/datasets/fashion-mnist"),
    optim=OptimConfig(lr=2e-3),
)
COLOUR = {"model": "vae-cifar10", "likelihood": "logistic", "data": ImageConfig("tfds:cifar10"), "ema": 0.9995}
LONG = {"steps": 100_000, "eval_every": 5000, "save_every": 5000, "steps_per_dispatch": 10}
CIFAR10 = replace(FASHION, **COLOUR, **LONG, optim=OptimConfig(lr=5e-4))
PRESETS = {"digits": DIGITS, "fashion": FASHION, "cifar10": CIFAR10}


def main(config: Config, run: Run) -> None:
    # Data
    train, test = load_images(config.data)
    for note in (*train.notes, *test.notes):
        run.say(note)
    (height, width, channels), classes = train.shape, len(train.classes)
    run.say(f"{train.name}: {len(train)} training and {len(test)} held-out images, {height}×{width}×{channels}")
    binary = config.likelihood == "bernoulli" and config.binarise != "none"
    once = jax.random.key(0)  # of what is drawn once for each image, whatever the seed
    drawn = vi.binarise if binary else lambda key, image, raw: image

    # Model
    if config.model not in vae.VARIANTS:
        raise unknown("VAE", config.model, vae.VARIANTS)
    sizes = {"image_size": height, "channels": channels, "classes": classes if config.conditional else 0}
    model_config = replace(vae.VARIANTS[config.model], likelihood=config.likelihood, **sizes)
    new_model = functools.partial(vae.VAE, model_config)
    graphdef, shapes, _ = functional.abstract(new_model)
    run.say(f"{config.model}: {functional.count(shapes):,} parameters")

    # Objective
    def loss(beta, params, stats, batch, key):
        keys = jax.random.split(key, 3)
        image, _ = augment(config.augment, keys[0], batch["image"], batch["label"], classes)
        image = drawn(once if config.binarise == "static" else keys[1], image, batch["image"])
        model = functional.merge(graphdef, params, stats)
        noise = jax.random.normal(keys[2], (config.samples, len(image), model_config.latents))
        total, sums = vi.training_loss(model, image, batch["label"], noise, beta, config.free_bits)
        return total, Aux(jnp.asarray(len(image), jnp.float32), functional.stats_of(model), sums)

    tx, schedule = make_optimizer(config.optim, config.steps), make_schedule(config.optim, config.steps)
    options = {"schedule": schedule, "accumulate": config.accumulate, "ema": config.ema}

    def update(state, batch, key):
        beta = vi.kl_weight(state["step"], config.beta, round(config.kl_warmup * config.steps))
        return gradient_update(functools.partial(loss, beta), tx, **options)(state, batch, key)

    # Evaluation: what is drawn for an image depends on that image alone, so that scores compare
    def seen(params, stats, batch):
        image = drawn(once, batch["image"].astype(jnp.float32) / 255, batch["image"])
        keys = vi.content_keys(jax.random.key(1), batch["image"])
        return functional.merge(graphdef, params, stats), image, batch["label"], keys

    def score(params, stats, batch):
        return vi.weighted_sums(vi.held_out_scores(*seen(params, stats, batch)), batch["weight"])

    def importance(params, stats, batch):
        nll_b = -vi.importance_bound(*seen(params, stats, batch), config.iwae)
        return vi.weighted_sums({"nll": nll_b}, batch["weight"])

    # Training, with a look at held-out images, their reconstructions and samples of the prior
    mesh = make_mesh(config.mesh)
    held_out, shown = in_order(test, config.batch), test[np.arange(min(16, len(test)))]
    z = np.random.default_rng(config.seed).standard_normal((32, model_config.latents), np.float32)
    look = jax.jit(lambda *inputs: reconstructions(*seen(*inputs)[:3], z), out_shardings=replicated(mesh))

    fitted = fit(
        config,
        run,
        init=lambda key: functional.initial(new_model, key),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch, config.seed),
        mesh=mesh,
        rules=vae.SHARDING,
        evaluate=make_evaluate(score, held_out, mesh),
        pictures=lambda state: sheet(look(*evaluated(state), shown)),
    )

    # Results
    encode = lambda *inputs: codes_of(*seen(*inputs)[:3])
    codes = make_predict(encode, in_order(train, config.batch), mesh)(fitted.state)
    nll = make_evaluate(importance, held_out, mesh)(fitted.state)["eval_nll"]
    run.say(f"IWAE-{config.iwae}: {nll:.3f} nats on the {len(test)} held-out images")
    fitted.result["metrics"][f"iwae_{config.iwae}"] = nll
    model = functional.merge(graphdef, *gather(evaluated(fitted.state), mesh))
    if run.lead:
        run.write_image("traversal.png", traversal_picture(model, codes, train[np.arange(1)]["label"][0]))
        run.write_image("mixture.png", mixture_picture(model, codes, config.seed))
        zoo.save(model, run.folder / "model")
    run.finish(fitted.result, ["python experiments/vae.py fashion --data idx:FOLDER"])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
