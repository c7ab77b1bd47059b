"""Generative adversarial networks: DCGAN, and a residual network without normalisation.

Images are float32 [B, H, W, C] in [-1, 1]: generators end in tanh. Logits are float32 [B]. Both networks of a GAN may
be told a condition: a class int [B], or a vector float [B, D] such as attributes or the embedding of a text.

Convolutions with a stride are computed as plain ones with the same result: on a CPU the gradients of the others are
about ten times slower.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.convolution import BatchNorm, convolve, depth_to_space, space_to_depth, strided_conv, upsample
from zoo.models.layers import resolve_dtype

ARCHITECTURES = ("dcgan", "residual")
UPSAMPLING = ("repeat", "depth_to_space", "transposed")

Init = Callable[..., jax.Array]
linear_init = initializers.variance_scaling(1.0, "fan_in", "normal")
relu_init = initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015, equation 10
dcgan_init = initializers.normal(0.02)


@dataclass(frozen=True)
class GANConfig:
    """A generator and its discriminator."""

    architecture: Literal["dcgan", "residual"] = "residual"
    """Radford et al. (2015), arXiv:1511.06434; or residual blocks without normalisation, which start as the
    identity, in the manner of R3GAN (Huang et al. 2024, arXiv:2501.05441)."""
    image_size: int = 64
    """Height and width in pixels: 4 to 7, doubled once or more, to at most 128."""
    channels: int = 3
    """Of the image."""
    latent: int = 64
    """Size of the latent vector."""
    width: int = 64
    """Channels at the finest resolution; each halving doubles them."""
    max_width: int = 512
    """Most channels at any resolution."""
    blocks: int = 1
    """Residual blocks at each resolution."""
    upsampling: Literal["repeat", "depth_to_space", "transposed"] = "repeat"
    """How the generator doubles the resolution: nearest neighbours and a convolution, a convolution whose channels
    become pixels, or a transposed 4×4 convolution (DCGAN's)."""
    classes: int = 0
    """Number of classes to be told; 0 is none."""
    vector: int = 0
    """Size of the vector to be told; 0 is none."""
    embed: int = 64
    """Size of what the generator makes of the condition, beside its latent."""
    batch_norm: bool = True
    """Batch normalisation in DCGAN's discriminator. Gradient penalties want none: they are of single images."""
    spectral_norm: bool = False
    """Divide the kernels of the discriminator by their largest singular value (Miyato et al. 2018)."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""


class Vector(nnx.Variable):
    """The running estimate of a kernel's first singular vector."""


class Layer(nnx.Module):
    """A kernel, its last axis the outputs, with a bias or none, divided by its spectral norm or not."""

    def __init__(
        self,
        shape: tuple[int, ...],
        rngs: nnx.Rngs,
        dtype: Any,
        init: Init = relu_init,
        bias: bool = True,
        spectral: bool = False,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1])) if bias else None
        # New kernels point nowhere in particular, so that any vector is as good a start as a random one.
        self.u = Vector(jnp.full(shape[-1], shape[-1] ** -0.5)) if spectral else None

    def weight(self, train: bool) -> jax.Array:
        """The kernel in the compute dtype; with `train` the singular vector goes one step on."""
        kernel = self.kernel[...]
        if self.u is not None:
            kernel, u = spectral_normalise(kernel, self.u[...])
            if train:
                self.u[...] = u
        return kernel.astype(self.dtype)

    def shifted(self, y: jax.Array) -> jax.Array:
        """`y` plus the bias, one value for each entry of the last axis."""
        if self.bias is None:
            return y
        return y + self.bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Dense(Layer):
    """[B, inputs] to [B, outputs]."""

    def __call__(self, x_bd: jax.Array, train: bool = False) -> jax.Array:
        return self.shifted(x_bd.astype(self.dtype) @ self.weight(train))


class Conv(Layer):
    """A convolution of an odd kernel [k, k, I, O], padded by (k - 1) / 2."""

    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        return self.shifted(convolve(x_bhwc.astype(self.dtype), self.weight(train), "SAME"))


class StridedConv(Layer):
    """A convolution of kernel [4, 4, I, O] and stride 2, padded by 1: [B, H, W, I] to [B, H / 2, W / 2, O]."""

    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        return self.shifted(strided_conv(x_bhwc.astype(self.dtype), self.weight(train), pad=1))


