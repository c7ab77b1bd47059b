"""Train an image classifier.

By default: handwritten digits (8×8 pixels, embedded in scikit-learn), a small CNN, under a minute on two CPU cores.
The same with your own images: --data images:FOLDER, where FOLDER/<class>/ holds PNG or JPEG files.
"""

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.data import ImageConfig, Shuffled, in_order, load_images
from zoo.data.augment import AugmentConfig, augment
from zoo.errors import unknown
from zoo.metrics.classification import confusion_figure, confusion_matrix, prediction_sheet, summary
from zoo.models import cnn, functional
from zoo.objectives.losses import cross_entropy
from zoo.objectives.optim import OptimConfig, make_optimizer, make_schedule
from zoo.objectives.update import Aux, gradient_update
from zoo.train.config import TrainConfig
from zoo.train.fit import fit
from zoo.train.launch import launch
from zoo.train.mesh import gather, make_mesh
from zoo.train.run import Run
from zoo.train.state import evaluated, make_evaluate, make_predict
from zoo.weights.registry import build, config_of


@dataclass(frozen=True)
class Config(TrainConfig):
    model: str = "cnn-basic"
    """Network: cnn-basic, resnet20, resnet56, resnet18 or resnet50 (`zoo list`)."""
    label_smoothing: float = 0.1
    """Part of each label that is spread over all classes."""
    data: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


# The digits are enlarged to 16×16: two valid 3×3 convolutions and two pools leave nothing of 8×8.
DIGITS = Config(
    steps=1500,
    batch=64,
    eval_every=250,
    save_every=250,
    ema=0.995,
    data=ImageConfig(size=16),
    augment=AugmentConfig(crop=1, rotate=10, scale=0.1),
    optim=OptimConfig(lr=2e-3, weight_decay=1e-2),
)
RESNET20 = Config(
    model="resnet20",
    steps=1000,
    batch=64,
    ema=0.99,
    augment=AugmentConfig(crop=1, rotate=10, scale=0.1),
    optim=OptimConfig(name="sgd", lr=0.05, weight_decay=5e-4),
)
# Debian's package dataset-fashion-mnist puts the files there; elsewhere: fashion --data idx:FOLDER.
FASHION = Config(
    steps=4500,
    batch=128,
    eval_every=1500,
    ema=0.999,
    data=ImageConfig("idx:/usr/share/datasets/fashion-mnist"),
    augment=AugmentConfig(flip=True, crop=1),
    optim=OptimConfig(lr=2e-3, weight_decay=5e-2),
)
# For one v5e. The images are prepared by TensorFlow Datasets, which asks you to fetch them yourself.
IMAGENET = Config(
    model="resnet50",
    steps=900_000,  # 90 epochs
    batch=128,
    eval_every=10_000,
    save_every=5_000,
    data=ImageConfig("tfds:imagenet2012", size=224),
    augment=AugmentConfig(flip=True, crop=28, scale=0.25),
    optim=OptimConfig(name="sgd", lr=0.05, weight_decay=1e-4),
)
PRESETS = {"digits": DIGITS, "resnet20": RESNET20, "fashion": FASHION, "resnet50": IMAGENET}


def main(config: Config, run: Run) -> None:
    # Data
    train, test = load_images(config.data)
    for note in (*train.notes, *test.notes):
        run.say(note)
    height, width, channels = train.shape
    classes = len(train.classes)
    run.say(f"{train.name}: {len(train)} training and {len(test)} held-out images, {height}×{width}×{channels}")

    # Model
    sizes = {"image_size": height, "channels": channels, "classes": classes, "mean": (0.5,), "std": (0.25,)}
    if config.model not in cnn.VARIANTS:
        raise unknown("classifier", config.model, cnn.VARIANTS)
    model_config = config_of(config.model, **sizes)
    new_model = functools.partial(build, model_config)
    graphdef, *_ = functional.abstract(new_model)

    # Objective
    def loss(params, stats, batch, key):
        image, target = augment(config.augment, key, batch["image"], batch["label"], classes)
        model = functional.merge(graphdef, params, stats)
        logits = model(image, train=True)
        losses = cross_entropy(logits, target, config.label_smoothing)
        right = jnp.sum(jnp.argmax(logits, -1) == batch["label"], dtype=jnp.float32)
        count = jnp.asarray(losses.size, jnp.float32)
        return losses.sum(), Aux(count, functional.stats_of(model), {"accuracy": right})

    def classify(params, stats, batch):
        model = functional.merge(graphdef, params, stats)
        return model(batch["image"].astype(jnp.float32) / 255)

    def score(params, stats, batch):
        logits, weight = classify(params, stats, batch), batch["weight"]
        right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        losses = cross_entropy(logits, batch["label"])
        return {"loss": jnp.sum(losses * weight), "accuracy": jnp.sum(right * weight), "count": weight.sum()}

    tx = make_optimizer(config.optim, config.steps)
    schedule = make_schedule(config.optim, config.steps)
    update = gradient_update(loss, tx, schedule=schedule, accumulate=config.accumulate, ema=config.ema)

    # Training, with a look at the held-out images as it goes
    mesh = make_mesh(config.mesh)
    held_out = in_order(test, config.batch)
    predict = make_predict(lambda *inputs: jax.nn.softmax(classify(*inputs)), held_out, mesh)
    # Labels and images apart, since all images may not fit in memory
    images_of = lambda indices: test[indices]["image"]
    parts = np.array_split(np.arange(len(test)), -(-len(test) // 1024))
    labels = np.concatenate([test[part]["label"] for part in parts])
    fitted = fit(
        config,
        run,
        init=lambda key: functional.initial(new_model, key),
        tx=tx,
        update=update,
        batches=Shuffled(train, config.batch, config.seed),
        mesh=mesh,
        rules=cnn.SHARDING,
        evaluate=make_evaluate(score, held_out, mesh),
        pictures=lambda state: prediction_sheet(images_of, labels, predict(state), test.classes),
    )

    # Results
    shares = predict(fitted.state)
    scores = {f"eval_{name}": value for name, value in summary(labels, shares).items()}
    run.say("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    matrix = confusion_matrix(labels, shares.argmax(-1), classes)
    run.write_image("confusion.png", confusion_figure(matrix, test.classes))
    params, stats = gather(evaluated(fitted.state), mesh)
    if run.lead:
        zoo.save(functional.merge(graphdef, params, stats), run.folder / "model")
    fitted.result["metrics"] |= scores
    run.finish(fitted.result, ["python experiments/cnn.py resnet20", "python experiments/gpt.py"])


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
