"""Image tokenizers: an image becomes a small grid of integers, and the integers an image again.

Images are float32 [B, H, W, C] in [0, 1]; ids are int32 [B, h, w] below `vocab_size`. A convolutional encoder makes a
grid of features, a quantiser replaces each by the nearest of finitely many codes, and a decoder draws from the codes.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.convolution import ConvDecoder, ConvEncoder, conv, depth_to_space, space_to_depth
from zoo.models.layers import resolve_dtype


@dataclass(frozen=True)
class TokenizerConfig:
    """Encoder, quantiser and decoder of van den Oord et al. (2017), arXiv:1711.00937."""

    image_size: int = 32
    """Height and width it is made for; other multiples of a token's side work too."""
    channels: int = 3
    """Of the image."""
    shrink: int = 1
    """The encoder sees the means of squares of so many pixels a side; the decoder draws all of the pixels."""
    patch: int = 1
    """Squares of so many pixels a side become channels before the first convolution, and pixels after the last."""
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels at each resolution; between two of them the grid is halved."""
    blocks: int = 2
    """Residual blocks at each resolution, in the encoder and in the decoder."""
    sight: Literal[1, 3] = 3
    """Side of the encoder's convolutions. With 1 a token tells of its own square of pixels alone, which is easier to
    predict: the same square always has the same token."""
    quantiser: Literal["fsq", "vq", "ema"] = "fsq"
    """fsq: a fixed lattice of codes; vq: codes learned by gradient; ema: codes that are averages of their features."""
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    """Of fsq: values of each feature. There are as many codes as their product."""
    codes: int = 1024
    """Of vq and ema: number of codes."""
    code_width: int = 16
    """Of vq and ema: numbers in a code."""
    cosine: bool = False
    """Of vq and ema: features and codes have length 1, so the nearest code is that of the largest cosine."""
    rotation: bool = False
    """Of vq and ema: gradients pass to the features turned and scaled as the code is, not unchanged."""
    decay: float = 0.99
    """Of vq and ema: what the averages keep of themselves at a step."""
    revive: float = 0.05
    """Of vq and ema: a code used less than this share of an even use restarts at a feature of the batch; 0 is off."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU. Quantisers work in float32."""

    @property
    def factor(self) -> int:
        """Pixels along a side of the square that a token stands for."""
        return self.shrink * self.patch * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        return self.image_size // self.factor, self.image_size // self.factor

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels) if self.quantiser == "fsq" else self.codes


class Quantised(NamedTuple):
    """What a quantiser makes of features. All but the ids are float32 [B, h, w, D]."""

    code: jax.Array
    """The nearest codes; their gradient passes on to the features by the rule of the quantiser."""
    ids: jax.Array
    """The numbers of these codes: int32 [B, h, w]."""
    features: jax.Array
    """What was compared with the codes, with its own gradient: for the commitment loss. Of fsq: the codes."""
    nearest: jax.Array
    """The codes again, with the gradient of the codebook: for the codebook loss."""


