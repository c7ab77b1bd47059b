"""Variational autoencoders (Kingma and Welling 2014, arXiv:1312.6114) with convolutional encoder and decoder.

Images are float32 [B, H, W, C] in [0, 1], latents float32 [B, latents] with a standard normal prior. What the decoder
gives are the parameters of a likelihood of the pixels; `zoo.objectives.variational` evaluates it.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.convolution import ConvDecoder, ConvEncoder, depth_to_space, space_to_depth
from zoo.models.layers import resolve_dtype

LIKELIHOODS = ("bernoulli", "gaussian", "logistic")


@dataclass(frozen=True)
class VAEConfig:
    """Residual convolutions down to a small grid, and dense layers from there to the latent vector."""

    image_size: int = 28
    """Height and width in pixels; a multiple of patch · 2^(len(widths) - 1)."""
    channels: int = 1
    """Of the image."""
    latents: int = 32
    """Size of the latent vector."""
    patch: int = 1
    """Squares of this many pixels that become channels before the first convolution; large ones are fast."""
    widths: tuple[int, ...] = (32, 64)
    """Channels at each resolution; each next one has half the height and width."""
    blocks: int = 1
    """Residual blocks at each resolution."""
    dense: tuple[int, ...] = ()
    """Widths of dense layers between grid and latent vector: on a CPU they do more in the same time."""
    classes: int = 0
    """With classes, encoder and decoder are told that of the image; 0 is unconditional."""
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
    """Of the pixels: Bernoulli for binary images; Gaussian with one shared variance (sigma-VAE); mixture of
    discretised logistics for 256 values."""
    mixtures: int = 10
    """Components of the mixture of logistics."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""


class VAE(nnx.Module):
    """The network of `VAEConfig`."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        check_config(config)
        self.config = config
        dtype = resolve_dtype(config.dtype)
        pixels, top = config.patch**2, config.widths[-1]
        self.grid = config.image_size // (config.patch * 2 ** (len(config.widths) - 1))
        features = self.grid**2 * top
        self.encoder = ConvEncoder(pixels * config.channels, config.widths, config.blocks, top, rngs, dtype)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)

        inner = (features, *config.dense)
        self.dense_in = nnx.List([linear(a, b) for a, b in itertools.pairwise(inner)])
        self.to_latent = linear(inner[-1] + config.classes, 2 * config.latents)
        self.from_latent = linear(config.latents + config.classes, inner[-1])
        self.dense_out = nnx.List([linear(a, b) for a, b in itertools.pairwise(inner[::-1])])
        self.decoder = ConvDecoder(top, config.widths, config.blocks, pixels * outputs(config), rngs, dtype)
        if config.likelihood == "gaussian":
            self.variance = nnx.BatchStat(jnp.ones(()))

    def encode(self, x_bhwc: jax.Array, label_b: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the diagonal Gaussian q(z | x), each float32 [B, latents].

        Images are float32 [B, H, W, C] in [0, 1], labels int [B] where the model has classes. Raises ZooError for
        others.
        """
        config = self.config
        shape = (config.image_size, config.image_size, config.channels)
        if x_bhwc.shape[1:] != shape:
            raise ZooError(f"images are {list(x_bhwc.shape)}, the model wants [B, {', '.join(map(str, shape))}]")
        if not jnp.issubdtype(x_bhwc.dtype, jnp.floating):
            raise ZooError(f"images are {x_bhwc.dtype}, the model wants floats in [0, 1]; divide by 255")
        h_bhwc = self.encoder(space_to_depth(2 * x_bhwc - 1, config.patch))
        h_bf = nnx.silu(h_bhwc.reshape(h_bhwc.shape[0], -1))
        for layer in self.dense_in:
            h_bf = nnx.silu(layer(h_bf))
        mean, log_var = jnp.split(self.to_latent(self._with_class(h_bf, label_b)).astype(jnp.float32), 2, axis=-1)
        return mean, log_var

    def decode(self, z_bd: jax.Array, label_b: jax.Array | None = None) -> jax.Array:
        """The parameters of the likelihood, float32 [B, H, W, outputs], of latents float32 [B, latents].

        Bernoulli: a logit a channel. Gaussian: a mean in [0, 1] a channel. Logistic: as `split_mixture` says.
        """
        config = self.config
        h_bf = self.from_latent(self._with_class(z_bd, label_b))
        for layer in self.dense_out:
            h_bf = layer(nnx.silu(h_bf))
        h_bhwc = self.decoder(h_bf.reshape(-1, self.grid, self.grid, config.widths[-1]))
        out = depth_to_space(h_bhwc, config.patch).astype(jnp.float32)
        return nnx.sigmoid(out) if config.likelihood == "gaussian" else out

    def mean(self, out_bhwp: jax.Array) -> jax.Array:
        """The expected image float32 [B, H, W, C] in [0, 1] under the parameters that `decode` gave."""
        if self.config.likelihood == "bernoulli":
            return nnx.sigmoid(out_bhwp)
        if self.config.likelihood == "gaussian":
            return out_bhwp
        logits, means, _, coefficients = split_mixture(out_bhwp, self.config.channels)
        expected: list[jax.Array] = []
        for c in range(self.config.channels):  # linear in the channels before, so expectations pass through
            expected.append(means[..., c] + shift_of(coefficients, expected, c))
        means = jnp.stack(expected, axis=-1)
        return jnp.clip((jnp.sum(nnx.softmax(logits)[..., None] * means, axis=-2) + 1) / 2, 0, 1)

    def _with_class(self, x_bf: jax.Array, label_b: jax.Array | None) -> jax.Array:
        if not self.config.classes:
            return x_bf
        if label_b is None:
            raise ZooError(f"the model has {self.config.classes} classes; give the label of every image")
        return jnp.concatenate([x_bf, jax.nn.one_hot(label_b, self.config.classes, dtype=x_bf.dtype)], axis=-1)


