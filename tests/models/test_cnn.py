import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from zoo.errors import ZooError
from zoo.models import cnn
from zoo.models.cnn import CNN, VARIANTS, CNNConfig, ResNet, ResNetConfig
from zoo.models.convolution import conv, strided_conv
from zoo.models.functional import abstract, count, merge, stats_of
from zoo.weights.imports import import_resnet
from zoo.weights.torch_file import read_torch

GOLDEN = Path(__file__).parent.parent / "golden"

TINY = {
    "basic": CNNConfig(image_size=10, channels=1, classes=3, widths=(3, 4), dense=5),
    "cifar": ResNetConfig(blocks=(1, 1), width=4, channels=1, classes=3),
    "imagenet": ResNetConfig(blocks=(1, 1), width=4, channels=1, classes=3, stem="imagenet", shortcut="conv"),
    "bottleneck": ResNetConfig(blocks=(1, 1), width=4, channels=1, classes=3, bottleneck=True, shortcut="conv"),
}


def build(config):
    return lambda rngs: (CNN if isinstance(config, CNNConfig) else ResNet)(config, rngs)


def noisy(config):
    """A graphdef, parameters away from the zeros and ones of a new model, and its statistics."""
    graphdef, shapes, stats = abstract(build(config))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return jnp.asarray(0.5 * noise + 1 if "scale" in jax.tree_util.keystr(path) else noise, jnp.float32)

    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, "var" in jax.tree_util.keystr(path), jnp.float32), stats
    )
    return graphdef, jax.tree_util.tree_map_with_path(draw, shapes), stats


def images(config, batch=4, size=None):
    size = size or config.image_size
    return jnp.asarray(np.random.default_rng(0).random((batch, size, size, config.channels)), jnp.float32)


@pytest.mark.parametrize(("size", "side"), [(3, 8), (5, 8), (7, 12)])
def test_a_strided_convolution_by_squares_of_pixels_is_the_same(size, side):
    layer = conv(3, 5, size, nnx.Rngs(0), jnp.float32, stride=2, bias=False)
    x = jax.random.normal(jax.random.key(1), (2, side, side, 3))
    found = strided_conv(x, layer.kernel[...], size // 2)
    np.testing.assert_allclose(found, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [12, 9])
def test_the_stem_takes_sides_that_are_even_or_odd(side):
    model = ResNet(TINY["imagenet"], nnx.Rngs(0))
    x = images(TINY["imagenet"], 2, side)
    np.testing.assert_allclose(model._stem(x), model.conv1(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cnn-basic", 896 + 18_496 + 802_880 + 650),
        ("resnet20", 269_722),
        ("resnet56", 853_018),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
    ],
)
def test_parameter_counts(name, parameters):
    graphdef, params, stats = abstract(build(VARIANTS[name]))
    assert count(params) == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype("float32")}
    config = VARIANTS[name]
    x = jax.ShapeDtypeStruct((2, config.image_size, config.image_size, config.channels), jnp.float32)
    logits = jax.eval_shape(lambda p, s, x: merge(graphdef, p, s)(x, train=True), params, stats, x)
    assert (logits.shape, logits.dtype) == ((2, config.classes), jnp.float32)


def test_basic_layers():
    _, params, _ = abstract(build(VARIANTS["cnn-basic"]))
    assert [count(params[name]) for name in ("conv1", "conv2", "dense", "classifier")] == [896, 18_496, 802_880, 650]


