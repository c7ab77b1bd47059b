import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.errors import ZooError
from zoo.models import gan
from zoo.models.functional import abstract, count, merge, stats_of
from zoo.models.gan import GAN, VARIANTS, GANConfig

TINY = {
    "dcgan": GANConfig("dcgan", image_size=8, channels=1, latent=5, width=4, upsampling="transposed"),
    "residual": GANConfig(image_size=8, channels=3, latent=5, width=4, embed=3, classes=3, spectral_norm=True),
    "vector": GANConfig(image_size=10, latent=5, width=4, embed=3, vector=2, upsampling="depth_to_space"),
}


def build(config):
    return functools.partial(GAN, config)


def inputs(config, batch=4):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((batch, config.latent)), jnp.float32)
    x = jnp.asarray(rng.uniform(-1, 1, (batch, config.image_size, config.image_size, config.channels)), jnp.float32)
    vector = jnp.asarray(rng.standard_normal((batch, config.vector)), jnp.float32)
    return z, x, jnp.arange(batch) % config.classes if config.classes else vector if config.vector else None


@functools.cache
def noisy(config):
    """A graphdef, parameters away from zero, and statistics of which the singular vectors have length 1."""
    graphdef, shapes, stats = abstract(build(config))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
        if name == "kernel":
            return jnp.asarray(noise / np.prod(leaf.shape[:-1]) ** 0.5, jnp.float32)
        value = {"scale": 1 + 0.3 * noise, "bias": 0.3 * noise, "u": noise / np.linalg.norm(noise)}
        return jnp.asarray(value.get(name, np.full(leaf.shape, name == "var")), jnp.float32)

    return graphdef, *(jax.tree_util.tree_map_with_path(draw, tree) for tree in (shapes, stats))


def test_parameter_counts_of_dcgan():
    """Those of the networks with 64 channels that PyTorch's example prints, and of the article's by hand."""
    _, params, _ = abstract(build(dataclasses.replace(VARIANTS["dcgan"], width=64)))
    assert (count(params["generator"]), count(params["discriminator"])) == (3_576_704, 2_765_568)
    kernels = 100 * 1024 * 16 + 16 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
    _, params, _ = abstract(build(VARIANTS["dcgan"]))
    assert count(params["generator"]) == kernels + 2 * (1024 + 512 + 256 + 128)


@pytest.mark.parametrize(
    ("size", "base", "architecture", "upsampling", "channels"),
    [
        (8, 4, "dcgan", "repeat", 3),
        (10, 5, "residual", "transposed", 1),
        (28, 7, "dcgan", "depth_to_space", 1),
        (48, 6, "residual", "repeat", 3),
        (128, 4, "dcgan", "transposed", 3),
        (128, 4, "residual", "depth_to_space", 3),
    ],
)
def test_sizes(size, base, architecture, upsampling, channels):
    config = GANConfig(architecture, image_size=size, channels=channels, width=4, upsampling=upsampling)
    assert gan.shape_of(config)[0] == base
    graphdef, params, stats = abstract(build(config))
    call = lambda p, s, z, x: (merge(graphdef, p, s)(z), merge(graphdef, p, s).discriminator(x))
    z, x = jax.ShapeDtypeStruct((2, 64), jnp.float32), jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    images, logits = jax.eval_shape(call, params, stats, z, x)
    assert (images.shape, images.dtype) == (x.shape, jnp.float32)
    assert (logits.shape, logits.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    config = TINY[name]
    graphdef, params, stats = noisy(config)
    z, x, condition = inputs(config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, condition):
        model = merge(graphdef, params, stats)
        images = model(z, condition, train=True)
        logits = model.discriminator(x, condition, train=True)
        weight = jnp.arange(1.0, 1 + len(x))
        return jnp.sum(jax.nn.softplus(logits) * weight) + jnp.sum(images * x), (stats_of(model), images, logits)

    (_, (new, images, logits)), grads = loss(params, condition)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert [jax.tree_util.keystr(path) for path, g in leaves if not np.any(g) or not np.all(np.isfinite(g))] == []
    moved = [
        not np.allclose(a, b, rtol=1e-6, atol=0)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True)
    ]
    assert moved == [leaf.size > 1 for leaf in jax.tree.leaves(stats)]  # a unit vector of one number stays
    assert (float(jnp.max(jnp.abs(images))) <= 1, logits.shape) == (True, (4,))
    if condition is not None:  # each network looks at its condition, row by row
        other = np.array(condition)
        other[0] = 2 if config.classes else 1.5
        (_, before), (_, after) = loss(params, condition)[0], loss(params, jnp.asarray(other))[0]
        for old, new in zip(before[1:], after[1:], strict=True):
            changed = np.any((np.asarray(old) != np.asarray(new)).reshape(len(x), -1), axis=1)
            np.testing.assert_array_equal(changed, [True, False, False, False])


