import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.models import vae
from zoo.models.functional import abstract, count, merge, stats_of
from zoo.models.vae import VAE, VARIANTS, VAEConfig
from zoo.objectives import variational as vi

TINY = VAEConfig(image_size=8, channels=2, latents=3, patch=2, widths=(4, 6), classes=3, mixtures=2)
LIKELIHOODS = {name: replace(TINY, likelihood=name) for name in vae.LIKELIHOODS}
LIKELIHOODS["gaussian"] = replace(LIKELIHOODS["gaussian"], blocks=0, dense=(7, 5))
LABELS = jnp.arange(8) % 3


def build(config):
    return lambda rngs: VAE(config, rngs)


def noisy(config):
    """A graphdef, parameters away from the zeros and ones of a new model, and its statistics."""
    graphdef, shapes, stats = abstract(build(config))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray(0.5 * noise + 1 if "scale" in jax.tree_util.keystr(path) else noise, jnp.float32)

    return graphdef, jax.tree_util.tree_map_with_path(draw, shapes), jax.tree.map(jnp.ones_like, stats)


def images(config, batch=8):
    shape = (batch, config.image_size, config.image_size, config.channels)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape) / 255, jnp.float32)


def test_parameters_by_hand():
    def block(width):  # two 3×3 convolutions and a norm
        return 2 * (9 * width * width + width) + width

    _, params, stats = abstract(build(VAEConfig(image_size=8, latents=5, classes=2, patch=2, widths=(32, 64))))
    between = block(32) + block(64)
    assert count(params["encoder"]) == (9 * 4 + 1) * 32 + between + (4 * 32 + 1) * 64 + 64 + (64 + 1) * 64
    assert count(params["to_latent"]) == (4 * 64 + 2 + 1) * 2 * 5
    assert count(params["from_latent"]) == (5 + 2 + 1) * 4 * 64
    assert count(params["decoder"]) == (9 * 64 + 1) * 64 + between + (64 + 1) * 128 + 32 + (9 * 32 + 1) * 4
    assert stats == {}

    _, params, _ = abstract(build(VAEConfig(image_size=8, latents=5, patch=2, widths=(6,), blocks=0, dense=(9, 7))))
    assert count(params["dense_in"]) == (16 * 6 + 1) * 9 + (9 + 1) * 7
    assert count(params["to_latent"]) == (7 + 1) * 2 * 5
    assert count(params["from_latent"]) == (5 + 1) * 7
    assert count(params["dense_out"]) == (7 + 1) * 9 + (9 + 1) * 16 * 6
    assert count(params["encoder"]) == (9 * 4 + 1) * 6 + 6 + (6 + 1) * 6  # no residual blocks


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_build(name):
    config = VARIANTS[name]
    graphdef, params, stats = abstract(build(config))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype("float32")}

    def both(params, stats, x):
        model = merge(graphdef, params, stats)
        mean, log_var = model.encode(x)
        out = model.decode(mean)
        return mean, log_var, out, model.mean(out)

    shape = (2, config.image_size, config.image_size, config.channels)
    found = jax.eval_shape(both, params, stats, jax.ShapeDtypeStruct(shape, jnp.float32))
    latents = (2, config.latents)
    assert [x.shape for x in found] == [latents, latents, (*shape[:3], vae.outputs(config)), shape]
    assert {x.dtype for x in found} == {np.dtype("float32")}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_parameter_gets_a_gradient(name):
    config = LIKELIHOODS[name]
    graphdef, params, stats = noisy(config)
    x, noise = images(config), jax.random.normal(jax.random.key(0), (8, 3))

    def loss(params):
        model = merge(graphdef, params, stats)
        fit, kl = vi.evidence(model, x, LABELS, noise, train=True)
        return kl.sum() - fit.sum(), stats_of(model)

    (value, new), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert [jax.tree_util.keystr(path) for path, g in leaves if not np.any(g) or not np.all(np.isfinite(g))] == []
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    assert (name == "gaussian") == (len(jax.tree.leaves(stats)) == 1)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True))


