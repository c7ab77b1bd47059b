"""Variational inference: evidence bounds of latent-variable models of images, and likelihoods of pixels.

All values are in nats, float32, summed over dimensions, with one value an example for the caller to weigh and average.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from zoo.errors import ZooError, unknown
from zoo.models.vae import LIKELIHOODS, shift_of, split_mixture

LOG_2PI = math.log(2 * math.pi)
MIN_VARIANCE = 1e-6  # a thousandth of the range of a pixel: below it, what is modelled is rounding
MIN_LOG_SCALE = -7.0  # as in PixelCNN++: all the mass in one of 256 values


def bernoulli_log_prob(x_bhwc: jax.Array, logits_bhwc: jax.Array) -> jax.Array:
    """log p(x) [B] of pixels in [0, 1] under independent Bernoullis; between 0 and 1 it is the cross-entropy."""
    return _sum(x_bhwc * jax.nn.log_sigmoid(logits_bhwc) + (1 - x_bhwc) * jax.nn.log_sigmoid(-logits_bhwc))


def gaussian_log_prob(x_bhwc: jax.Array, mean_bhwc: jax.Array, variance: jax.Array) -> jax.Array:
    """log-density [B] of pixels under independent Gaussians of one variance (a scalar)."""
    return -0.5 * _sum(jnp.square(x_bhwc - mean_bhwc) / variance + jnp.log(variance) + LOG_2PI)


def optimal_variance(x_bhwc: jax.Array, mean_bhwc: jax.Array) -> jax.Array:
    """The one variance that makes a batch likeliest: its mean squared error (Rybkin et al. 2021, equation 7)."""
    return jnp.maximum(jnp.mean(jnp.square(x_bhwc - mean_bhwc)), MIN_VARIANCE)


def logistic_mixture_log_prob(x_bhwc: jax.Array, out_bhwp: jax.Array) -> jax.Array:
    """log p(x) [B] of pixels k / 255, k = 0 to 255, under mixtures of discretised logistics.

    Salimans et al. 2017, arXiv:1701.05517, equations 1 to 3. The outermost values take the tails, so that the
    probabilities of the 256 sum to one. The colours of a pixel share the component, and the mean of each depends on the
    colours before it.
    """
    channels = x_bhwc.shape[-1]
    logits, means, log_scales, coefficients = split_mixture(out_bhwp.astype(jnp.float32), channels)
    x = 2 * x_bhwc.astype(jnp.float32) - 1
    before = [x[..., j, None] for j in range(channels)]
    centres = [means[..., c] + shift_of(coefficients, before, c) for c in range(channels)]
    inverse = jnp.exp(-jnp.maximum(log_scales, MIN_LOG_SCALE))
    middle = (x[..., None, :] - jnp.stack(jnp.broadcast_arrays(*centres), axis=-1)) * inverse
    low, high = middle - inverse / 255, middle + inverse / 255
    lowest, highest = x[..., None, :] < -1 + 1 / 255, x[..., None, :] > 1 - 1 / 255
    # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)) has no difference of close numbers, and so no special cases
    width = jnp.log(-jnp.expm1(-2 * inverse / 255))
    parts = jnp.where(highest, 0.0, jax.nn.log_sigmoid(high)) + jnp.where(lowest, 0.0, jax.nn.log_sigmoid(-low))
    parts = parts + jnp.where(lowest | highest, 0.0, width)
    return _sum(jax.nn.logsumexp(jax.nn.log_softmax(logits) + jnp.sum(parts, axis=-1), axis=-1))


def log_likelihood(model: Any, x_bhwc: jax.Array, out_bhwp: jax.Array) -> jax.Array:
    """log p(x | z) [B] under the likelihood of the model's config, given what its `decode` gave."""
    kind = model.config.likelihood
    if kind == "bernoulli":
        return bernoulli_log_prob(x_bhwc, out_bhwp)
    if kind == "gaussian":
        return gaussian_log_prob(x_bhwc, out_bhwp, model.variance[...])
    if kind == "logistic":
        return logistic_mixture_log_prob(x_bhwc, out_bhwp)
    raise unknown("likelihood", kind, LIKELIHOODS)