class TransposedConv(Layer):
    """A transposed convolution of kernel [4, 4, I, O], stride 2 and padding 1: [B, H, W, I] to [B, 2H, 2W, O].

    y[2i + k - 1] += x[i] kernel[k], in both directions: the kernel of PyTorch's ConvTranspose2d [I, O, 4, 4] with its
    axes moved. Even and odd rows and columns of y see 2 × 2 pixels of x each, through a quarter of the kernel:
    four 2×2 convolutions, computed as one.
    """

    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        b, h, w, _ = x_bhwc.shape
        kernel = self.weight(train)[::-1, ::-1]
        inputs, outputs = kernel.shape[2:]
        kernel = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 4, 1, 3, 5)
        padded = jnp.pad(x_bhwc.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = convolve(padded, kernel.reshape(2, 2, inputs, 4 * outputs), "VALID")
        y = y.reshape(b, h + 1, w + 1, 2, 2, outputs)
        y = jnp.stack([y[:, odd : odd + h, :, odd] for odd in (0, 1)], axis=2)
        y = jnp.stack([y[:, :, :, odd : odd + w, odd] for odd in (0, 1)], axis=4)
        return self.shifted(y.reshape(b, 2 * h, 2 * w, outputs))


class Up(nnx.Module):
    """Twice the resolution, [B, H, W, inputs] to [B, 2H, 2W, outputs], in one of the three ways of the config.

    `size` is that of the kernel, where the convolution is not the transposed one.
    """

    def __init__(self, config: GANConfig, inputs: int, outputs: int, size: int, rngs: nnx.Rngs, **options: Any):
        self.way, self.size = config.upsampling, size
        dtype = resolve_dtype(config.dtype)
        if self.way == "transposed":
            self.conv: Layer = TransposedConv((4, 4, inputs, outputs), rngs, dtype, **options)
        else:
            outputs = 4 * outputs if self.way == "depth_to_space" else outputs
            self.conv = Conv((size, size, inputs, outputs), rngs, dtype, **options)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        if self.way == "transposed":
            return self.conv(x_bhwc)
        if self.way == "depth_to_space":
            return depth_to_space(self.conv(x_bhwc))
        # A 1×1 convolution does the same before, for a quarter of the cost.
        return upsample(self.conv(x_bhwc)) if self.size == 1 else self.conv(upsample(x_bhwc))


class Block(nnx.Module):
    """x + conv(leaky(conv(leaky(x)))). Without spectral norm the last kernel is zero at first."""

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: Any, spectral: bool = False):
        shape = (3, 3, width, width)
        self.conv1 = Conv(shape, rngs, dtype, spectral=spectral)
        # A zero kernel has no singular vector to be divided by.
        self.conv2 = Conv(shape, rngs, dtype, relu_init if spectral else initializers.zeros, spectral=spectral)

    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        return x_bhwc + self.conv2(leaky(self.conv1(leaky(x_bhwc), train)), train)


