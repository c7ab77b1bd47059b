"""What two networks are trained for when one must tell the images of the other from real ones.

Images are float32 [B, H, W, C] in [-1, 1], logits float32 [B], high for what looks real. Losses are in nats for
minimax and relativistic, and without a unit for the others.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.errors import ZooError, unknown
from zoo.objectives.update import State, accumulated, strided_parts

LOSSES = ("minimax", "lsgan", "hinge", "wgan-gp", "relativistic")
AUGMENTATIONS = ("color", "translation", "cutout")

Generate = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
Discriminate = Callable[[Any, Any, jax.Array, Any, jax.Array], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class AdversarialConfig:
    loss: Literal["minimax", "lsgan", "hinge", "wgan-gp", "relativistic"] = "relativistic"
    """Goodfellow et al. (2014) with the generator's -log D; Mao et al. (2017); Lim and Ye (2017); Gulrajani et al.
    (2017), with its penalty; Jolicoeur-Martineau (2019), each real image paired with a generated one."""
    r1: float = 0.0
    """Weight gamma of gamma/2 · |gradient|² of the discriminator at real images (Mescheder et al. 2018)."""
    r2: float = 0.0
    """The same at generated images."""
    gp: float = 10.0
    """Weight of WGAN-GP's penalty, (|gradient| - 1)² between real and generated images; for its loss only."""
    penalty_every: int = 1
    """Steps between penalties, which then weigh so many times as much (Karras et al. 2020, appendix B). On a CPU,
    convolutions that a condition guards are forty times slower: take --adversarial.penalty-rows there."""
    penalty_rows: int = 1
    """Penalise every so-manyth image of a batch, at every step: the mean over them is that of a smaller batch."""
    d_steps: int = 1
    """Updates of the discriminator, each on a batch of its own, for one of the generator."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of all that the discriminator sees (Zhao et al. 2020)."""

    def __post_init__(self) -> None:
        """Raises ZooError for what makes no objective."""
        if self.loss not in LOSSES:
            raise unknown("adversarial loss", self.loss, LOSSES)
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise unknown("differentiable augmentation", name, AUGMENTATIONS)
        if min(self.r1, self.r2, self.gp) < 0 or min(self.penalty_every, self.penalty_rows, self.d_steps) < 1:
            raise ZooError("r1, r2 and gp must be at least 0, penalty_every, penalty_rows and d_steps at least 1")

    @property
    def penalties(self) -> dict[str, float]:
        """The weights of the penalties that are on, by name."""
        weights = {"r1": self.r1, "r2": self.r2, "gp": self.gp if self.loss == "wgan-gp" else 0.0}
        return {name: weight for name, weight in weights.items() if weight}


class Optimizers(NamedTuple):
    """One optimizer for each network; its state is {"generator": ..., "discriminator": ...}."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation

    def init(self, params: Any) -> Any:
        """The states for params {"generator": ..., "discriminator": ...}."""
        # Under its own name within its optimizer's state too, a parameter is found by the rules of sharding.
        return {name: tx.init({name: params[name]}) for name, tx in self._asdict().items()}

    def apply(self, name: str, grads: Any, opt: Any, params: Any) -> tuple[Any, Any]:
        """(opt, params) after an update of one of the networks by its gradients."""
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer step counts
            updates, new = getattr(self, name).update({name: grads}, opt[name], {name: params[name]})
        return opt | {name: new}, params | optax.apply_updates({name: params[name]}, updates)


def discriminator_loss(loss: str, real_b: jax.Array, fake_b: jax.Array) -> jax.Array:
    """The discriminator's loss float32 [B] of logits [B] of real and of generated images."""
    if loss == "minimax":  # -[log D(x) + log(1 - D(G(z)))], D being the sigmoid of the logit
        return jax.nn.softplus(-real_b) + jax.nn.softplus(fake_b)
    if loss == "lsgan":  # Mao et al. 2017, equation 9
        return 0.5 * jnp.square(real_b - 1) + 0.5 * jnp.square(fake_b)
    if loss == "hinge":
        return jax.nn.relu(1 - real_b) + jax.nn.relu(1 + fake_b)
    if loss == "wgan-gp":
        return fake_b - real_b
    if loss == "relativistic":  # Huang et al. 2024, equation 2
        return jax.nn.softplus(fake_b - real_b)
    raise unknown("adversarial loss", loss, LOSSES)


