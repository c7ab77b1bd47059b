"""Convolutional parts that several families share. Images and features are [B, H, W, C].

No transposed or strided convolution where it can be helped: on a CPU their gradients are many times slower than those
of the same map made of a plain convolution and a reshape.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.errors import ZooError
from zoo.models.layers import rms_norm

he_init = initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, equation 14
# Of last layers: many inputs make few outputs, which he_init would start far outside of what tanh and pixels can show.
out_init = initializers.variance_scaling(1.0, "fan_in", "normal")


def conv(
    inputs: int,
    outputs: int,
    size: int,
    rngs: nnx.Rngs,
    dtype: Any,
    stride: int = 1,
    bias: bool = True,
    init: Callable[..., jax.Array] = he_init,
) -> nnx.Conv:
    """A convolution padded by (size - 1) / 2 on every side.

    "SAME" would pad stride-2 convolutions on one side only, unlike the published weights.
    """
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        rngs=rngs,
    )


def convolve(x_bhwc: jax.Array, kernel_hwio: jax.Array, padding: Any) -> jax.Array:
    """The convolution of stride 1; `padding` is that of `jax.lax.conv_general_dilated`."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_bhwc, kernel_hwio, (1, 1), padding, dimension_numbers=numbers)


def strided_conv(x_bhwc: jax.Array, kernel_hwio: jax.Array, pad: int) -> jax.Array:
    """The convolution of stride 2 with `pad` zeros before each side: [B, H, W, I] to [B, H / 2, W / 2, O].

    Squares of 2 × 2 pixels become channels, and the kernel with them, so that a TPU multiplies four times as many
    channels at once: the 3 of an image leave most of its multipliers idle. Raises ZooError for odd H or W.
    """
    size, _, inputs, outputs = kernel_hwio.shape
    squares = -(-size // 2)
    kernel_hwio = jnp.pad(kernel_hwio, ((0, size % 2), (0, size % 2), (0, 0), (0, 0)))
    kernel_hwio = kernel_hwio.reshape(squares, 2, squares, 2, inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
    sides = (pad, 2 * squares - 2 - pad)
    squares_bhwc = space_to_depth(jnp.pad(x_bhwc, ((0, 0), sides, sides, (0, 0))))
    return convolve(squares_bhwc, kernel_hwio.reshape(squares, squares, 4 * inputs, outputs), "VALID")


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of [B, H, W, C] over all axes but the last, in float32.

    Running statistics keep 0.9 of themselves at each training call, and take the biased variance.
    """

    def __init__(self, width: int, zero_init: bool = False):
        self.scale = nnx.Param(jnp.full(width, 0.0 if zero_init else 1.0))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x_bhwc: jax.Array, train: bool) -> jax.Array:
        x = x_bhwc.astype(jnp.float32)
        if train:
            # Both moments in one pass, which a TPU joins to the convolution before it; around the running mean, so that
            # no digits are lost where the mean is far from zero. Until the running mean has come near, some are: the
            # first call is off by 4e-5 where the mean is 10 deviations from zero, and by 0.7 % where it is 100.
            near = self.mean[...]
            apart = x - near[None, None, None]
            shift = jnp.mean(apart, axis=(0, 1, 2))
            mean = near + shift
            var = jnp.maximum(jnp.mean(jnp.square(apart), axis=(0, 1, 2)) - jnp.square(shift), 0.0)
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + 1e-5)
        x = (x - mean[None, None, None]) * scale[None, None, None] + self.bias[...][None, None, None]
        return x.astype(x_bhwc.dtype)


def space_to_depth(x_bhwc: jax.Array, factor: int = 2) -> jax.Array:
    """[B, H, W, C] to [B, H / f, W / f, f f C]: the pixels of each square of f × f become channels."""
    b, h, w, c = x_bhwc.shape
    if h % factor or w % factor:
        raise ZooError(f"{h}×{w} does not divide by {factor}; resize or pad the images")
    x = x_bhwc.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x_bhwc: jax.Array, factor: int = 2) -> jax.Array:
    """[B, H, W, f f C] to [B, f H, f W, C]: the inverse of `space_to_depth`."""
    b, h, w, c = x_bhwc.shape
    x = x_bhwc.reshape(b, h, w, factor, factor, c // (factor * factor))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, -1)


def upsample(x_bhwc: jax.Array, factor: int = 2) -> jax.Array:
    """Nearest neighbours: every pixel becomes a square of f × f."""
    return jnp.repeat(jnp.repeat(x_bhwc, factor, axis=1), factor, axis=2)


class ResBlock(nnx.Module):
    """x + conv(silu(conv(silu(norm(x))))), with RMSNorm over the channels; starts as the identity."""

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: Any, size: int = 3):
        self.norm_scale = nnx.Param(jnp.ones(width))
        self.conv1 = conv(width, width, size, rngs, dtype)
        self.conv2 = conv(width, width, size, rngs, dtype, init=initializers.zeros)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        h_bhwc = nnx.silu(rms_norm(x_bhwc, self.norm_scale[...], 1e-6))
        return x_bhwc + self.conv2(nnx.silu(self.conv1(h_bhwc)))


class ConvEncoder(nnx.Module):
    """Images [B, H, W, C] to features [B, H / f, W / f, outputs], f = 2 to the power of len(widths) - 1.

    Residual blocks at each of the `widths`; between two of them squares of 2 × 2 pixels become one. With convolutions
    of `size` 1 a feature depends on its own square of pixels alone.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        blocks: int,
        outputs: int,
        rngs: nnx.Rngs,
        dtype: Any,
        size: int = 3,
    ):
        self.conv_in = conv(channels, widths[0], size, rngs, dtype)
        self.down = nnx.List([conv(4 * a, b, 1, rngs, dtype) for a, b in itertools.pairwise(widths)])
        block = functools.partial(ResBlock, rngs=rngs, dtype=dtype, size=size)
        self.stages = nnx.List([nnx.List([block(width) for _ in range(blocks)]) for width in widths])
        self.norm_scale = nnx.Param(jnp.ones(widths[-1]))
        self.conv_out = conv(widths[-1], outputs, 1, rngs, dtype, init=out_init)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(x_bhwc)
        for i, stage in enumerate(self.stages):
            if i:
                x_bhwc = self.down[i - 1](space_to_depth(x_bhwc))
            for block in stage:
                x_bhwc = block(x_bhwc)
        return self.conv_out(nnx.silu(rms_norm(x_bhwc, self.norm_scale[...], 1e-6)))


class ConvDecoder(nnx.Module):
    """Features [B, H, W, inputs] to images [B, f H, f W, outputs]: the mirror of `ConvEncoder` with the same widths."""

    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: int, outputs: int, rngs: nnx.Rngs, dtype: Any):
        widths = widths[::-1]
        self.conv_in = conv(inputs, widths[0], 3, rngs, dtype)
        self.stages = nnx.List([nnx.List([ResBlock(width, rngs, dtype) for _ in range(blocks)]) for width in widths])
        self.up = nnx.List([conv(a, 4 * b, 1, rngs, dtype) for a, b in itertools.pairwise(widths)])
        self.norm_scale = nnx.Param(jnp.ones(widths[-1]))
        self.conv_out = conv(widths[-1], outputs, 3, rngs, dtype, init=out_init)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(x_bhwc)
        for i, stage in enumerate(self.stages):
            if i:
                x_bhwc = depth_to_space(self.up[i - 1](x_bhwc))
            for block in stage:
                x_bhwc = block(x_bhwc)
        return self.conv_out(nnx.silu(rms_norm(x_bhwc, self.norm_scale[...], 1e-6)))
