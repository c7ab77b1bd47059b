"""Losses of image tokenizers, and how much of a codebook is in use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.errors import ZooError
from zoo.models import functional
from zoo.objectives.adversarial import discriminator_loss, generator_loss


@dataclass(frozen=True)
class CriticConfig:
    width: int = 0
    """Channels of the network that tells reconstructed from real images; 0 is none."""
    start: int = 1000
    """Steps before it learns, and the tokenizer from it."""
    weight: float = 0.1
    """How hard it pulls: as a part of the reconstruction's pull if adaptive, else as a plain weight."""
    adaptive: bool = True
    """Measure both pulls at the decoder's last layer, at every step."""

    def __post_init__(self) -> None:
        """Raises ZooError for numbers that make no objective."""
        if min(self.width, self.start, self.weight) < 0:
            raise ZooError("--critic.width, --critic.start and --critic.weight must be at least 0")


def reconstruction_loss(image_bhwc: jax.Array, target_bhwc: jax.Array, l1: float = 0.0) -> jax.Array:
    """(1 - l1) times the mean squared and l1 times the mean absolute difference of each image: float32 [B]."""
    difference = image_bhwc.astype(jnp.float32) - target_bhwc.astype(jnp.float32)
    errors = (1 - l1) * jnp.square(difference) + l1 * jnp.abs(difference)
    return jnp.mean(errors, axis=(1, 2, 3))


def commitment_loss(features_bhwd: jax.Array, nearest_bhwd: jax.Array) -> jax.Array:
    """Mean squared distance of features from their codes, float32 [B]; moves the features alone.

    Third term of van den Oord et al. (2017), equation 3, as a mean over the entries.
    """
    return jnp.mean(jnp.square(features_bhwd - jax.lax.stop_gradient(nearest_bhwd)), axis=(1, 2, 3))


def codebook_loss(features_bhwd: jax.Array, nearest_bhwd: jax.Array) -> jax.Array:
    """The same distance, float32 [B]; moves the codes alone. Second term of that equation."""
    return jnp.mean(jnp.square(jax.lax.stop_gradient(features_bhwd) - nearest_bhwd), axis=(1, 2, 3))


def critic_losses(
    config: CriticConfig,
    graphdef: nnx.GraphDef,
    params: Any,
    stats: Any,
    x_bhwc: jax.Array,
    image_bhwc: jax.Array,
    code_bhwd: jax.Array,
    error: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """What the tokenizer and the critic of a `JudgedTokenizer` lose to each other, each float32 [B].

    `image` are the reconstructions of images `x`, drawn from `code`. The tokenizer's loss moves the tokenizer alone,
    the critic's hinge loss (Lim and Ye 2017) the critic alone: one gradient of their sum trains both. An adaptive
    weight is relative to the pull of `error(image, x)`, float32 [B].
    """
    model = functional.merge(graphdef, params, stats)
    params = jax.lax.stop_gradient(params)
    fixed = functional.merge(graphdef, params, stats)
    real, fake = model.critic(x_bhwc), model.critic(jax.lax.stop_gradient(image_bhwc))
    critic = jnp.mean(discriminator_loss("hinge", real, fake), axis=(1, 2))

    def fooled(image_bhwc: jax.Array) -> jax.Array:
        return jnp.mean(generator_loss("hinge", None, fixed.critic(image_bhwc)), axis=(1, 2))

    if not config.adaptive:
        return config.weight * fooled(image_bhwc), critic

    def draw(kernel: jax.Array) -> jax.Array:
        tokenizer = functional.merge(graphdef, params, stats).tokenizer
        tokenizer.decoder.conv_out.kernel[...] = kernel
        return tokenizer.draw(jax.lax.stop_gradient(code_bhwd))

    kernel = params["tokenizer"]["decoder"]["conv_out"]["kernel"]
    weight = adaptive_weight(
        draw, kernel, lambda image: jnp.mean(error(image, x_bhwc)), lambda image: jnp.mean(fooled(image))
    )
    return config.weight * weight * fooled(image_bhwc), critic


def adaptive_weight(
    draw: Callable[[jax.Array], jax.Array],
    last: jax.Array,
    reconstruction: Callable[[jax.Array], jax.Array],
    adversarial: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The weight that makes an adversarial loss pull as hard as the reconstruction does at the last layer.

    ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4), at most 1e4, without gradient: Esser et al. 2021
    (arXiv:2012.09841), equation 7. `draw` makes the images of a last layer's weights; the losses are scalars of images.
    """
    image, pull = jax.vjp(draw, last)

    def strength(loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
        (gradient,) = pull(jax.grad(loss)(image))
        return jnp.linalg.norm(gradient.reshape(-1))

    ratio = strength(reconstruction) / (strength(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.minimum(ratio, 1e4))


def count_ids(ids_bhw: jax.Array, vocab_size: int, weight_b: jax.Array) -> jax.Array:
    """How often each id occurs, float32 [vocab_size]; images of weight 0 do not count."""
    weights = jnp.broadcast_to(weight_b[:, None, None], ids_bhw.shape)
    return jnp.bincount(ids_bhw.reshape(-1), weights=weights.reshape(-1), length=vocab_size)


def codebook_use(counts: np.ndarray) -> tuple[float, float]:
    """(share of the codes that occur at all, perplexity) of the counts of all ids.

    The perplexity is exp of the entropy in nats: the number of codes that, used evenly, would say as much.
    """
    shares = np.asarray(counts, np.float64) / np.sum(counts)
    used = shares[shares > 0]
    return len(used) / len(shares), float(np.exp(-np.sum(used * np.log(used))))