def test_basic_equals_loops():
    config = TINY["basic"]
    graphdef, params, stats = noisy(config)
    x = images(config)
    logits, out = jax.jit(lambda x: merge(graphdef, params, stats)(x, features=True))(x)

    def layer(x, p):  # a valid 3×3 convolution, a ReLU and a max-pool of 2
        kernel, size = np.asarray(p["kernel"]), x.shape[1] - 2
        y = sum(x[:, i : i + size, j : j + size] @ kernel[i, j] for i in range(3) for j in range(3))
        y = np.maximum(y + np.asarray(p["bias"]), 0)[:, : size // 2 * 2, : size // 2 * 2]
        return y.reshape(len(y), size // 2, 2, size // 2, 2, -1).max((2, 4))

    y = layer(layer(np.asarray(x), params["conv1"]), params["conv2"]).reshape(len(x), -1)
    y = np.maximum(y @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"]), 0)
    np.testing.assert_allclose(out["dense"], y, rtol=1e-5)
    y = y @ np.asarray(params["classifier"]["kernel"]) + np.asarray(params["classifier"]["bias"])
    np.testing.assert_allclose(logits, y, rtol=1e-5)


def test_resnet20_with_real_weights_equals_the_reference(assets):
    golden = load_file(GOLDEN / "resnet20_logits.safetensors")
    graphdef, params, stats = abstract(build(VARIANTS["resnet20"]))
    params, stats = import_resnet(params, stats, read_torch(assets / "resnet20-12fca82f.th"))
    zero = jnp.broadcast_to(jnp.array(cnn.IMAGENET_MEAN, jnp.float32), (1, 32, 32, 3))  # zero once normalised
    x = jnp.concatenate([zero, jnp.asarray(golden["images"], jnp.float32) / 255])
    logits = jax.jit(lambda p, s, x: merge(graphdef, p, s)(x))(params, stats, x)
    np.testing.assert_allclose(logits[0, :4], [3.276, -2.3189, 0.4191, 4.5202], atol=1e-3)
    np.testing.assert_allclose(logits[1:], golden["logits"], atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    config = TINY[name]
    graphdef, params, stats = noisy(config)

    def loss(params, x):
        model = merge(graphdef, params, stats)
        return -jnp.mean(jax.nn.log_softmax(model(x, train=True))[:, 0]), stats_of(model)

    (value, new), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images(config, batch=16))
    assert np.isfinite(value)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert [jax.tree_util.keystr(path) for path, g in leaves if not np.any(g) or not np.all(np.isfinite(g))] == []
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True))


@pytest.mark.parametrize(("far", "near"), [(100, [99.0, 98.0, 103.0]), (10, [0.0, 0.0, 0.0])])
def test_batch_norm_formula(far, near):
    bn = cnn.BatchNorm(3)
    bn.scale[...], bn.bias[...] = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, 1.0, -1.0])
    rng = np.random.default_rng(0)
    x = (far + rng.standard_normal((4, 5, 6, 3))).astype(np.float32)  # a mean of 100 would spoil E[x²] - E[x]²
    mean, var = x.astype(float).mean((0, 1, 2)), x.astype(float).var((0, 1, 2))
    scale, bias = np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, -1.0])
    bn.mean[...] = jnp.array(near)
    y = bn(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-3)
    np.testing.assert_allclose(bn.mean[...], 0.9 * np.array(near) + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(bn.var[...], 0.9 + 0.1 * var, rtol=1e-5)
    bn.mean[...], bn.var[...] = jnp.array([99.0, 100.0, 101.0]), jnp.array([1.0, 4.0, 9.0])
    y = bn(jnp.asarray(x), train=False)
    np.testing.assert_allclose(y, (x - [99, 100, 101]) / np.sqrt([1, 4, 9]) * scale + bias, atol=1e-3)
    np.testing.assert_array_equal(bn.mean[...], [99, 100, 101])
    half = bn(jnp.asarray(x, jnp.bfloat16), train=True)
    assert (half.dtype, bn.mean[...].dtype) == (jnp.bfloat16, jnp.float32)


def test_option_a_shortcut_by_hand():
    x = jnp.arange(16, dtype=jnp.float32).reshape(1, 4, 4, 1) + 1
    x = jnp.concatenate([x, -x], axis=-1)
    y = np.asarray(cnn.pad_shortcut(x, 2, 4))[0]
    np.testing.assert_array_equal(y[..., 1], [[1, 3], [9, 11]])
    np.testing.assert_array_equal(y[..., 2], [[-1, -3], [-9, -11]])
    assert not np.any(y[..., [0, 3]])
    np.testing.assert_array_equal(cnn.pad_shortcut(x, 1, 2), x)


def test_initial_scales():
    kernel = cnn.conv(32, 64, 3, nnx.Rngs(0), jnp.float32).kernel[...]
    assert float(jnp.std(kernel)) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    for name, last in (("cifar", "bn2"), ("bottleneck", "bn3")):
        block = cnn.Block(replace(TINY[name], zero_init=True), 4, 4, 1, nnx.Rngs(0))
        assert np.all(block.bn1.scale[...] == 1)
        assert np.all(getattr(block, last).scale[...] == 0)


def test_normalisation_and_bfloat16():
    config = replace(TINY["cifar"], channels=3)
    _, params, stats = noisy(config)
    x = images(config)

    def run(x, **fields):
        graphdef, _, _ = abstract(build(replace(config, **fields)))
        return jax.jit(lambda x: merge(graphdef, params, stats)(x, features=True))(x)

    mean, std = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.5, 0.6, 0.7])
    expected = run((x - mean[None, None, None]) / std[None, None, None])[0]
    np.testing.assert_allclose(run(x, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))[0], expected, rtol=1e-4, atol=1e-5)
    logits, out = run(x, dtype="bfloat16")
    assert (logits.dtype, out["stage2"].dtype) == (jnp.float32, jnp.bfloat16)
    plain = run(x)[0]
    assert np.sqrt(np.mean((logits - plain) ** 2)) < 0.05 * np.std(plain)


def test_errors():
    def call(name, *shape, dtype=jnp.float32):
        graphdef, params, stats = abstract(build(TINY[name]))
        jax.eval_shape(lambda p, s, x: merge(graphdef, p, s)(x), params, stats, jax.ShapeDtypeStruct(shape, dtype))

    with pytest.raises(ZooError, match=r"images are \[4, 12, 12, 1\], the model wants \[B, 10, 10, 1\]"):
        call("basic", 4, 12, 12, 1)
    with pytest.raises(ZooError, match=r"the model wants \[B, H, W, 1\]"):
        call("cifar", 2, 8, 8, 3)
    with pytest.raises(ZooError, match=r"\[8, 8, 1\]"):
        call("cifar", 8, 8, 1)
    with pytest.raises(ZooError, match="uint8"):
        call("cifar", 2, 8, 8, 1, dtype=jnp.uint8)
    for config, message in (
        (replace(TINY["basic"], image_size=9), "image_size 9"),
        (replace(TINY["cifar"], stem="imagnet"), "unknown stem 'imagnet'; did you mean imagenet"),
        (replace(TINY["cifar"], shortcut="none"), "unknown shortcut"),
        (replace(TINY["cifar"], channels=3, mean=(0.0, 1.0)), "mean has 2 values for 3 channels"),
        (replace(TINY["cifar"], classes=0), "at least 1"),
    ):
        with pytest.raises(ZooError, match=message):
            abstract(build(config))


def test_sharding_table_names_every_kernel():
    used = set()
    for config in VARIANTS.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(build(config))[1]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            matches = [(pattern, spec) for pattern, spec in cnn.SHARDING if re.search(pattern, name)]
            assert len(matches) == name.endswith("kernel"), name
            assert all(len(spec) == leaf.ndim for _, spec in matches), name
            used |= {pattern for pattern, _ in matches}
    assert used == {pattern for pattern, _ in cnn.SHARDING}