class Generator(nnx.Module):
    """Latents [B, latent] to images [B, H, W, C] in [-1, 1]."""

    def __init__(self, config: GANConfig, rngs: nnx.Rngs):
        self.config = config
        dtype = resolve_dtype(config.dtype)
        base, widths = shape_of(config)
        widths = widths[::-1]
        told = condition_size(config)
        if told:
            self.embed = Dense((told, config.embed), rngs, dtype, linear_init, bias=False)
        inputs = config.latent + (config.embed if told else 0)
        dcgan = config.architecture == "dcgan"
        init = dcgan_init if dcgan else linear_init
        self.project = Dense((inputs, base * base * widths[0]), rngs, dtype, init, bias=not dcgan)
        if dcgan:
            pairs = itertools.pairwise((*widths, config.channels))
            self.bn = nnx.List([BatchNorm(width) for width in widths])
            self.up = nnx.List([Up(config, a, b, 3, rngs, init=init, bias=False) for a, b in pairs])
        else:
            blocks = range(config.blocks)
            self.stages = nnx.List([nnx.List([Block(width, rngs, dtype) for _ in blocks]) for width in widths])
            self.up = nnx.List([Up(config, a, b, 1, rngs, init=init) for a, b in itertools.pairwise(widths)])
            self.conv_out = Conv((3, 3, widths[-1], config.channels), rngs, dtype, linear_init)

    def __call__(self, z_bd: jax.Array, condition: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Images float32 [B, H, W, C] in [-1, 1] of latents float32 [B, latent], drawn from a unit Gaussian.

        `condition` is what the config says: a class int [B], a vector float [B, D], or none. With `train`, DCGAN's
        norms use the statistics of the batch and update the running ones. Raises ZooError for other shapes.
        """
        config = self.config
        if z_bd.ndim != 2 or z_bd.shape[1] != config.latent:
            raise ZooError(f"latents are {list(z_bd.shape)}, the model wants [B, {config.latent}]")
        told = encode_condition(config, condition, len(z_bd))
        if told is not None:
            z_bd = jnp.concatenate([z_bd, self.embed(told).astype(z_bd.dtype)], axis=1)
        base, widths = shape_of(config)
        x_bhwc = self.project(z_bd).reshape(len(z_bd), base, base, widths[-1])
        if config.architecture == "dcgan":
            for norm, up in zip(self.bn, self.up, strict=True):
                x_bhwc = up(nnx.relu(norm(x_bhwc, train)))
        else:
            for i, stage in enumerate(self.stages):
                if i:
                    x_bhwc = self.up[i - 1](x_bhwc)
                for block in stage:
                    x_bhwc = block(x_bhwc)
            x_bhwc = self.conv_out(leaky(x_bhwc))
        return jnp.tanh(x_bhwc.astype(jnp.float32))


class Discriminator(nnx.Module):
    """Images [B, H, W, C] in [-1, 1] to logits [B], high for what looks real.

    A condition y is told by projection (Miyato and Koyama 2018, equation 4): output(phi) + <embed(y), phi>, of the
    last features phi; here the product is divided by the square root of its length.
    """

    def __init__(self, config: GANConfig, rngs: nnx.Rngs):
        self.config = config
        dtype, spectral = resolve_dtype(config.dtype), config.spectral_norm
        base, widths = shape_of(config)
        features = base * base * widths[-1]
        dcgan = config.architecture == "dcgan"
        init = dcgan_init if dcgan else linear_init
        down: list[Layer]
        if dcgan:
            bias = not config.batch_norm
            pairs = itertools.pairwise((config.channels, *widths))
            down = [StridedConv((4, 4, a, b), rngs, dtype, init, bias, spectral) for a, b in pairs]
            self.bn = nnx.List([BatchNorm(width) for width in widths[1:]] if config.batch_norm else [])
        else:
            bias, blocks = True, range(config.blocks)
            self.conv_in = Conv((3, 3, config.channels, widths[0]), rngs, dtype, init, spectral=spectral)
            self.stages = nnx.List(
                [nnx.List([Block(width, rngs, dtype, spectral) for _ in blocks]) for width in widths]
            )
            pairs = itertools.pairwise(widths)
            down = [Conv((1, 1, 4 * a, b), rngs, dtype, init, spectral=spectral) for a, b in pairs]
            self.dense = Dense((features, widths[-1]), rngs, dtype, spectral=spectral)
            features = widths[-1]
        self.down = nnx.List(down)
        self.output = Dense((features, 1), rngs, dtype, init, bias, spectral)
        if condition_size(config):
            self.embed = Dense((condition_size(config), features), rngs, dtype, linear_init, False, spectral)

    def __call__(
        self, x_bhwc: jax.Array, condition: jax.Array | None = None, train: bool = False, features: bool = False
    ) -> Any:
        """Logits float32 [B] of images float32 [B, H, W, C] in [-1, 1]; `condition` as for the generator.

        With `train`, norms use the statistics of the batch and update the running ones, and the singular vectors of
        the spectral norm go one step on. With `features`, returns (logits, named intermediates). Raises ZooError for
        images of another shape or dtype.
        """
        config = self.config
        wanted = (config.image_size, config.image_size, config.channels)
        if x_bhwc.ndim != 4 or x_bhwc.shape[1:] != wanted:
            raise ZooError(f"images are {list(x_bhwc.shape)}, the model wants [B, {', '.join(map(str, wanted))}]")
        if not jnp.issubdtype(x_bhwc.dtype, jnp.floating):
            raise ZooError(f"images are {x_bhwc.dtype}, the model wants floats in [-1, 1]; divide by 127.5, less 1")
        told, out = encode_condition(config, condition, len(x_bhwc)), {}
        if config.architecture == "dcgan":
            for i, down in enumerate(self.down):
                x_bhwc = down(x_bhwc, train)
                x_bhwc = leaky(self.bn[i - 1](x_bhwc, train) if i and config.batch_norm else x_bhwc)
                out[f"stage{i + 1}"] = x_bhwc
            phi_bd = x_bhwc.reshape(len(x_bhwc), -1)
        else:
            x_bhwc = self.conv_in(x_bhwc, train)
            for i, stage in enumerate(self.stages):
                if i:
                    x_bhwc = self.down[i - 1](space_to_depth(x_bhwc), train)
                for block in stage:
                    x_bhwc = block(x_bhwc, train)
                out[f"stage{i + 1}"] = x_bhwc
            phi_bd = leaky(self.dense(leaky(x_bhwc).reshape(len(x_bhwc), -1), train))
        out["phi"] = phi_bd
        logits = self.output(phi_bd, train).astype(jnp.float32)[:, 0]
        if told is not None:
            products = self.embed(told, train).astype(jnp.float32) * phi_bd.astype(jnp.float32)
            logits += jnp.sum(products, axis=1) * phi_bd.shape[1] ** -0.5
        return (logits, out) if features else logits


class GAN(nnx.Module):
    """Both networks of a `GANConfig`: `generator` and `discriminator`. A call is the generator's."""

    def __init__(self, config: GANConfig, rngs: nnx.Rngs):
        check_config(config)
        self.config = config
        self.generator = Generator(config, rngs)
        self.discriminator = Discriminator(config, rngs)

    def __call__(self, z_bd: jax.Array, condition: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] of latents [B, latent]: see `Generator`."""
        return self.generator(z_bd, condition, train)


def leaky(x: jax.Array) -> jax.Array:
    """The leaky ReLU of slope 0.2."""
    return nnx.leaky_relu(x, 0.2)


def spectral_normalise(kernel: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kernel / its largest singular value, next u), by one step of power iteration from the unit vector u.

    The kernel [..., outputs] is taken as a matrix of `outputs` columns, u [outputs] as its right singular vector. The
    vectors are constants for the gradient (Miyato et al. 2018, arXiv:1802.05957, algorithm 1).
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = _unit(fixed @ u)
    u = _unit(v @ fixed)
    return kernel / (v @ (matrix @ u)), u


def shape_of(config: GANConfig) -> tuple[int, list[int]]:
    """(Side of the coarsest features, channels at each resolution, finest first); DCGAN has none at the image's."""
    base, halvings = config.image_size, 0
    while base % 2 == 0 and base > 7:
        base, halvings = base // 2, halvings + 1
    count = halvings if config.architecture == "dcgan" else halvings + 1
    return base, [min(config.width * 2**i, config.max_width) for i in range(count)]


def condition_size(config: GANConfig) -> int:
    """Length of the condition's encoding; 0 without one."""
    return config.classes or config.vector


def encode_condition(config: GANConfig, condition: jax.Array | None, batch: int) -> jax.Array | None:
    """The condition float32 [B, D], classes as one-hot rows; None without one. Raises ZooError for another than the
    config's."""
    if not condition_size(config):
        if condition is not None:
            raise ZooError("the model takes no condition; set classes or vector of its config")
        return None
    kind, shape = (jnp.integer, (batch,)) if config.classes else (jnp.floating, (batch, config.vector))
    if condition is None or condition.shape != shape or not jnp.issubdtype(condition.dtype, kind):
        given = "none" if condition is None else f"{condition.dtype}{list(condition.shape)}"
        raise ZooError(f"the condition is {given}, the model wants {'int' if config.classes else 'float'}{list(shape)}")
    one_hot = jax.nn.one_hot(condition, config.classes, dtype=jnp.float32) if config.classes else condition
    return one_hot.astype(jnp.float32)


def check_config(config: GANConfig) -> None:
    """Raises ZooError for names and sizes that make no network."""
    if config.architecture not in ARCHITECTURES:
        raise unknown("architecture", config.architecture, ARCHITECTURES)
    if config.upsampling not in UPSAMPLING:
        raise unknown("upsampling", config.upsampling, UPSAMPLING)
    if not 8 <= config.image_size <= 128 or shape_of(config)[0] > 7:
        raise ZooError(
            f"image_size {config.image_size} is not 4 to 7, doubled, up to 128: take 8, 16, 28, 32, 64 or 128"
        )
    if min(config.channels, config.latent, config.width, config.max_width, config.embed) < 1:
        raise ZooError("channels, latent, width, max_width and embed must be at least 1")
    if min(config.classes, config.vector, config.blocks) < 0 or (config.classes and config.vector):
        raise ZooError("classes, vector and blocks must be at least 0, and one of classes and vector 0")


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x)) + 1e-12)


VARIANTS: dict[str, GANConfig] = {
    "dcgan": GANConfig("dcgan", latent=100, width=128, max_width=1024, upsampling="transposed"),
    "gan-residual": GANConfig(blocks=2),
    "gan-residual-xs": GANConfig(width=16, max_width=128),
}

# Nothing lies on `tensor`: jax 0.10's partitioner then counts some sums twice on a mesh that has all three axes.
SHARDING = (
    (r"conv(1|2|_in|_out)?/kernel$|discriminator/down/\d+/kernel$", P(None, None, None, "fsdp")),
    (r"(project|dense|output|embed)/kernel$", P("fsdp", None)),
)