def generator_loss(loss: str, real_b: jax.Array | None, fake_b: jax.Array) -> jax.Array:
    """The generator's loss float32 [B]. Only the relativistic one looks at the logits of real images."""
    if loss == "minimax":  # -log D(G(z))
        return jax.nn.softplus(-fake_b)
    if loss == "lsgan":
        return 0.5 * jnp.square(fake_b - 1)
    if loss in ("hinge", "wgan-gp"):
        return -fake_b
    if loss != "relativistic":
        raise unknown("adversarial loss", loss, LOSSES)
    if real_b is None:
        raise ZooError("the relativistic loss of a generator needs the logits of real images")
    return jax.nn.softplus(real_b - fake_b)


def squared_gradients(logits_of: Callable[[jax.Array], jax.Array], x_bhwc: jax.Array) -> jax.Array:
    """|d logit / d image|² float32 [B], over all axes of each image, of logits that depend on their own image only."""
    gradients = jax.grad(lambda x: jnp.sum(logits_of(x)))(x_bhwc)
    return jnp.sum(jnp.square(gradients.astype(jnp.float32)), axis=tuple(range(1, x_bhwc.ndim)))


def zero_centred_penalty(logits_of: Callable[[jax.Array], jax.Array], x_bhwc: jax.Array) -> jax.Array:
    """|gradient|² / 2 float32 [B]: R1 at real images, R2 at generated ones (Mescheder et al. 2018, equation 9)."""
    return 0.5 * squared_gradients(logits_of, x_bhwc)


def one_centred_penalty(
    logits_of: Callable[[jax.Array], jax.Array], real_bhwc: jax.Array, fake_bhwc: jax.Array, key: jax.Array
) -> jax.Array:
    """(|gradient| - 1)² float32 [B] at a random point between each real image and a generated one.

    Gulrajani et al. (2017), algorithm 1: one share an image, the norm over all of its axes.
    """
    share = jax.random.uniform(key, (len(real_bhwc),) + (1,) * (real_bhwc.ndim - 1))
    squares = squared_gradients(logits_of, share * real_bhwc + (1 - share) * fake_bhwc)
    return jnp.square(jnp.sqrt(squares + 1e-12) - 1)  # where the gradient is zero, its norm has none


