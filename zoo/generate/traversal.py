"""What a variational autoencoder's latents mean, as pictures: walks along them, and draws where the data lie.

Codes are float32 [N, 2, D]: mean and log-variance of q(z | x) of N images, as `VAE.encode` gives them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.errors import ZooError
from zoo.generate.pictures import picture_grid, to_pixels
from zoo.models.vae import VAE


def decoded(model: VAE, latents_nd: np.ndarray, label_n: np.ndarray) -> np.ndarray:
    """The expected images float32 [N, H, W, C] of latents, and of class numbers where the model has classes."""
    return nnx.jit(lambda model, z, label: model.mean(model.decode(z, label)))(model, latents_nd, label_n)


def codes_of(model: VAE, x_bhwc: jax.Array, label_b: jax.Array) -> jax.Array:
    """The codes float32 [B, 2, D] of images."""
    return jnp.stack(model.encode(x_bhwc, label_b), axis=1)


def reconstructions(
    model: VAE, x_bhwc: jax.Array, label_b: jax.Array, z_nd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, what becomes of them by way of their mean code, and what latents of the prior give, classes in turn."""
    again = model.mean(model.decode(model.encode(x_bhwc, label_b)[0], label_b))
    label_n = jnp.arange(len(z_nd)) % max(1, model.config.classes)
    return x_bhwc, again, model.mean(model.decode(z_nd, label_n))


def most_active(codes_n2d: np.ndarray, most: int) -> np.ndarray:
    """The dimensions with the largest mean KL from the prior, largest first: int [min(most, D)].

    An autoencoder leaves dimensions that it has no use for at the prior.
    """
    mean, log_var = codes_n2d.astype(np.float64).swapaxes(0, 1)
    kl_d = np.mean(0.5 * (mean**2 + np.exp(log_var) - 1 - log_var), axis=0)
    return np.argsort(-kl_d, kind="stable")[:most]


def traverse(start_d: np.ndarray, dimensions: np.ndarray, steps: int, span: float = 3.0) -> np.ndarray:
    """Copies of a latent vector [D], float32 [len(dimensions) · steps, D], row by row of a picture.

    In each row one of the `dimensions` goes from -span to span (in standard deviations of the prior) and all others
    stay as they are.
    """
    walk = np.tile(start_d.astype(np.float32), (len(dimensions), steps, 1))
    for row, dimension in zip(walk, dimensions, strict=True):
        row[:, dimension] = np.linspace(-span, span, steps)
    return walk.reshape(-1, len(start_d))


def traversal_picture(model: VAE, codes_n2d: np.ndarray, label: int = 0, rows: int = 10, steps: int = 11) -> np.ndarray:
    """From the first image, whose class is `label`: a row for each of the most active dimensions; uint8 [H, W, 3]."""
    walk = traverse(codes_n2d[0, 0], most_active(codes_n2d, rows), steps)
    return sheet([decoded(model, walk, np.full(len(walk), label))], steps)


def mixture_draws(codes_n2d: np.ndarray, components: int, draws: int, seed: int, most: int = 10_000) -> np.ndarray:
    """Draws float32 [draws, D] from a mixture of Gaussians with full covariances, fitted to the aggregate posterior.

    It is fitted to one sample of each of the first `most` codes, and closes the gap between what the prior gives and
    what the decoder has seen (Ghosh et al. 2020, arXiv:1903.12436). Raises ZooError for fewer codes than components.
    """
    from sklearn.mixture import GaussianMixture

    mean, log_var = codes_n2d[:most].astype(np.float64).swapaxes(0, 1)
    if len(mean) < components:
        raise ZooError(f"a mixture of {components} components needs as many images; there are {len(mean)}")
    rng = np.random.default_rng(seed)
    latents_nd = mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape)
    drawn, _ = GaussianMixture(components, random_state=seed, reg_covar=1e-4).fit(latents_nd).sample(draws)
    return rng.permutation(drawn).astype(np.float32)  # they come sorted by component


def mixture_picture(model: VAE, codes_n2d: np.ndarray, seed: int, components: int = 10) -> np.ndarray:
    """Eight rows of 16 images drawn from that mixture, classes in turn: uint8 [H, W, 3]."""
    draws = mixture_draws(codes_n2d, min(components, len(codes_n2d)), 8 * 16, seed)
    return sheet([decoded(model, draws, np.arange(len(draws)) % max(1, model.config.classes))])


def sheet(rows: Sequence[np.ndarray], columns: int = 16) -> np.ndarray:
    """One picture uint8 [H, W, 3] of groups of images float32 [N, h, w, C] in [0, 1], each from a new row on."""
    groups = [to_pixels(jax.device_get(group)) for group in rows]
    white = [np.full((-len(group) % columns, *group.shape[1:]), 255, np.uint8) for group in groups]
    images = np.concatenate([part for pair in zip(groups, white, strict=True) for part in pair])
    return picture_grid(images, columns, zoom=max(1, 56 // images.shape[1]))  # small images can be seen, too
