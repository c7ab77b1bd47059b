"""Images from latents: sampling with truncation, and the way from one latent to another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError
from zoo.generate.pictures import to_pixels
from zoo.generate.traversal import decoded
from zoo.models import functional
from zoo.models.gan import GAN
from zoo.models.vae import VAE


def draw_latents(key: jax.Array, n: int, size: int, truncation: float | None = None) -> jax.Array:
    """Latents float32 [n, size] from a unit Gaussian; with `truncation`, without values beyond plus or minus it.

    Lower truncation gives more typical and less varied images (Brock et al. 2019, section 3.1).
    """
    if truncation is None:
        return jax.random.normal(key, (n, size))
    if truncation <= 0:
        raise ZooError(f"truncation is {truncation}: it must be above 0; leave it out for the whole Gaussian")
    return jax.random.truncated_normal(key, -truncation, truncation, (n, size))


def slerp(start_bd: jax.Array, end_bd: jax.Array, share: jax.Array | float) -> jax.Array:
    """The latents [B, D] at a share (0 to 1) of the way from start to end along a great circle.

    Shoemake (1985), by the angle between the two; unlike a straight line it stays where a Gaussian's mass is
    (White 2016, arXiv:1609.04468). Lengths go evenly from one to the other.
    """
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (start_bd, end_bd)]
    start, end = (x / jnp.maximum(length, 1e-12) for x, length in zip((start_bd, end_bd), lengths, strict=True))
    angle = jnp.arccos(jnp.clip(jnp.sum(start * end, axis=-1, keepdims=True), -1, 1))
    near = jnp.sin(angle) < 1e-4  # (anti)parallel: no circle is meant, and a line does as well
    sine = jnp.where(near, 1.0, jnp.sin(angle))
    first = jnp.where(near, 1 - share, jnp.sin((1 - share) * angle) / sine)
    second = jnp.where(near, share, jnp.sin(share * angle) / sine)
    return (first * start + second * end) * ((1 - share) * lengths[0] + share * lengths[1])


def sample_images(
    model: Any,
    n: int,
    *,
    seed: int = 0,
    truncation: float | None = None,
    condition: np.ndarray | None = None,
    batch: int = 256,
) -> np.ndarray:
    """n images float32 [n, H, W, C] in [-1, 1] of a GAN, made in batches; `condition` has an entry for each."""
    if n < 1 or batch < 1:
        raise ZooError(f"{n} images in batches of {batch}: give at least 1 of both")
    z_bd = draw_latents(jax.random.key(seed), n, model.config.latent, truncation)
    return images_of(model, z_bd, condition, batch)


def sample_pictures(model: GAN | VAE, n: int, seed: int = 0) -> np.ndarray:
    """n pictures uint8 [n, H, W, C] from random latents, classes in turn where the model has them.

    Those of a VAE are the means of its likelihood. Raises ZooError for none, and for a GAN whose condition is a vector.
    """
    if n < 1:
        raise ZooError(f"{n} pictures: give at least 1")
    classes = np.arange(n, dtype=np.int32) % max(1, model.config.classes)
    if isinstance(model, VAE):
        z_nd = np.asarray(draw_latents(jax.random.key(seed), n, model.config.latents))
        return to_pixels(decoded(model, z_nd, classes))
    return to_pixels(sample_images(model, n, seed=seed, condition=classes if model.config.classes else None), low=-1)


def interpolate(
    model: Any, rows: int, columns: int, *, seed: int = 0, condition: np.ndarray | None = None
) -> np.ndarray:
    """Images float32 [rows · columns, H, W, C] in [-1, 1], row by row: each row goes from one random latent to another.

    `condition` has an entry for each row, which keeps it all along.
    """
    if rows < 1 or columns < 2:
        raise ZooError(f"{rows} rows of {columns} images: give at least 1 row and 2 columns")
    start_bd, end_bd = jax.random.normal(jax.random.key(seed), (2, rows, model.config.latent))
    along_rows = jax.jit(jax.vmap(slerp, (None, None, 0), 1))
    z_rcd = along_rows(start_bd, end_bd, jnp.linspace(0, 1, columns))
    along = None if condition is None else np.repeat(condition, columns, axis=0)
    return images_of(model, z_rcd.reshape(rows * columns, -1), along)


def images_of(model: Any, z_bd: jax.Array, condition: np.ndarray | None = None, batch: int = 256) -> np.ndarray:
    """Images float32 [n, H, W, C] in [-1, 1] of latents [n, D], on the host."""
    split = functional.split(model)
    told = None if condition is None else jnp.asarray(condition)
    parts = [
        jax.device_get(_generate(*split, z_bd[i : i + batch], None if told is None else told[i : i + batch]))
        for i in range(0, len(z_bd), batch)
    ]
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _generate(graphdef: Any, params: Any, stats: Any, z_bd: jax.Array, condition: jax.Array | None) -> jax.Array:
    return functional.merge(graphdef, params, stats)(z_bd, condition)