def augment_differentiably(names: tuple[str, ...], key: jax.Array, x_bhwc: jax.Array) -> jax.Array:
    """Images float32 [B, H, W, C] in [-1, 1] changed at random, each by itself, with a gradient to the images.

    The color, translation (by up to an eighth) and cutout (of half the sides) of Zhao et al. (2020),
    arXiv:2006.10738; what comes from beyond the border, and what is cut, is zero.
    """
    batch, height, width, _ = x_bhwc.shape
    keys = dict(zip(AUGMENTATIONS, jax.random.split(key, len(AUGMENTATIONS)), strict=True))

    def shares(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (3, batch, 1, 1, 1))

    def places(key: jax.Array, below: tuple[int, int]) -> list[jax.Array]:
        return [jax.random.randint(k, (batch,), 0, b) for k, b in zip(jax.random.split(key), below, strict=True)]

    if "color" in names:
        brightness, saturation, contrast = shares(keys["color"])
        x_bhwc = x_bhwc + (brightness - 0.5)
        gray = jnp.mean(x_bhwc, axis=3, keepdims=True)
        x_bhwc = gray + (x_bhwc - gray) * (2 * saturation)
        mean = jnp.mean(x_bhwc, axis=(1, 2, 3), keepdims=True)
        x_bhwc = mean + (x_bhwc - mean) * (contrast + 0.5)
    if "translation" in names:
        down, right = (max(1, round(size / 8)) for size in (height, width))
        top_b, left_b = places(keys["translation"], (2 * down + 1, 2 * right + 1))
        padded = jnp.pad(x_bhwc, ((0, 0), (down, down), (right, right), (0, 0)))
        crop = lambda image, top, left: jax.lax.dynamic_slice(image, (top, left, 0), x_bhwc.shape[1:])
        x_bhwc = jax.vmap(crop)(padded, top_b, left_b)
    if "cutout" in names:
        middle_b, centre_b = places(keys["cutout"], (height + 1, width + 1))
        rows_bh = jnp.arange(height)[None] - middle_b[:, None] + height // 4
        columns_bw = jnp.arange(width)[None] - centre_b[:, None] + width // 4
        inside_bh = (rows_bh >= 0) & (rows_bh < height // 2)
        inside_bw = (columns_bw >= 0) & (columns_bw < width // 2)
        inside = (inside_bh[:, :, None] & inside_bw[:, None, :])[..., None]
        x_bhwc = jnp.where(inside, jnp.zeros((), x_bhwc.dtype), x_bhwc)
    return x_bhwc


def adversarial_update(
    generate: Generate,
    discriminate: Discriminate,
    tx: Optimizers,
    config: AdversarialConfig,
    *,
    schedule: optax.Schedule | None = None,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """The update of a generator and its discriminator in one step: `update(state, batch, key) -> (state, metrics)`.

    `generate(params, stats, batch, key) -> (images, stats)` makes an image for each row of the batch, and
    `discriminate(params, stats, images, batch, key) -> (logits, stats)` judges images; both get the whole params
    {"generator": ..., "discriminator": ...}. `batch["image"]` holds the real images, uint8, or float32 in [-1, 1], in
    `d_steps` times as many rows as one update of a network takes. The discriminator goes first; the generator meets
    the new one, whose stats change in its own updates only. `ema` averages the generator; the discriminator among the
    averages is the current one.

    Metrics: d_loss, g_loss, the mean logits d_real and d_fake, the penalties r1, r2 and gp without their weights (0 at
    steps that leave them out), d_grad_norm, g_grad_norm, and the lr of the schedule.
    """

    def judge(params: Any, stats: Any, images: jax.Array, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        change, rest = jax.random.split(key)
        if config.augment:
            images = augment_differentiably(config.augment, change, images)
        return discriminate(params, stats, images, batch, rest)

    def penalty(discriminator: Any, params: Any, stats: Any, batch: Any, fake: jax.Array, keys: jax.Array) -> Any:
        """The weighted sum of the penalties of a batch, and the sum of each."""
        rows, few = len(fake), lambda x: x[:: config.penalty_rows]  # strided: some of the rows of every device
        real, fake, batch = few(signed(batch["image"])), few(fake), jax.tree.map(few, batch)

        def logits_of(batch: Any, images: jax.Array) -> jax.Array:
            return judge(params | {"discriminator": discriminator}, stats, images, batch, keys[0])[0]

        losses = {}
        if "gp" in config.penalties:
            losses["gp"] = one_centred_penalty(functools.partial(logits_of, batch), real, fake, keys[1])
        images = {name: x for name, x in (("r1", real), ("r2", fake)) if name in config.penalties}
        if images:
            # All in one pass, which has half as many and larger convolutions; every device keeps its own rows.
            together = jnp.stack(list(images.values()), axis=1).reshape(-1, *real.shape[1:])
            told = jax.tree.map(lambda x: jnp.repeat(x, len(images), axis=0), batch)
            found = zero_centred_penalty(functools.partial(logits_of, told), together)
            losses |= dict(zip(images, found.reshape(-1, len(images)).T, strict=True))
        sums = {name: jnp.mean(each) * rows for name, each in losses.items()}
        total = sum(weight * config.penalty_every * sums[name] for name, weight in config.penalties.items())
        return jnp.asarray(total), sums

    def discriminator_gradients(due: jax.Array, params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        for_fake, judge_real, judge_fake, for_penalty = jax.random.split(key, 4)
        real = signed(batch["image"])
        fake, stats = generate(params, stats, batch, for_fake)
        fake = jax.lax.stop_gradient(fake)
        inputs = params, stats, batch, fake, jax.random.split(for_penalty)

        def loss(discriminator: Any) -> Any:
            new = params | {"discriminator": discriminator}
            real_logits, after = judge(new, stats, real, batch, judge_real)
            fake_logits, after = judge(new, after, fake, batch, judge_fake)
            total = jnp.sum(discriminator_loss(config.loss, real_logits, fake_logits))
            sums = {"d_loss": total, "d_real": jnp.sum(real_logits), "d_fake": jnp.sum(fake_logits)}
            if config.penalties and config.penalty_every == 1:
                more, penalties = penalty(discriminator, *inputs)
                total, sums = total + more, sums | penalties
            return total, (after, sums)

        (_, (stats, sums)), grads = jax.value_and_grad(loss, has_aux=True)(params["discriminator"])
        if config.penalties and config.penalty_every > 1:
            compute = lambda: jax.grad(penalty, has_aux=True)(params["discriminator"], *inputs)
            nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
            more, penalties = jax.lax.cond(due, compute, nothing)
            grads, sums = jax.tree.map(jnp.add, grads, more), sums | penalties
        return grads, stats, sums | {"examples": jnp.asarray(len(real), jnp.float32)}

    def generator_gradients(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        for_fake, judge_fake, judge_real = jax.random.split(key, 3)

        def loss(generator: Any) -> Any:
            new = params | {"generator": generator}
            fake, after = generate(new, stats, batch, for_fake)
            real_logits = None
            if config.loss == "relativistic":
                real_logits, _ = judge(new, after, signed(batch["image"]), batch, judge_real)
            fake_logits, _ = judge(new, after, fake, batch, judge_fake)
            return jnp.sum(generator_loss(config.loss, real_logits, fake_logits)), after

        (total, stats), grads = jax.value_and_grad(loss, has_aux=True)(params["generator"])
        return grads, stats, {"g_loss": total, "examples": jnp.asarray(len(batch["image"]), jnp.float32)}

    def step(name: str, gradients: Any, state: State, batch: Any, key: jax.Array) -> tuple[State, Any]:
        """The state after an update of one network; its metrics."""
        grads, stats, sums = accumulated(gradients, accumulate)(state["params"], state["stats"], batch, key)
        examples = sums.pop("examples")
        grads = jax.tree.map(lambda g: g / examples.astype(g.dtype), grads)
        opt, params = tx.apply(name, grads, state["opt"], state["params"])
        metrics = {key: value / examples for key, value in sums.items()}
        return state | {"params": params, "stats": stats, "opt": opt}, metrics | {
            f"{name[0]}_grad_norm": optax.tree.norm(grads)
        }

    def update(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        d_key, g_key = jax.random.split(key)
        due = state["step"] % config.penalty_every == 0
        rows, ways = len(batch["image"]), config.d_steps * accumulate
        if rows % ways:
            raise ZooError(f"{rows} images are not {config.d_steps} batches of {accumulate} micro-batches each")
        new = {name: state[name] for name in ("params", "stats", "opt")}
        parts, history = strided_parts(batch, config.d_steps), []
        for i, part_key in enumerate(jax.random.split(d_key, config.d_steps)):
            part = jax.tree.map(lambda x, i=i: x[i], parts)
            new, metrics = step("discriminator", functools.partial(discriminator_gradients, due), new, part, part_key)
            history.append(metrics)
        d_metrics = jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *history)
        new, g_metrics = step("generator", generator_gradients, new, part, g_key)
        new["step"] = state["step"] + 1
        if ema:
            average = lambda old, now: old * ema + now * (1 - ema)
            generator = jax.tree.map(average, state["ema"]["generator"], new["params"]["generator"])
            new["ema"] = {"generator": generator, "discriminator": new["params"]["discriminator"]}
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            rate = {} if schedule is None else {"lr": jnp.asarray(schedule(state["step"]), jnp.float32)}
        return new, d_metrics | g_metrics | rate

    return update


def signed(image: jax.Array) -> jax.Array:
    """Images float32 in [-1, 1], of uint8 ones; floats are taken to be in [-1, 1] already."""
    return image.astype(jnp.float32) / 127.5 - 1 if jnp.issubdtype(image.dtype, jnp.integer) else image