class FSQ(nnx.Module):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): every feature is rounded by itself.

    Feature i takes `levels[i]` values, evenly spaced in [-1, 1]: from -1 to 1 when they are odd in number, from -1
    to 1 - 2 / levels[i] when even, so that 0 is always one of them. Code and id are the same number in two
    notations: the id's digits, the first one counting least, are the levels. Nothing is learned.
    """

    def __init__(self, levels: tuple[int, ...]):
        if not levels or min(levels) < 2:
            raise ZooError(f"levels {levels}: fsq needs at least one feature, and two or more levels of each")
        if math.prod(levels) > 2**24:
            raise ZooError(f"levels {levels} make {math.prod(levels)} codes; at most 2^24 can be numbered")
        self.levels = levels

    def __call__(self, z_bhwd: jax.Array, train: bool = False, key: jax.Array | None = None) -> Quantised:
        """The codes of features [B, h, w, len(levels)]; gradients pass the rounding unchanged."""
        halves, places = self._constants()
        odd = np.array(self.levels)[None, None, None] % 2
        # tanh reaches just short of the outermost rounding edges. An even number of levels has one more below 0
        # than above: all moves down by 1/2, and the input up by as much, so that 0 stays near the level 0.
        reach = jnp.array((np.array(self.levels) - 1)[None, None, None] * 0.4995, jnp.float32)
        down = jnp.array(0.5 * (1 - odd), jnp.float32)
        level = jnp.tanh(z_bhwd.astype(jnp.float32) + jnp.tan(down / reach)) * reach - down
        rounded = jax.lax.stop_gradient(jnp.round(level))
        code = straight_through(level, rounded) / halves
        ids = jnp.sum((rounded + halves).astype(jnp.int32) * places, axis=-1)
        fixed = rounded / halves
        return Quantised(code, ids, fixed, fixed)

    def codes_of(self, ids_bhw: jax.Array) -> jax.Array:
        """The codes float32 [B, h, w, D] of ids int32 [B, h, w]."""
        halves, places = self._constants()
        levels = jnp.array(self.levels, jnp.int32)[None, None, None]
        return ((ids_bhw[..., None] // places % levels).astype(jnp.float32) - halves) / halves

    def _constants(self) -> tuple[jax.Array, jax.Array]:
        """Levels below 0 (float32) and the place value of each digit (int32), [1, 1, 1, D]."""
        levels = np.array(self.levels)
        places = np.cumprod([1, *self.levels[:-1]])
        return (
            jnp.array(levels // 2, jnp.float32)[None, None, None],
            jnp.array(places, jnp.int32)[None, None, None],
        )


class VectorQuantiser(nnx.Module):
    """The nearest of K learned codes (van den Oord et al. 2017), with what was added to it since.

    `counts`, the averaged number of features that each code gets from a batch, is kept in any case. With `ema`
    (appendix A.1) the codes are no parameters: `sums`, the averaged sum of those features, is divided by them.
    With `cosine` (Yu et al. 2021, arXiv:2110.04627) features and codes are scaled to length 1. All statistics are
    sums over the whole batch, so under a mesh they are global.
    """

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        if min(config.codes, config.code_width) < 1 or not 0 <= config.decay < 1 or not 0 <= config.revive < 1:
            raise ZooError("codes and code_width must be at least 1, decay and revive in [0, 1)")
        self.config = config
        embedding_kd = jax.random.normal(rngs.params(), (config.codes, config.code_width))
        self.counts = nnx.BatchStat(jnp.ones(config.codes))
        self.embedding: nnx.Variable[jax.Array]
        if config.quantiser == "ema":
            self.embedding = nnx.BatchStat(embedding_kd)
            self.sums = nnx.BatchStat(jnp.copy(embedding_kd))
        else:
            self.embedding = nnx.Param(embedding_kd)
            # Where revival has moved the codes to: what gradients change cannot be set from here.
            self.offset = nnx.BatchStat(jnp.zeros_like(embedding_kd))

    def __call__(self, z_bhwd: jax.Array, train: bool = False, key: jax.Array | None = None) -> Quantised:
        """The codes of features [B, h, w, code_width]; with `train`, the statistics then learn from them.

        Raises ZooError when there are codes to revive and no key to draw by.
        """
        z_bhwd = z_bhwd.astype(jnp.float32)
        z_bhwd = unit(z_bhwd) if self.config.cosine else z_bhwd
        codebook_kd = self.codebook()
        products = jnp.einsum("bhwd,kd->bhwk", z_bhwd, codebook_kd, precision="highest")
        squares = jnp.sum(jnp.square(codebook_kd), axis=-1)[None, None, None]
        ids = jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)
        # Sums over features are matrix products: scatters are slow on TPUs, and in no fixed order on GPUs.
        chosen_bhwk = jax.nn.one_hot(ids, self.config.codes, dtype=jnp.float32)
        nearest = jnp.einsum("bhwk,kd->bhwd", chosen_bhwk, codebook_kd, precision="highest")
        if train:
            self._learn(jax.lax.stop_gradient(z_bhwd), chosen_bhwk, key)
        code = (rotate if self.config.rotation else straight_through)(z_bhwd, jax.lax.stop_gradient(nearest))
        return Quantised(code, ids, z_bhwd, nearest)

    def codebook(self) -> jax.Array:
        """All codes: float32 [K, D]."""
        codebook_kd = self.embedding[...]
        if self.config.quantiser == "vq":
            codebook_kd = codebook_kd + self.offset[...]
        return unit(codebook_kd) if self.config.cosine else codebook_kd

    def codes_of(self, ids_bhw: jax.Array) -> jax.Array:
        """The codes float32 [B, h, w, D] of ids int32 [B, h, w]."""
        return self.codebook()[ids_bhw]

    def _learn(self, z_bhwd: jax.Array, chosen_bhwk: jax.Array, key: jax.Array | None) -> None:
        config, averaged = self.config, self.config.quantiser == "ema"
        keep, add = config.decay, 1 - config.decay
        counts = keep * self.counts[...] + add * jnp.sum(chosen_bhwk, axis=(0, 1, 2))
        embedding_kd = jax.lax.stop_gradient(self.embedding[...])
        if averaged:
            new_kd = jnp.einsum("bhwk,bhwd->kd", chosen_bhwk, z_bhwd, precision="highest")
            sums_kd = keep * self.sums[...] + add * new_kd
            used = counts[:, None] > 1e-6  # a code that nothing chooses stays where it is
            embedding_kd = jnp.where(used, sums_kd / jnp.where(used, counts[:, None], 1.0), embedding_kd)
        if config.revive:
            if key is None:
                raise ZooError("revival draws from the features of the batch: give the model the key of the step")
            even = jnp.mean(counts)
            dead = counts < config.revive * even
            z_nd = z_bhwd.reshape(-1, config.code_width)
            drawn_kd = z_nd[jax.random.randint(key, (config.codes,), 0, len(z_nd))]
            counts = jnp.where(dead, even, counts)
            if averaged:
                embedding_kd = jnp.where(dead[:, None], drawn_kd, embedding_kd)
                sums_kd = jnp.where(dead[:, None], even * drawn_kd, sums_kd)
            else:
                self.offset[...] = jnp.where(dead[:, None], drawn_kd - embedding_kd, self.offset[...])
        self.counts[...] = counts
        if averaged:
            self.embedding[...], self.sums[...] = embedding_kd, sums_kd


class Tokenizer(nnx.Module):
    """The network of `TokenizerConfig`."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        if config.quantiser not in ("fsq", "vq", "ema"):
            raise unknown("quantiser", config.quantiser, ["fsq", "vq", "ema"])
        if config.sight not in (1, 3):
            raise ZooError(f"sight {config.sight}: convolutions of the encoder are 1×1 or 3×3")
        if not config.widths or min(*config.widths, config.shrink, config.patch, config.blocks, config.channels) < 1:
            raise ZooError("widths, shrink, patch, blocks and channels must be at least 1")
        if config.image_size < 1 or config.image_size % config.factor:
            raise ZooError(
                f"image_size {config.image_size} does not divide into squares of {config.factor} pixels "
                f" (shrink {config.shrink}, patch {config.patch}, halved {len(config.widths) - 1} times); change those"
            )
        self.config = config
        dtype = resolve_dtype(config.dtype)
        width = len(config.levels) if config.quantiser == "fsq" else config.code_width
        pixels = config.channels * config.patch**2
        self.encoder = ConvEncoder(pixels, config.widths, config.blocks, width, rngs, dtype, config.sight)
        self.quantiser = FSQ(config.levels) if config.quantiser == "fsq" else VectorQuantiser(config, rngs)
        self.decoder = ConvDecoder(width, config.widths, config.blocks, pixels * config.shrink**2, rngs, dtype)

    @property
    def vocab_size(self) -> int:
        """Number of codes: ids are below it."""
        return self.config.vocab_size

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens of an image of `image_size`."""
        return self.config.grid

    def __call__(
        self, x_bhwc: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, Quantised]:
        """The reconstruction float32 [B, H, W, C] of images float32 [B, H, W, C] in [0, 1], and its codes.

        With `train`, the quantiser's statistics are updated (dead codes are revived by `key`), and the reconstruction
        is not clipped to [0, 1], so that every pixel has a gradient. Raises ZooError for images that do not divide
        into tokens, and where there are codes to revive but no key.
        """
        quantised = self.quantiser(self.features(x_bhwc), train, key)
        image = self.draw(quantised.code)
        return image if train else jnp.clip(image, 0, 1), quantised

    def encode(self, x_bhwc: jax.Array) -> jax.Array:
        """The tokens int32 [B, H / f, W / f] of images float32 [B, H, W, C] in [0, 1]. Raises as a call does."""
        return self.quantiser(self.features(x_bhwc)).ids

    def decode(self, ids_bhw: jax.Array) -> jax.Array:
        """The images float32 [B, f h, f w, C] in [0, 1] of tokens int32 [B, h, w].

        Raises ZooError for ids that are no tokens; under jit, where they have no values yet, only for their type.
        """
        ids_bhw = jnp.asarray(ids_bhw)
        if ids_bhw.ndim != 3 or not jnp.issubdtype(ids_bhw.dtype, jnp.integer):
            raise ZooError(f"tokens are {ids_bhw.dtype}{list(ids_bhw.shape)}, the model wants integers [B, h, w]")
        if not isinstance(ids_bhw, jax.core.Tracer) and ids_bhw.size:
            low, high = int(ids_bhw.min()), int(ids_bhw.max())
            if low < 0 or high >= self.vocab_size:
                raise ZooError(f"ids go from {low} to {high}; this tokenizer has 0 to {self.vocab_size - 1}")
        return jnp.clip(self.draw(self.quantiser.codes_of(ids_bhw.astype(jnp.int32))), 0, 1)

    def features(self, x_bhwc: jax.Array) -> jax.Array:
        """What is quantised: [B, H / f, W / f, D]. Raises ZooError for images that do not divide into tokens."""
        config = self.config
        if x_bhwc.ndim != 4 or x_bhwc.shape[-1] != config.channels or not jnp.issubdtype(x_bhwc.dtype, jnp.floating):
            raise ZooError(
                f"images are {x_bhwc.dtype}{list(x_bhwc.shape)}, the model wants floats in [0, 1]"
                f" [B, H, W, {config.channels}]"
            )
        if x_bhwc.shape[1] % config.factor or x_bhwc.shape[2] % config.factor:
            raise ZooError(
                f"images of {x_bhwc.shape[1]}×{x_bhwc.shape[2]} do not divide into squares of {config.factor} pixels,"
                " one a token; resize or pad them"
            )
        seen_bhwc = averaged(2 * x_bhwc.astype(jnp.float32) - 1, config.shrink)
        return self.encoder(space_to_depth(seen_bhwc, config.patch))

    def draw(self, code_bhwd: jax.Array) -> jax.Array:
        """The image of a grid of codes, float32 and not clipped."""
        side = self.config.patch * self.config.shrink
        return 0.5 * depth_to_space(self.decoder(code_bhwd).astype(jnp.float32), side) + 0.5


class PatchDiscriminator(nnx.Module):
    """Tells real squares of an image from reconstructed ones (Isola et al. 2017, section 3.2.2), without norms."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs, dtype: Any):
        self.conv1 = conv(4 * channels, width, 3, rngs, dtype)
        self.conv2 = conv(4 * width, 2 * width, 3, rngs, dtype)
        self.conv3 = conv(2 * width, 2 * width, 3, rngs, dtype)
        self.conv_out = conv(2 * width, 1, 1, rngs, dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Logits float32 [B, H / 4, W / 4] of images in [0, 1], above 0 for what looks real."""
        x_bhwc = nnx.leaky_relu(self.conv1(space_to_depth(2 * x_bhwc - 1)), 0.2)
        x_bhwc = nnx.leaky_relu(self.conv2(space_to_depth(x_bhwc)), 0.2)
        x_bhwc = nnx.leaky_relu(self.conv3(x_bhwc), 0.2)
        return self.conv_out(x_bhwc)[..., 0].astype(jnp.float32)


class JudgedTokenizer(nnx.Module):
    """A tokenizer, and the critic that it is trained against when `critic_width` is not 0."""

    def __init__(self, config: TokenizerConfig, critic_width: int, rngs: nnx.Rngs):
        self.tokenizer = Tokenizer(config, rngs)
        if critic_width:
            self.critic = PatchDiscriminator(config.channels, critic_width, rngs, resolve_dtype(config.dtype))


def averaged(x_bhwc: jax.Array, factor: int) -> jax.Array:
    """[B, H, W, C] to [B, H / f, W / f, C]: the mean of each square of f × f pixels."""
    b, h, w, c = x_bhwc.shape
    return x_bhwc.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def straight_through(z: jax.Array, code: jax.Array) -> jax.Array:
    """The value of `code`, bit for bit, with the gradient of `z` (Bengio et al. 2013)."""
    return code + (z - jax.lax.stop_gradient(z))


def rotate(z_bhwd: jax.Array, code_bhwd: jax.Array) -> jax.Array:
    """The value of `code` with the gradient of λ R z, where R turns z to the code and λ scales it to its length.

    Fifty et al. 2024, arXiv:2410.06424, section 4.2: R = 1 - 2 r rᵀ + 2 q eᵀ, where e is the direction of z, q that of
    the code and r that of e + q; R and λ are constants.
    """
    length_z, length_code = (jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12) for x in (z_bhwd, code_bhwd))
    e, q = z_bhwd / length_z, code_bhwd / length_code
    r = unit(e + q)
    e, q, r, scale = jax.lax.stop_gradient((e, q, r, length_code / length_z))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=-1, keepdims=True)

    turned = scale * (z_bhwd - 2 * dot(r, z_bhwd) * r + 2 * dot(e, z_bhwd) * q)
    return straight_through(turned, code_bhwd)


def unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1 along its last axis; zeros stay zeros."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


VARIANTS: dict[str, TokenizerConfig] = {
    "tokenizer-8": TokenizerConfig(image_size=8, channels=1, widths=(32, 64), blocks=1, levels=(5, 5, 5)),
    "tokenizer-28": TokenizerConfig(image_size=28, channels=1, patch=2, widths=(32, 64), blocks=1, levels=(8, 8, 6, 5)),
    "tokenizer-scenes": TokenizerConfig(64, shrink=2, patch=4, widths=(64,), sight=1, levels=(8, 5, 5, 5)),
    "tokenizer-32": TokenizerConfig(widths=(128, 128, 256), levels=(8, 8, 8, 6, 5)),
}

SHARDING = (
    (r"kernel$", P(None, None, None, "fsdp")),
    (r"(embedding|sums|offset)$", P(None, None)),  # every feature is compared with every code
)