def gaussian_kl(mean_bd: jax.Array, log_var_bd: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of each dimension, [B, D] (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (jnp.square(mean_bd) + jnp.expm1(log_var_bd) - log_var_bd)


def free_bits(kl_bd: jax.Array, nats: float) -> jax.Array:
    """The KL term of a batch, a scalar: each dimension's mean over the batch, but at least `nats`, summed.

    Kingma et al. 2016, arXiv:1606.04934, equation 15: a dimension below its free nats feels no pull to the prior.
    """
    if nats < 0:
        raise ZooError(f"free bits of {nats} nats; give at least 0")
    return jnp.sum(jnp.maximum(jnp.mean(kl_bd, axis=0), nats))


def kl_weight(step: jax.Array, beta: float, warmup: int) -> jax.Array:
    """The weight of the KL term: up from beta / warmup at step 0 to `beta` at step warmup - 1, and constant then."""
    return beta * jnp.minimum((step.astype(jnp.float32) + 1) / max(1, warmup), 1.0)


def evidence(
    model: Any, x_bhwc: jax.Array, label_b: jax.Array | None, noise_bd: jax.Array, train: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The two parts of the bound by one sample z = mean + std · noise: log p(x | z) [B], and the KL [B, D].

    Their difference, the KL summed over D, is the evidence lower bound. With `train`, a Gaussian's variance is the
    best one for this batch, and the model's own, which is used without, moves towards it by a hundredth.
    """
    mean_bd, log_var_bd = model.encode(x_bhwc, label_b)
    out = model.decode(mean_bd + jnp.exp(0.5 * log_var_bd) * noise_bd, label_b)
    kl_bd = gaussian_kl(mean_bd, log_var_bd)
    if train and model.config.likelihood == "gaussian":
        variance = optimal_variance(x_bhwc, out)
        model.variance[...] = 0.99 * model.variance[...] + 0.01 * jax.lax.stop_gradient(variance)
        return gaussian_log_prob(x_bhwc, out, variance), kl_bd
    return log_likelihood(model, x_bhwc, out), kl_bd


def held_out_scores(
    model: Any, x_bhwc: jax.Array, label_b: jax.Array | None, keys_b: jax.Array
) -> dict[str, jax.Array]:
    """What an evaluation reports of each image, [B]: the negative bound in nats as `loss`, its parts, `bits_per_dim`.

    `keys_b` has a key for each image's sample of q(z | x).
    """
    fit_b, kl_bd = evidence(model, x_bhwc, label_b, normal_of(keys_b, model.config.latents))
    kl_b = jnp.sum(kl_bd, axis=-1)
    bits_b = bits_per_dim(kl_b - fit_b, x_bhwc[0].size, density=model.config.likelihood == "gaussian")
    return {"loss": kl_b - fit_b, "kl": kl_b, "reconstruction": -fit_b, "bits_per_dim": bits_b}


def importance_bound(
    model: Any, x_bhwc: jax.Array, label_b: jax.Array | None, keys_b: jax.Array, samples: int, chunk: int = 10
) -> jax.Array:
    """The bound of Burda et al. 2016 (arXiv:1509.00519, equation 8) on log p(x) by K samples of q(z | x), [B].

    It is log 1/K Σ p(x, z) / q(z | x), which rises with K to log p(x). `keys_b` has a key for each image; sample k
    depends on its image's key and k alone, whatever the chunk, which is how many samples are decoded at once. Raises
    ZooError unless both are at least 1.
    """
    if samples < 1 or chunk < 1:
        raise ZooError(f"{samples} importance samples in chunks of {chunk}; give at least 1 of both")
    mean_bd, log_var_bd = model.encode(x_bhwc, label_b)

    def log_weight(k: jax.Array) -> jax.Array:
        noise_bd = normal_of(jax.vmap(jax.random.fold_in, (0, None))(keys_b, k), mean_bd.shape[-1])
        fit_b, ratio_b = log_weight_parts(model, x_bhwc, label_b, mean_bd, log_var_bd, noise_bd)
        return fit_b + ratio_b

    def body(total_b: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        k = start + jnp.arange(chunk)
        weights_kb = jnp.where((k < samples)[:, None], jax.vmap(log_weight)(k), -jnp.inf)
        return jnp.logaddexp(total_b, jax.nn.logsumexp(weights_kb, axis=0)), None

    chunk = min(chunk, samples)
    total_b, _ = jax.lax.scan(body, jnp.full(x_bhwc.shape[0], -jnp.inf), jnp.arange(0, samples, chunk))
    return total_b - math.log(samples)


def log_weight_parts(
    model: Any,
    x_bhwc: jax.Array,
    label_b: jax.Array | None,
    mean_bd: jax.Array,
    log_var_bd: jax.Array,
    noise_bd: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """log p(x | z) and log p(z) - log q(z | x), each [B], of the sample z = mean + std · noise of q."""
    z_bd = mean_bd + jnp.exp(0.5 * log_var_bd) * noise_bd
    ratio_b = 0.5 * jnp.sum(jnp.square(noise_bd) + log_var_bd - jnp.square(z_bd), axis=-1)  # the constants cancel
    return log_likelihood(model, x_bhwc, model.decode(z_bd, label_b)), ratio_b


def training_loss(
    model: Any, x_bhwc: jax.Array, label_b: jax.Array | None, noise_kbd: jax.Array, beta: jax.Array, free: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What training lowers, summed over the batch, and the sums of `kl` and `reconstruction`, all in nats.

    With one row of noise, the negative evidence bound with its KL in closed form, weighed by beta and with `free` nats
    a dimension. With K rows, the negative bound of K importance samples (Burda et al. 2016, equation 8), which is
    closer to log p(x), with beta before log p(z) / q(z | x). Raises ZooError for K rows with free nats or with a
    Gaussian likelihood, whose best variance is that of one sample, and for no row.
    """
    samples = len(noise_kbd)
    if samples < 1:
        raise ZooError(f"a bound of {samples} samples; give at least 1")
    if samples == 1:
        fit_b, kl_bd = evidence(model, x_bhwc, label_b, noise_kbd[0], train=True)
        loss = beta * free_bits(kl_bd, free) * len(x_bhwc) - fit_b.sum()
        return loss, {"kl": kl_bd.sum(), "reconstruction": -fit_b.sum()}
    if free or model.config.likelihood == "gaussian":
        raise ZooError(f"free bits and the gaussian likelihood are for the bound of 1 sample, and this is of {samples}")
    mean_bd, log_var_bd = model.encode(x_bhwc, label_b)
    parts = functools.partial(log_weight_parts, model, x_bhwc, label_b, mean_bd, log_var_bd)
    fit_kb, ratio_kb = jax.vmap(parts)(noise_kbd)
    bound_b = jax.nn.logsumexp(fit_kb + beta * ratio_kb, axis=0) - math.log(samples)
    kl = gaussian_kl(mean_bd, log_var_bd).sum()
    return -bound_b.sum(), {"kl": kl, "reconstruction": -fit_kb.mean(axis=0).sum()}


def weighted_sums(values: dict[str, jax.Array], weight_b: jax.Array) -> dict[str, jax.Array]:
    """Sums of values [B] under weights [B], and the `count` to divide them by: what an evaluation adds up."""
    return {name: jnp.sum(value_b * weight_b) for name, value_b in values.items()} | {"count": jnp.sum(weight_b)}


def bits_per_dim(nats: Any, dimensions: int, density: bool = False) -> Any:
    """Bits a dimension of a negative log-likelihood in nats.

    With `density`, that is of a density over [0, 1], and the bits are those of values in 256 steps, for small steps:
    8 more. Either way a uniform model of 256 values has 8 bits.
    """
    return nats / (dimensions * math.log(2)) + (8.0 if density else 0.0)


def content_keys(key: jax.Array, image_bhwc: jax.Array) -> jax.Array:
    """A random key for each of the images uint8 [B, H, W, C], which depends on its pixels and `key` alone."""
    factors = jax.random.bits(key, image_bhwc.shape[1:], jnp.uint32)
    hash_b = jnp.sum(image_bhwc.astype(jnp.uint32) * factors[None], axis=(1, 2, 3), dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, hash_b)


def normal_of(keys_b: jax.Array, dimensions: int) -> jax.Array:
    """Standard normal noise [B, D], each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, (dimensions,)))(keys_b)


def binarise(key: jax.Array, x_bhwc: jax.Array, image_bhwc: jax.Array) -> jax.Array:
    """Every pixel 1 with its own value x in [0, 1] as probability, else 0 (Salakhutdinov and Murray 2008).

    What is drawn depends on the key and on the pixels of `image`, uint8: with the same key it is the same at every
    sight of an image (static), with the key of the step it is new (dynamic).
    """
    keys_b = content_keys(key, image_bhwc)
    return jax.vmap(lambda key, x: jax.random.bernoulli(key, x).astype(jnp.float32))(keys_b, x_bhwc)


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x.astype(jnp.float32), axis=tuple(range(1, x.ndim)))