def outputs(config: VAEConfig) -> int:
    """Parameters of the likelihood of a pixel."""
    c = config.channels
    return config.mixtures * (1 + 2 * c + c * (c - 1) // 2) if config.likelihood == "logistic" else c


def split_mixture(out: jax.Array, channels: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of outputs [..., P] a mixture of K logistics over colours: (logits, means, log-scales, coefficients).

    Their shapes are [..., K], [..., K, C], [..., K, C] and [..., K, C (C - 1) / 2]. Colours are scaled to [-1, 1].
    As in PixelCNN++ (Salimans et al. 2017, equation 3), the mean of a channel depends on the channels before it, by
    coefficients in [-1, 1] for (1, 0), (2, 0), (2, 1), and so on.
    """
    pairs = channels * (channels - 1) // 2
    mixtures = out.shape[-1] // (1 + 2 * channels + pairs)
    out = out.reshape(*out.shape[:-1], mixtures, -1)
    logits, means, log_scales, coefficients = jnp.split(out, (1, 1 + channels, 1 + 2 * channels), axis=-1)
    return logits[..., 0], means, log_scales, jnp.tanh(coefficients)


def shift_of(coefficients: jax.Array, before: list[jax.Array], channel: int) -> jax.Array:
    """What the values `before`, each [..., K], of the earlier channels add to the mean of a channel, [..., K]."""
    first = channel * (channel - 1) // 2
    terms = (coefficients[..., first + j] * before[j] for j in range(channel))
    return sum(terms, jnp.zeros(coefficients.shape[:-1], coefficients.dtype))


def check_config(config: VAEConfig) -> None:
    """Raises ZooError for sizes that make no network."""
    if config.likelihood not in LIKELIHOODS:
        raise unknown("likelihood", config.likelihood, LIKELIHOODS)
    if min(config.image_size, config.channels, config.latents, config.patch, config.mixtures, *config.dense) < 1:
        raise ZooError("image_size, channels, latents, patch, mixtures and dense must be at least 1")
    if not config.widths or min(config.classes, config.blocks) < 0:
        raise ZooError("widths needs an entry for each resolution, and classes and blocks are at least 0")
    factor = config.patch * 2 ** (len(config.widths) - 1)
    if config.image_size % factor:
        raise ZooError(
            f"image_size {config.image_size} is not a multiple of {factor} (patch {config.patch}, and half the size"
            f" {len(config.widths) - 1} times); resize the images, or change patch or widths"
        )


VARIANTS = {
    "vae-digits": VAEConfig(image_size=8, latents=16, patch=2, widths=(32,)),
    "vae-fashion": VAEConfig(image_size=28, latents=32, patch=4, widths=(16,), blocks=0, dense=(512, 512)),
    "vae-cifar10": VAEConfig(
        image_size=32, channels=3, latents=256, widths=(128, 256, 256), blocks=2, likelihood="logistic"
    ),
}

# Nothing lies on `tensor`: see gan.py.
SHARDING = (
    (r"(conv\w*|down/\d+|up/\d+)/kernel$", P(None, None, None, "fsdp")),
    (r"((to|from)_latent|dense_(in|out)/\d+)/kernel$", P("fsdp", None)),
)
