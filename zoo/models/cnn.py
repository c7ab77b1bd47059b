"""Convolutional classifiers: a basic CNN, the CIFAR ResNets and the ImageNet ResNets.

Images are float32 [B, H, W, C] in [0, 1]; each network normalises them itself. Logits are float32.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.convolution import BatchNorm, conv, he_init, strided_conv
from zoo.models.layers import resolve_dtype

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Features = dict[str, jax.Array]


@dataclass(frozen=True)
class CNNConfig:
    """The basic network: two convolutions with max-pooling, then two dense layers."""

    image_size: int = 64
    """Height and width in pixels; the dense layer needs it fixed."""
    channels: int = 3
    """Of the image."""
    classes: int = 10
    """Number of logits."""
    widths: tuple[int, int] = (32, 64)
    """Channels of the two convolutions."""
    dense: int = 64
    """Units of the hidden dense layer."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from each channel (one value: from all)."""
    std: tuple[float, ...] = (1.0,)
    """Divides each channel after that."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""


@dataclass(frozen=True)
class ResNetConfig:
    """Residual networks of He et al. (2016), arXiv:1512.03385."""

    blocks: tuple[int, ...] = (3, 3, 3)
    """Residual blocks in each stage; every stage but the first halves the resolution."""
    width: int = 16
    """Channels of the first stage; each next one doubles them."""
    bottleneck: bool = False
    """Blocks of 1×1, 3×3 and fourfold 1×1 convolutions in place of two 3×3."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """A 3×3 convolution, or a 7×7 one of stride 2 and a max-pool of stride 2."""
    shortcut: Literal["pad", "conv"] = "pad"
    """Where shapes change: every second pixel and zero channels (option A), or a 1×1 convolution (option B)."""
    image_size: int = 32
    """Height and width it is made for; others work, as the last pool is global."""
    channels: int = 3
    """Of the image."""
    classes: int = 10
    """Number of logits."""
    zero_init: bool = False
    """Start the last norm of each block at scale 0, so that each block starts as the identity (Goyal et al. 2017)."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from each channel (one value: from all)."""
    std: tuple[float, ...] = (1.0,)
    """Divides each channel after that."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""


class CNN(nnx.Module):
    """The network of `CNNConfig`."""

    def __init__(self, config: CNNConfig, rngs: nnx.Rngs):
        check_config(config)
        self.config = config
        pooled = ((config.image_size - 2) // 2 - 2) // 2
        if pooled < 1:
            raise ZooError(
                f"image_size {config.image_size} leaves nothing after two convolutions and pools; use 10 or more"
            )
        dtype = resolve_dtype(config.dtype)
        first, second = config.widths
        self.conv1 = nnx.Conv(
            config.channels, first, (3, 3), padding="VALID", dtype=dtype, kernel_init=he_init, rngs=rngs
        )
        self.conv2 = nnx.Conv(first, second, (3, 3), padding="VALID", dtype=dtype, kernel_init=he_init, rngs=rngs)
        self.dense = nnx.Linear(
            pooled * pooled * second, config.dense, dtype=dtype, kernel_init=initializers.he_normal(), rngs=rngs
        )
        self.classifier = nnx.Linear(config.dense, config.classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bhwc: jax.Array, train: bool = False, key: jax.Array | None = None, features: bool = False
    ) -> Any:
        """Logits float32 [B, classes] of images float32 [B, H, W, C] in [0, 1].

        It has no batch statistics and no dropout: `train` and `key` change nothing. With `features`, returns
        (logits, named intermediates). Raises ZooError for images of another size.
        """
        x_bhwc = normalise(x_bhwc, self.config, fixed_size=True)
        conv1 = nnx.max_pool(nnx.relu(self.conv1(x_bhwc)), (2, 2), (2, 2))
        conv2 = nnx.max_pool(nnx.relu(self.conv2(conv1)), (2, 2), (2, 2))
        dense = nnx.relu(self.dense(conv2.reshape(conv2.shape[0], -1)))
        logits = self.classifier(dense).astype(jnp.float32)
        return (logits, {"conv1": conv1, "conv2": conv2, "dense": dense}) if features else logits


class Block(nnx.Module):
    """A residual block: norm follows convolution, and the sum goes through a ReLU."""

    def __init__(self, config: ResNetConfig, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        self.outputs = 4 * width if config.bottleneck else width
        self.stride = stride
        plain = functools.partial(conv, rngs=rngs, dtype=resolve_dtype(config.dtype), bias=False)
        if config.bottleneck:  # the stride is in the 3×3 convolution ("v1.5"), not in the first 1×1
            self.conv1, self.bn1 = plain(inputs, width, 1), BatchNorm(width)
            self.conv2, self.bn2 = plain(width, width, 3, stride=stride), BatchNorm(width)
            self.conv3 = plain(width, self.outputs, 1)
            self.bn3 = BatchNorm(self.outputs, config.zero_init)
        else:
            self.conv1, self.bn1 = plain(inputs, width, 3, stride=stride), BatchNorm(width)
            self.conv2 = plain(width, width, 3)
            self.bn2 = BatchNorm(width, config.zero_init)
        if config.shortcut == "conv" and (stride != 1 or inputs != self.outputs):
            self.shortcut_conv = plain(inputs, self.outputs, 1, stride=stride)
            self.shortcut_bn = BatchNorm(self.outputs)

    def __call__(self, x_bhwc: jax.Array, train: bool) -> jax.Array:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x_bhwc), train))), train)
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(nnx.relu(y)), train)
        if hasattr(self, "shortcut_conv"):
            shortcut = self.shortcut_bn(self.shortcut_conv(x_bhwc), train)
        else:
            shortcut = pad_shortcut(x_bhwc, self.stride, self.outputs)
        return nnx.relu(y + shortcut)


class ResNet(nnx.Module):
    """The network of `ResNetConfig`."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        check_config(config)
        self.config = config
        plain = functools.partial(conv, rngs=rngs, dtype=resolve_dtype(config.dtype), bias=False)
        if config.stem == "cifar":
            self.conv1 = plain(config.channels, config.width, 3)
        elif config.stem == "imagenet":
            self.conv1 = plain(config.channels, config.width, 7, stride=2)
        else:
            raise unknown("stem", config.stem, ["cifar", "imagenet"])
        if config.shortcut not in ("pad", "conv"):
            raise unknown("shortcut", config.shortcut, ["pad", "conv"])
        self.bn1 = BatchNorm(config.width)
        inputs = config.width
        for stage, depth in enumerate(config.blocks):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(config, inputs, config.width * 2**stage, stride, rngs))
                inputs = blocks[-1].outputs
            setattr(self, f"stage{stage + 1}", nnx.List(blocks))
        self.classifier = nnx.Linear(inputs, config.classes, dtype=resolve_dtype(config.dtype), rngs=rngs)

    def __call__(
        self, x_bhwc: jax.Array, train: bool = False, key: jax.Array | None = None, features: bool = False
    ) -> Any:
        """Logits float32 [B, classes] of images float32 [B, H, W, C] in [0, 1].

        With `train`, norms use the statistics of the batch and update the running ones. There is no dropout:
        `key` changes nothing. With `features`, returns (logits, named intermediates). Raises ZooError for
        images with another number of channels.
        """
        x_bhwc = normalise(x_bhwc, self.config)
        x_bhwc = nnx.relu(self.bn1(self._stem(x_bhwc), train))
        out = {"stem": x_bhwc}
        if self.config.stem == "imagenet":
            x_bhwc = nnx.max_pool(x_bhwc, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in range(1, len(self.config.blocks) + 1):
            for block in getattr(self, f"stage{stage}"):
                x_bhwc = block(x_bhwc, train)
            out[f"stage{stage}"] = x_bhwc
        out["pooled"] = jnp.mean(x_bhwc, axis=(1, 2), dtype=jnp.float32)
        logits = self.classifier(out["pooled"]).astype(jnp.float32)
        return (logits, out) if features else logits

    def _stem(self, x_bhwc: jax.Array) -> jax.Array:
        if self.config.stem == "cifar" or x_bhwc.shape[1] % 2 or x_bhwc.shape[2] % 2:
            return self.conv1(x_bhwc)
        dtype = resolve_dtype(self.config.dtype)
        return strided_conv(x_bhwc.astype(dtype), self.conv1.kernel[...].astype(dtype), pad=3)


def pad_shortcut(x_bhwc: jax.Array, stride: int, outputs: int) -> jax.Array:
    """Option A of He et al. (2016), section 4.1: every stride-th pixel, and zero channels on both sides."""
    extra = outputs - x_bhwc.shape[-1]
    return jnp.pad(x_bhwc[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def normalise(x_bhwc: jax.Array, config: CNNConfig | ResNetConfig, fixed_size: bool = False) -> jax.Array:
    """(x - mean) / std in float32. Raises ZooError for images that the config does not describe."""
    size = config.image_size if fixed_size else "H", config.image_size if fixed_size else "W"
    wrong_size = fixed_size and x_bhwc.shape[1:3] != size
    if x_bhwc.ndim != 4 or x_bhwc.shape[-1] != config.channels or wrong_size:
        raise ZooError(
            f"images are {list(x_bhwc.shape)}, the model wants [B, {size[0]}, {size[1]}, {config.channels}];"
            " resize them, or set image_size and channels of the config"
        )
    if not jnp.issubdtype(x_bhwc.dtype, jnp.floating):
        raise ZooError(f"images are {x_bhwc.dtype}, the model wants floats in [0, 1]; divide by 255")
    mean, std = (jnp.array(value, jnp.float32)[None, None, None] for value in (config.mean, config.std))
    return (x_bhwc.astype(jnp.float32) - mean) / std


def check_config(config: CNNConfig | ResNetConfig) -> None:
    """Raises ZooError for sizes that make no network."""
    for name in ("mean", "std"):
        if len(getattr(config, name)) not in (1, config.channels):
            raise ZooError(
                f"{name} has {len(getattr(config, name))} values for {config.channels} channels; give one or all"
            )
    if min(config.image_size, config.channels, config.classes) < 1:
        raise ZooError("image_size, channels and classes must be at least 1")


def _cifar(depth: int) -> ResNetConfig:
    return ResNetConfig(blocks=((depth - 2) // 6,) * 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _imagenet(blocks: tuple[int, ...], bottleneck: bool) -> ResNetConfig:
    return ResNetConfig(
        blocks=blocks,
        width=64,
        bottleneck=bottleneck,
        stem="imagenet",
        shortcut="conv",
        image_size=224,
        classes=1000,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


VARIANTS: dict[str, CNNConfig | ResNetConfig] = {
    "cnn-basic": CNNConfig(),
    "resnet8": _cifar(8),
    "resnet20": _cifar(20),
    "resnet56": _cifar(56),
    "resnet18": _imagenet((2, 2, 2, 2), bottleneck=False),
    "resnet50": _imagenet((3, 4, 6, 3), bottleneck=True),
}

SHARDING = (
    (r"conv\d?/kernel$", P(None, None, None, "fsdp")),
    (r"(dense|classifier)/kernel$", P("fsdp", "tensor")),
)
