"""Where the order of tokens comes in: sinusoids that are added, rotations of queries and keys, cells of pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.models import rotary_kernel
from zoo.models.layers import rms_norm


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Position encoding float32 [..., width]: sin(t / 10000^(2i/width)) at 2i, the cosine at 2i + 1.

    Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(positions, _frequencies(10_000.0, width))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def rotary_frequencies(
    width: int, theta: float, factor: float = 1.0, low: float = 1.0, high: float = 4.0, original: int = 8192
) -> np.ndarray:
    """Radians per token of the pairs of a head, float32 [width / 2]: theta^(-2i/width).

    Su et al. 2021, arXiv:2104.09864. With a `factor`, long wavelengths are stretched as in Llama 3 (Grattafiori et
    al. 2024, arXiv:2407.21783): in full those above original / low tokens, not at all those below original / high.
    """
    frequencies = _frequencies(theta, width)
    if factor == 1:
        return frequencies
    turns = original * frequencies / (2 * np.pi)  # within the original context
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (kept * frequencies + (1 - kept) * frequencies / factor).astype(np.float32)


def rotary_turns(positions_bt: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32 [B, T, K/2], of the angles of rotary positions."""
    angles = _angles(positions_bt, frequencies)
    # Behind the barrier they are computed once, and not again by every fusion that reads them.
    return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))


def place(
    x_bhtk: jax.Array,
    turns: tuple[jax.Array, jax.Array] | None,
    norm_scale_k: jax.Array | None = None,
    eps: float = 0.0,
    factor: float = 1.0,
) -> jax.Array:
    """Queries or keys as attention takes them: times a factor; where that is wanted normed, and turned by `turns`."""
    if turns is not None and jax.default_backend() == "tpu" and rotary_kernel.fits(x_bhtk):
        if norm_scale_k is not None:  # what is smaller than x takes the factor
            return rotary_kernel.norm_and_rotate(x_bhtk, *turns, factor * norm_scale_k.astype(jnp.float32), eps)
        return rotary_kernel.norm_and_rotate(x_bhtk, factor * turns[0], factor * turns[1])
    if norm_scale_k is not None:
        x_bhtk = rms_norm(x_bhtk, norm_scale_k, eps)
    if turns is not None:
        x_bhtk = rotate(x_bhtk, *turns)
    return x_bhtk if factor == 1 else x_bhtk * jnp.asarray(factor, x_bhtk.dtype)


def rotate(x_bhtk: jax.Array, cos_bti: jax.Array, sin_bti: jax.Array) -> jax.Array:
    """Turns each pair (x[i], x[i + K/2]) by the angles of `rotary_turns`, in float32."""
    if jax.default_backend() == "tpu":
        return rotate_by_product(x_bhtk, cos_bti, sin_bti)
    cos, sin = cos_bti[:, None], sin_bti[:, None]
    a, b = jnp.split(x_bhtk.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_bhtk.dtype)


@jax.custom_vjp
def rotate_by_product(x_bhtk: jax.Array, cos_bti: jax.Array, sin_bti: jax.Array) -> jax.Array:
    """The same: x cos + x Q sin, Q turning by a right angle. Half a head is half of a TPU's lanes, and dear to move."""
    half = x_bhtk.shape[-1] // 2
    quarter = np.kron([[0, 1], [-1, 0]], np.eye(half))
    cos, sin = (jnp.concatenate([y, y], axis=-1)[:, None] for y in (cos_bti, sin_bti))
    with jax.named_scope("as_product"):  # exact, since one entry a row is not zero
        exact = {"precision": "highest", "preferred_element_type": jnp.float32}
        turned_bhtk = jnp.einsum("bhtk,kj->bhtj", x_bhtk, jnp.asarray(quarter, x_bhtk.dtype), **exact)
    return (x_bhtk.astype(jnp.float32) * cos + turned_bhtk * sin).astype(x_bhtk.dtype)


def _rotate_forward(x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rotate_by_product(x, cos, sin), (cos, sin)


def _rotate_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = kept
    return rotate_by_product(gradient, cos, -sin), None, None  # positions have no gradient


rotate_by_product.defvjp(_rotate_forward, _rotate_backward)


def grid_cells(code_bt: jax.Array) -> jax.Array:
    """The how manieth code of its picture each token is, from 0, int32 [B, T]; -1 where `code`, bool [B, T], is not.

    A picture is a run of codes.
    """
    index_t = jnp.broadcast_to(jnp.arange(code_bt.shape[1])[None], code_bt.shape)
    last_other_bt = jax.lax.cummax(jnp.where(code_bt, -1, index_t), axis=1)
    return jnp.where(code_bt, index_t - last_other_bt - 1, -1)


def _frequencies(theta: float, width: int) -> np.ndarray:
    return (theta ** (-np.arange(0, width, 2) / width)).astype(np.float32)


def _angles(positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    return positions.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))
