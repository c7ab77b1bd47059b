import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.errors import ZooError
from zoo.generate import latents
from zoo.models.gan import GAN, GANConfig
from zoo.models.vae import VAE, VAEConfig

TOLD = GAN(GANConfig("dcgan", image_size=8, channels=1, latent=6, width=4, classes=3, embed=2), nnx.Rngs(0))
PLAIN = GAN(GANConfig("dcgan", image_size=8, channels=1, latent=6, width=4), nnx.Rngs(0))


def test_truncation_bounds_and_keeps_the_shape_of_the_gaussian():
    z = np.asarray(latents.draw_latents(jax.random.key(0), 4000, 6, truncation=1.0))
    assert (z.shape, z.dtype) == ((4000, 6), np.float32)
    assert np.abs(z).max() <= 1
    assert z.var() == pytest.approx(0.2911, rel=0.03)  # 1 - 2 phi(1) / (2 Phi(1) - 1)
    assert np.asarray(latents.draw_latents(jax.random.key(0), 4000, 6)).var() == pytest.approx(1, rel=0.03)
    with pytest.raises(ZooError, match="above 0"):
        latents.draw_latents(jax.random.key(0), 1, 1, truncation=0.0)


def test_slerp_by_hand():
    start, end = jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [1.0, 1.0]])
    third = latents.slerp(start, end, 1 / 3)
    length = 2 + 2 / 3
    np.testing.assert_allclose(third[0], [length * np.cos(np.pi / 6), length * np.sin(np.pi / 6)], rtol=1e-5)
    np.testing.assert_allclose(third[1], [1, 1], rtol=1e-5)  # no way to go
    np.testing.assert_allclose(latents.slerp(start, end, 0.0), start, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(start, end, 1.0), end, atol=1e-6)
    assert np.all(np.isfinite(latents.slerp(start, -start, 0.5)))
    assert np.all(np.isfinite(latents.slerp(start * 0, end, 0.5)))


def test_batches_do_not_show():
    whole = latents.sample_images(TOLD, 5, seed=1, condition=np.array([0, 1, 2, 0, 1]))
    assert (whole.shape, whole.dtype) == ((5, 8, 8, 1), np.float32)
    parts = latents.sample_images(TOLD, 5, seed=1, condition=np.array([0, 1, 2, 0, 1]), batch=2)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    z = latents.draw_latents(jax.random.key(1), 5, 6)
    np.testing.assert_allclose(whole, TOLD(z, jnp.array([0, 1, 2, 0, 1])), atol=1e-6)
    other = latents.sample_images(TOLD, 5, seed=1, condition=np.array([0, 1, 2, 0, 2]))
    np.testing.assert_array_equal(np.any(other != whole, axis=(1, 2, 3)), [False] * 4 + [True])


def test_interpolation_goes_from_latent_to_latent():
    images = latents.interpolate(PLAIN, 2, 3, seed=4).reshape(2, 3, 8, 8, 1)
    ends = jax.random.normal(jax.random.key(4), (2, 2, 6))
    for column, z in ((0, ends[0]), (1, latents.slerp(*ends, 0.5)), (2, ends[1])):
        np.testing.assert_allclose(images[:, column], PLAIN(z), atol=1e-5)
    told = latents.interpolate(TOLD, 2, 3, seed=4, condition=np.array([2, 1])).reshape(2, 3, 8, 8, 1)
    np.testing.assert_allclose(told[:, 2], TOLD(ends[1], jnp.array([2, 1])), atol=1e-5)


def test_errors():
    with pytest.raises(ZooError, match="at least 1"):
        latents.sample_images(PLAIN, 0)
    with pytest.raises(ZooError, match="2 columns"):
        latents.interpolate(PLAIN, 1, 1)
    with pytest.raises(ZooError, match="the condition is none"):
        latents.sample_images(TOLD, 2)


def test_pictures_of_a_gan_and_of_a_vae():
    """Pixels of the same images as the model's own, classes in turn; a VAE shows the mean of its likelihood."""
    drawn = latents.sample_pictures(TOLD, 5, seed=1)
    images = latents.sample_images(TOLD, 5, seed=1, condition=np.array([0, 1, 2, 0, 1]))
    np.testing.assert_array_equal(drawn, np.round((images + 1) / 2 * 255))
    vae = VAE(VAEConfig(image_size=8, channels=1, latents=3, patch=4, widths=(4,), blocks=1), nnx.Rngs(0))
    z_nd = latents.draw_latents(jax.random.key(2), 4, 3)
    means = vae.mean(vae.decode(z_nd))
    np.testing.assert_allclose(latents.sample_pictures(vae, 4, seed=2), np.asarray(means) * 255, atol=0.51)
    for model in (TOLD, vae):
        with pytest.raises(ZooError, match="at least 1"):
            latents.sample_pictures(model, 0)