def test_projection_by_hand():
    """output(phi) + <row y of embed, phi> / sqrt(|phi|)."""
    config = dataclasses.replace(TINY["residual"], spectral_norm=False)
    graphdef, params, stats = noisy(config)
    _, x, y = inputs(config)
    call = jax.jit(lambda params, y: merge(graphdef, params, stats).discriminator(x, y, features=True))
    logits, out = call(params, y)
    kernel, head = (np.asarray(params["discriminator"][name]["kernel"]) for name in ("embed", "output"))
    phi = np.asarray(out["phi"])
    assert phi.shape == (4, 8)
    assert out["stage2"].shape == (4, 4, 4, 8)
    expected = phi @ head[:, 0] + np.asarray(params["discriminator"]["output"]["bias"])
    expected += [row @ kernel[label] / 8**0.5 for row, label in zip(phi, y, strict=True)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def transposed_by_loops(x, kernel):
    """y[2i + k - 1] += x[i] kernel[k], in both directions."""
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[3]))
    for i in range(h):
        for j in range(w):
            for k in range(4):
                for m in range(4):
                    y[:, 2 * i + k, 2 * j + m] += x[:, i, j] @ kernel[k, m]
    return y[:, 1:-1, 1:-1]


def test_transposed_and_strided_convolutions_by_loops():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 3))
    layer = gan.TransposedConv((4, 4, 3, 2), nnx.Rngs(0), jnp.float32)
    layer.kernel[...] = jnp.asarray(rng.standard_normal((4, 4, 3, 2)), jnp.float32)
    layer.bias[...] = jnp.array([1.0, -2.0])
    call = jax.jit(lambda layer, x: layer(x))
    y = call(layer, jnp.asarray(x, jnp.float32))
    expected = transposed_by_loops(x, np.asarray(layer.kernel[...], float)) + np.array([1.0, -2.0])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    strided = gan.StridedConv((4, 4, 2, 3), nnx.Rngs(0), jnp.float32)
    kernel = np.asarray(strided.kernel[...])
    z = np.pad(np.asarray(y), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [
        [np.einsum("bklc,klco->bo", z[:, i : i + 4, j : j + 4], kernel) for j in (0, 2, 4, 6)] for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(call(strided, y), np.transpose(windows, (2, 0, 1, 3)), rtol=1e-4, atol=1e-4)


def from_torch(generator, discriminator):
    """(params, stats) of a DCGAN from the layers of PyTorch's example, by kind and order."""
    array = lambda x: jnp.asarray(x.detach().numpy())

    def norms(net):
        found = [m for m in net if hasattr(m, "running_mean")]
        params = {str(i): {"scale": array(m.weight), "bias": array(m.bias)} for i, m in enumerate(found)}
        return params, {
            str(i): {"mean": array(m.running_mean), "var": array(m.running_var)} for i, m in enumerate(found)
        }

    first, *up = [m.weight for m in generator if m.weight_is_kernel]
    *down, last = [m.weight for m in discriminator if m.weight_is_kernel]
    (g_bn, g_stats), (d_bn, d_stats) = norms(generator), norms(discriminator)
    transposed = {str(i): {"conv": {"kernel": array(w).transpose(2, 3, 0, 1)}} for i, w in enumerate(up)}
    strided = {str(i): {"kernel": array(w).transpose(2, 3, 1, 0)} for i, w in enumerate(down)}
    project = {"kernel": array(first).transpose(0, 2, 3, 1).reshape(len(first), -1)}
    output = {"kernel": array(last).transpose(2, 3, 1, 0).reshape(-1, 1)}
    params = {
        "generator": {"project": project, "up": transposed, "bn": g_bn},
        "discriminator": {"down": strided, "output": output, "bn": d_bn},
    }
    return params, {"generator": {"bn": g_stats}, "discriminator": {"bn": d_stats}}


def test_dcgan_equals_torch():
    """The networks of the article, laid out as PyTorch's example lays them, with its weights."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    g = [nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    g += [nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    g += [nn.ConvTranspose2d(4, 1, 4, 2, 1, bias=False), nn.Tanh()]
    d = [nn.Conv2d(1, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    d += [nn.Conv2d(4, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)]
    d += [nn.Conv2d(8, 1, 4, 1, 0, bias=False)]
    for module in g + d:
        module.weight_is_kernel = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        if hasattr(module, "running_mean"):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    config = dataclasses.replace(TINY["dcgan"], image_size=16)
    graphdef, shapes, _ = abstract(build(config))
    params, stats = from_torch(g, d)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    z, x, _ = inputs(config)
    with torch.no_grad():
        images = nn.Sequential(*g).eval()(torch.from_numpy(np.array(z))[..., None, None])
        logits = nn.Sequential(*d).eval()(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2))

    @jax.jit
    def call(params, stats):
        model = merge(graphdef, params, stats)
        return model(z), model.discriminator(x)

    ours = call(params, stats)
    np.testing.assert_allclose(ours[0], images.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(ours[1], logits.numpy()[:, 0, 0, 0], atol=1e-5)


def test_spectral_norm_equals_svd():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 6)).astype(np.float32)
    matrix, step = kernel.reshape(-1, 6), jax.jit(gan.spectral_normalise)
    u = np.eye(6, dtype=np.float32)[0]

    # One step of power iteration by hand, from a vector that is far off.
    v = matrix @ u / np.linalg.norm(matrix @ u)
    after = v @ matrix / np.linalg.norm(v @ matrix)
    sigma = v @ matrix @ after
    for found, expected in zip(step(kernel, u), (kernel / sigma, after), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # The vectors are constants for the gradient: d(W / s) with ds = v dW u.
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), kernel.shape)
    grad = jax.jit(jax.grad(lambda kernel: jnp.sum(gan.spectral_normalise(kernel, u)[0] * ramp)))(kernel)
    expected = ramp.reshape(-1, 6) / sigma - np.sum(ramp * kernel) / sigma**2 * np.outer(v, after)
    np.testing.assert_allclose(grad.reshape(-1, 6), expected, rtol=1e-3, atol=1e-4)

    for _ in range(100):
        normal, u = step(kernel, u)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(normal, kernel / largest, rtol=1e-4, atol=1e-6)


def test_singular_vectors_move_in_training_only():
    layer = gan.Dense((5, 4), nnx.Rngs(0), jnp.float32, spectral=True)
    before = np.asarray(layer.u[...])
    layer.weight(train=False)
    np.testing.assert_array_equal(layer.u[...], before)
    layer.weight(train=True)
    assert np.all(layer.u[...] != before)


def test_blocks_start_as_the_identity_unless_spectral():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)
    block = gan.Block(3, nnx.Rngs(0), jnp.float32)
    np.testing.assert_array_equal(block(x), x)
    assert np.any(block.conv1.kernel[...])
    spectral = gan.Block(3, nnx.Rngs(0), jnp.float32, spectral=True)
    assert np.all(np.isfinite(spectral(x)))
    assert np.any(spectral(x) != x)


def test_upsampling_by_hand():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    config = GANConfig(dtype="float32")
    for way, kernel in (("repeat", jnp.ones((1, 1, 1, 1))), ("depth_to_space", jnp.ones((1, 1, 1, 4)))):
        up = gan.Up(dataclasses.replace(config, upsampling=way), 1, 1, 1, nnx.Rngs(0))
        up.conv.kernel[...] = 2 * kernel
        np.testing.assert_array_equal(up(x)[0, :, :, 0], 2 * np.kron(x[0, :, :, 0], np.ones((2, 2))))
    up = gan.Up(config, 1, 1, 3, nnx.Rngs(0))  # the convolution sees the repeated pixels
    up.conv.kernel[...] = jnp.ones((3, 3, 1, 1))
    np.testing.assert_array_equal(up(x)[0, 0, :, 0], [4, 8, 10, 8])


def test_bfloat16():
    config = TINY["dcgan"]
    _, params, stats = noisy(config)
    z, x, condition = inputs(config)

    def run(dtype):
        graphdef, _, _ = abstract(build(dataclasses.replace(config, dtype=dtype)))

        @jax.jit
        def call(params):
            model = merge(graphdef, params, stats)
            return model(z, condition), model.discriminator(x, condition)

        return call(params)

    for half, full in zip(run("bfloat16"), run("float32"), strict=True):
        assert half.dtype == jnp.float32
        assert 0 < np.sqrt(np.mean((half - full) ** 2)) < 0.05 * np.std(full)


def test_errors():
    def call(name, shape, condition=None, dtype=jnp.float32, config=TINY["residual"]):
        graphdef, params, stats = abstract(build(config))

        def run(p, s, x):
            model = merge(graphdef, p, s)
            return getattr(model, name)(x, condition)

        jax.eval_shape(run, params, stats, jax.ShapeDtypeStruct(shape, dtype))

    label = jnp.zeros(2, jnp.int32)
    with pytest.raises(ZooError, match=r"latents are \[2, 4\], the model wants \[B, 5\]"):
        call("generator", (2, 4), label)
    with pytest.raises(ZooError, match=r"images are \[2, 9, 8, 3\], the model wants \[B, 8, 8, 3\]"):
        call("discriminator", (2, 9, 8, 3), label)
    with pytest.raises(ZooError, match="uint8"):
        call("discriminator", (2, 8, 8, 3), label, jnp.uint8)
    with pytest.raises(ZooError, match=r"the condition is none, the model wants int\[2\]"):
        call("generator", (2, 5))
    with pytest.raises(ZooError, match=r"the condition is float32\[2, 3\]"):
        call("generator", (2, 5), jnp.zeros((2, 3)))
    for config, message in (
        (GANConfig(image_size=36), "image_size 36"),
        (GANConfig(image_size=256), "image_size 256"),
        (GANConfig(architecture="dcgn"), "did you mean dcgan"),
        (GANConfig(upsampling="transpose"), "did you mean transposed"),
        (GANConfig(classes=2, vector=3), "one of classes and vector"),
        (GANConfig(width=0), "at least 1"),
    ):
        with pytest.raises(ZooError, match=message):
            abstract(build(config))
    with pytest.raises(ZooError, match="takes no condition"):
        call("generator", (2, 5), label, config=TINY["dcgan"])


def test_sharding_table_names_every_kernel():
    used = set()
    for config in (*VARIANTS.values(), *TINY.values()):
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(build(config))[1]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            matches = [(pattern, spec) for pattern, spec in gan.SHARDING if re.search(pattern, name)]
            assert len(matches) == name.endswith("kernel"), name
            assert all(len(spec) == leaf.ndim for _, spec in matches), name
            used |= {pattern for pattern, _ in matches}
    assert used == {pattern for pattern, _ in gan.SHARDING}