def test_the_expected_image_is_that_of_the_likelihood():
    values = np.arange(256, dtype=np.float32) / 255
    both = np.stack([v.ravel() for v in np.meshgrid(values, values, indexing="ij")], -1)[:, None, None]
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, 1)), 0.2 * rng.standard_normal((2, 2)), np.full((2, 2), -4.0), [[0.8], [-0.5]]]
    out = jnp.asarray(np.concatenate(parts, axis=1).reshape(1, 1, 1, -1), jnp.float32)
    p = np.exp(np.asarray(jax.jit(vi.logistic_mixture_log_prob)(jnp.asarray(both), out), float))
    found = model_of("logistic").mean(out)[0, 0, 0]
    np.testing.assert_allclose(found, (p[:, None] * both[:, 0, 0]).sum(0), atol=2e-4)
    out = jnp.array([-2.0, 0.0, 1.0])[None, None, None]
    np.testing.assert_allclose(model_of("bernoulli").mean(out)[0, 0, 0], 1 / (1 + np.exp([2.0, 0, -1])), rtol=1e-6)
    assert model_of("gaussian").mean(out) is out


def model_of(name):
    graphdef, params, stats = noisy(LIKELIHOODS[name])
    return merge(graphdef, params, stats)


def test_classes_matter_and_are_asked_for():
    model, x = model_of("gaussian"), images(TINY)

    @jax.jit
    def run(label):
        mean, _ = model.encode(x, label)
        return mean, model.decode(jnp.zeros((8, 3)), label)

    with pytest.raises(ZooError, match="3 classes; give the label"):
        model.encode(x)
    (mean, out), (other, other_out) = run(LABELS), run(jnp.zeros_like(LABELS))
    changed = np.asarray(LABELS) != 0
    np.testing.assert_array_equal(np.any(mean != other, axis=1), changed)
    np.testing.assert_array_equal(np.any(out != other_out, axis=(1, 2, 3)), changed)
    assert out.min() > 0
    assert out.max() < 1


def test_patches_keep_their_place():
    """A corner of the latent grid draws its own corner of the image, as receptive fields are small."""
    config = VAEConfig(image_size=32, channels=1, latents=2, patch=2, widths=(4, 4))
    graphdef, params, stats = noisy(config)

    def middle(params):
        model = merge(graphdef, params, stats)
        return model.decode(jnp.ones((1, 2)))[0, :, :, 0]

    change = jnp.zeros((8, 8, 4)).at[0, 7].set(5.0).ravel()  # top right of the grid of 8 × 8
    moved = params | {"from_latent": params["from_latent"] | {"bias": params["from_latent"]["bias"] + change}}
    differs = np.asarray(jax.jit(lambda a, b: middle(a) != middle(b))(params, moved))
    assert differs[:2, -2:].all()
    assert not differs[24:].any()
    assert not differs[:, :8].any()


def test_bfloat16():
    config = replace(LIKELIHOODS["bernoulli"], dtype="bfloat16")
    graphdef, params, stats = noisy(config)
    x = images(config)

    def run(graphdef):
        mean, log_var = merge(graphdef, params, stats).encode(x, LABELS)
        return mean, log_var, merge(graphdef, params, stats).decode(jnp.ones((8, 3)), LABELS)

    half, full = jax.jit(lambda: run(graphdef))(), jax.jit(lambda: run(noisy(TINY)[0]))()
    for a, b in zip(half, full, strict=True):
        assert a.dtype == jnp.float32
        assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.05 * np.std(b)


def test_errors():
    model = model_of("bernoulli")
    with pytest.raises(ZooError, match=r"images are \[4, 7, 8, 2\], the model wants \[B, 8, 8, 2\]"):
        model.encode(jnp.zeros((4, 7, 8, 2)), LABELS)
    with pytest.raises(ZooError, match="uint8"):
        model.encode(jnp.zeros((4, 8, 8, 2), jnp.uint8), LABELS)
    for config, message in (
        (replace(TINY, image_size=10), "image_size 10 is not a multiple of 4"),
        (replace(TINY, likelihood="gausian"), "did you mean gaussian"),
        (replace(TINY, latents=0), "at least 1"),
        (replace(TINY, widths=()), "widths"),
        (replace(TINY, classes=-1), "classes and blocks are at least 0"),
    ):
        with pytest.raises(ZooError, match=message):
            abstract(build(config))


def test_sharding_table_names_every_kernel():
    used = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(build(VARIANTS["vae-cifar10"]))[1]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matches = [(pattern, spec) for pattern, spec in vae.SHARDING if re.search(pattern, name)]
        assert len(matches) == name.endswith("kernel"), name
        assert all(len(spec) == leaf.ndim for _, spec in matches), name
        used |= {pattern for pattern, _ in matches}
    assert used == {pattern for pattern, _ in vae.SHARDING}
